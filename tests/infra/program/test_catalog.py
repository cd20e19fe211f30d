"""The catalog's numbers against the design's."""

from __future__ import annotations

import pytest

from infra.catalog import Model
from infra.config import load_catalog
from serving.settings import ModelClass


@pytest.mark.parametrize(
    ("model", "kv_kib", "weights_gib"),
    [
        ("qwen2.5-7b-instruct", 56, 14.2),  # 2 × 28 × 4 × 128 × 2 bytes; 7.62 G × 2 bytes
        ("qwen2.5-14b-instruct", 192, 27.5),  # 2 × 48 × 8 × 128 × 2
        ("llama-3.3-70b-instruct", 320, 131.4),  # 2 × 80 × 8 × 128 × 2: 10 GiB at 32K, not the 80 of a formula without KV heads
        ("llama-3.3-70b-instruct-int8", 320, 65.7),  # 70.55 G × 1 byte
        ("llama-2-70b", 320, 128.5),
        ("qwen2.5-7b-instruct-l4", 56, 14.2),
        ("smollm2-135m-instruct", 22.5, 0.3),  # 2 × 30 × 3 × 64 × 2
    ],
)
def test_kv_cache_and_weights_follow_from_the_architecture(model: str, kv_kib: float, weights_gib: float) -> None:
    found = load_catalog().models[model]
    assert found.kv_bytes_per_token == kv_kib * 1024
    assert found.weights_gib == pytest.approx(weights_gib, abs=0.05)


@pytest.mark.parametrize(("model_class", "replicas"), [("small", 50), ("medium", 30), ("large", 20)])
def test_the_launch_profile_is_the_system_designs(model_class: ModelClass, replicas: int) -> None:
    assert load_catalog().classes[model_class].launch_replicas == replicas


def test_the_system_designs_own_block_is_there_as_it_stands() -> None:
    model = load_catalog().models["llama-2-70b"]
    assert model.tensor_parallel_size == 8
    assert model.engine_args == {"max_num_batched_tokens": 8192, "gpu_memory_utilization": 0.9}


def test_models_with_gpus_promise_the_context_window_that_is_required() -> None:
    windows = {name: model.context_window_tokens for name, model in load_catalog().models.items() if model.gpus}
    assert {name for name, tokens in windows.items() if tokens < 32_768} == {"llama-2-70b"}


def test_arguments_are_written_as_the_engine_reads_them() -> None:
    assert load_catalog().models["smollm2-135m-instruct"].engine_arguments() == (
        "--disable-uvicorn-access-log", "--enable-auto-tool-choice", "--no-enable-log-requests", "--enable-prefix-caching",
        "--enable-prompt-tokens-details", "--enforce-eager", "--max-model-len", "8192", "--max-num-seqs", "8",
        "--tool-call-parser", "hermes",
    )  # fmt: skip


def test_room_for_adapters_becomes_the_engines_arguments() -> None:
    arguments = " ".join(load_catalog().models["qwen2.5-7b-instruct"].engine_arguments())
    assert "--enable-lora" in arguments and "--max-loras 8" in arguments and "--max-lora-rank 32" in arguments


def test_speculation_becomes_the_engines_argument_and_its_draft_counts_in_memory() -> None:
    models = load_catalog().models
    for name, config in {
        "qwen2.5-7b-instruct-ngram": '{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_max":4}',
        "llama-3.3-70b-instruct-speculative": '{"method":"draft_model","model":"{release}/draft","num_speculative_tokens":4}',
    }.items():
        arguments = models[name].engine_arguments()
        assert arguments[arguments.index("--speculative-config") + 1] == config
    # 131.4 + 2.3 GiB of weights; (320 + 32) KiB × 32,768 tokens = 11 GiB of KV; 2 × 80 × 0.9 = 144 GiB is not enough.
    values = models["llama-3.3-70b-instruct-speculative"].model_dump()
    values |= {"gpus": {"kind": "a100-80g", "count": 2}, "tensor_parallel_size": 2}
    with pytest.raises(ValueError, match=r"weights \(133\.7 GiB\) and KV of one full context \(11\.0 GiB\) need 144\.7 GiB"):
        Model.model_validate(values)
