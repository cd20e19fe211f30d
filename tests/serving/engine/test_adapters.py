"""Command lines, metrics and names of vLLM; the kernel's table of connections."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from serving.engine.adapters import EngineArgsError, EngineStats, Launch, VllmAdapter, canary_key, hardware_name
from serving.engine.connections import count_in_table

METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="small"} 2.0
vllm:num_requests_waiting{engine="0",model_name="small"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="small",reason="capacity"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="small"} 0.022008253094910613
vllm:prefix_cache_queries_total{engine="0",model_name="small"} 335.0
vllm:prefix_cache_queries_created{engine="0",model_name="small"} 1.7953901569474916e+09
vllm:prompt_tokens_total{engine="0",model_name="small"} 300.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="small",source="local_compute"} 300.0
vllm:generation_tokens_total{engine="0",model_name="small"} 47.0
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="small"} 30.0
vllm:iteration_tokens_total_count{engine="0",model_name="small"} 44.0
vllm:iteration_tokens_total_sum{engine="0",model_name="small"} 382.0
vllm:num_requests_running{engine="1",model_name="small"} 3.0
"""
"""Lines of vLLM 0.32.0, and one of a second rank."""


def launch(*pod_args: str, host: str = "10.0.0.7", **release_args: str) -> Launch:
    args = {name.replace("_", "-"): value for name, value in release_args.items()}
    return Launch(Path("/cache/release"), "small", host, 8000, args, pod_args, Path("/cache"))


def test_a_command_line_is_the_supervisors_then_the_releases_then_the_pods() -> None:
    command = VllmAdapter().command(launch("--max-num-seqs", "8", "--enforce-eager", dtype="bfloat16"))
    assert command == (
        sys.executable,
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", "/cache/release", "--served-model-name", "small", "--host", "10.0.0.7", "--port", "8000"),
        *("--enable-prompt-tokens-details", "--disable-uvicorn-access-log", "--disable-fastapi-docs"),
        *("--dtype", "bfloat16"),
        *("--max-num-seqs", "8", "--enforce-eager"),
    )


def test_a_release_argument_without_a_value_is_a_flag() -> None:
    assert "--enable-auto-tool-choice" in VllmAdapter().command(launch(enable_auto_tool_choice=""))[-1:]


def test_the_pod_may_turn_off_what_the_supervisor_turns_on() -> None:
    command = VllmAdapter().command(launch("--no-disable-uvicorn-access-log"))
    assert "--disable-uvicorn-access-log" not in command


def test_the_releases_folder_is_put_where_an_argument_asks_for_it() -> None:
    draft = '{"method":"draft_model","model":"{release}/draft"}'
    command = VllmAdapter().command(launch("--speculative-config", draft))
    assert command[-1] == '{"method":"draft_model","model":"/cache/release/draft"}'


CONFLICTS: list[tuple[str, Launch, str]] = [
    ("set by both", launch("--dtype", "float16", dtype="bfloat16"), "--dtype is set by the release and by the pod"),
    (
        "set by both, in other spellings",
        launch("--kv_cache_dtype=fp8", kv_cache_dtype="auto"),
        "--kv-cache-dtype is set by the release",
    ),
    ("set twice", launch("--max-num-seqs", "8", "--max-num-seqs=9"), "--max-num-seqs is there twice"),
    ("set twice, once short", launch("-tp", "2", "--tensor-parallel-size", "4"), "--tensor-parallel-size is there twice"),
    ("the supervisor's", launch("--port", "9000"), "--port is the supervisor's to set"),
    ("code from a release", launch(trust_remote_code=""), "which a release may not"),
    ("every address", launch(host="0.0.0.0"), "must be the pod's own"),
    ("every address of IPv6", launch(host="::"), "must be the pod's own"),
]


@pytest.mark.parametrize(("wrong", "message"), [case[1:] for case in CONFLICTS], ids=[case[0] for case in CONFLICTS])
def test_an_argument_that_does_not_fit_is_named(wrong: Launch, message: str) -> None:
    with pytest.raises(EngineArgsError, match=message):
        VllmAdapter().command(wrong)


def test_stats_are_summed_over_ranks_and_nothing_else_is_mistaken_for_them() -> None:
    assert VllmAdapter().stats(METRICS) == EngineStats(5, 1, (47.0, 300.0, 382.0, 0.022008253094910613, 335.0))


def test_metrics_of_an_engine_that_has_none_yet_are_zero() -> None:
    assert VllmAdapter().stats("") == EngineStats(0, 0, (0.0,) * 5)


def test_a_chunk_of_a_prefill_is_progress() -> None:
    """vLLM's token counters stand still until the last chunk of a prefill: 34 s for 7,389 tokens on two cores."""
    before = VllmAdapter().stats(METRICS)
    after = VllmAdapter().stats(METRICS.replace("0.022008253094910613", "0.044016506189821225"))
    assert before.progress != after.progress


@pytest.mark.parametrize(
    ("args", "expected"), [((), 1), (("--tensor-parallel-size", "8"), 8), (("--tensor-parallel-size=2",), 2), (("-tp", "4"), 4)]
)
def test_ranks_are_read_from_the_pods_arguments(args: tuple[str, ...], expected: int) -> None:
    assert VllmAdapter().tensor_parallel(args) == expected


def test_a_key_names_engine_hardware_and_ranks(tmp_path: Path) -> None:
    (tmp_path / "0000:10:1c.0").mkdir()
    (tmp_path / "0000:10:1c.0" / "information").write_text("Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 0\n")
    assert canary_key("vllm", "0.32.0", hardware_name(tmp_path), 2) == "vllm-0.32.0-a100-sxm4-40gb-tp2"
    assert hardware_name(tmp_path / "nowhere") == "cpu"


TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F40 0100007F:A274 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 26 29 -1
   2: 0100007F:A274 0100007F:1F40 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 20 4 26 29 -1
   3: 0200007F:1F40 0200007F:A275 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0 20 4 26 29 -1
   4: 0100007F:1F41 0100007F:A276 01 00000000:00000000 00:00000000 00000000     0        0 5 1 0 20 4 26 29 -1
   5: 0100007F:1F40 0100007F:A277 06 00000000:00000000 00:00000000 00000000     0        0 6 1 0 20 4 26 29 -1
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the table above is of a little-endian machine")
def test_only_established_connections_to_the_very_address_and_port_count() -> None:
    assert count_in_table(TABLE, "127.0.0.1", 8000) == 1
    six = TABLE.replace("0100007F:1F40", "0000000000000000FFFF00000100007F:1F40")
    assert count_in_table(six, "::ffff:127.0.0.1", 8000) == 1


def test_the_environment_keeps_what_the_pod_set_and_drops_credentials() -> None:
    inherited: dict[str, Any] = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "VLLM_CPU_KVCACHE_SPACE": "2"}
    environment = VllmAdapter().environment(inherited, launch())
    assert (environment["PATH"], environment["VLLM_CPU_KVCACHE_SPACE"]) == ("/bin", "2")
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert environment["VLLM_CACHE_ROOT"] == "/cache/vllm"
    assert environment["VLLM_HOST_IP"] == "10.0.0.7"


def test_an_eager_engine_compiles_nothing() -> None:
    """Without a C++ compiler on the machine, one request for log probabilities ended the engine."""
    assert VllmAdapter().environment({}, launch("--enforce-eager"))["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in VllmAdapter().environment({}, launch())


def test_on_one_machine_the_parts_of_an_engine_speak_over_loopback_alone() -> None:
    assert VllmAdapter().environment({}, launch(host="127.1.2.3"))["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in VllmAdapter().environment({}, launch())
