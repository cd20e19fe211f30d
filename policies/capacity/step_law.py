"""How long an engine step takes: a law with four numbers, per model class and GPU.

    step = base + prefill tokens × prefill + decoding sequences × decode + tokens of context read × kv

The numbers are for A100s. Sources: Vidur's measured kernels (github.com/microsoft/vidur, profiles of Llama-2-7B and -70B on A100;
linear layers and all-reduce) with attention's reads at 1.6 TB/s and 2 ms of overhead a step, which give for a prefill of 1,024
tokens and for a step that decodes a batch with the mean context of the Azure 2023 conversation trace (1,155 in, 211 out):

    7B  TP1   71 ms,  38 ms at 64 (Llama-2's KV of 512 KiB a token)
    70B TP8  140 ms,  57 ms at 256 (320 KiB)

`base` is the weights' share of one GPU read once, plus the overhead. `kv` follows from the model's own KV cache, which is how
Qwen2.5-7B (56 KiB) decodes faster than Llama-2-7B. 14B at TP2 is not measured: half of a 13B's compute, plus a tenth for the
all-reduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StepLaw:
    """Seconds of a step."""

    base_s: float
    prefill_s_per_token: float
    decode_s_per_sequence: float
    kv_s_per_token: float

    def step_s(self, prefill_tokens: int, num_decodes: int, context_tokens: int) -> float:
        """One step that computes `prefill_tokens` of prompts and one token of each of `num_decodes` sequences, which have
        `context_tokens` together."""
        return (
            self.base_s
            + prefill_tokens * self.prefill_s_per_token
            + num_decodes * self.decode_s_per_sequence
            + context_tokens * self.kv_s_per_token
        )


@dataclass(frozen=True)
class Profile:
    """An engine of a model class on its GPUs."""

    law: StepLaw
    num_blocks: int
    """Of 16 tokens: what 90 % of the GPUs' memory leaves beside weights and activations."""
    lora_load_s: float
    """An adapter's way from host memory to a slot on the GPU."""


def _kv_s_per_token(kv_kib: float, tensor_parallel: int) -> float:
    return kv_kib * 1024 / tensor_parallel / 1.6e12


PROFILES: Mapping[str, Profile] = {
    # Qwen2.5-7B on one A100-40G: 15.2 GB of weights; 36 GiB less 14.2 and 2 of activations leave 19.8 GiB.
    "a100-small": Profile(StepLaw(0.0115, 58e-6, 16e-6, _kv_s_per_token(56, 1)), 23_100, 0.02),
    # Qwen2.5-14B on two: 29.5 GB of weights, 40 GiB left.
    "a100-medium": Profile(StepLaw(0.0112, 75e-6, 30e-6, _kv_s_per_token(192, 2)), 13_600, 0.03),
    # Llama-3.3-70B on eight A100-80G: 141 GB of weights, 422 GB left.
    "a100-large": Profile(StepLaw(0.0128, 124e-6, 140e-6, _kv_s_per_token(320, 8)), 80_600, 0.05),
}
