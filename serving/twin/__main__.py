"""`python -m serving.twin`: one twin, or many in one process.

Takes vLLM's own arguments where they mean something here, so that a pod's command line fits both:

    python -m serving.twin --model FOLDER --served-model-name medium --host 127.0.0.1 --port 8000 --profile a100-medium
    python -m serving.twin --twins 64 --port 9000 --profile a100-small --speed 10     # ports 9000 to 9063
    python -m serving.twin --twins 64 --host 127.30.0.1 --by-address                  # 127.30.0.1 to 127.30.0.64, port 8000

Without `--model` it speaks its own small vocabulary. SIGTERM ends it at once, as nothing here is worth waiting for.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvloop

from policies.capacity.step_law import PROFILES
from serving.twin import vocabulary
from serving.twin.engine import Limits
from serving.twin.faults import FaultPlan
from serving.twin.kv_events import EventsConfig
from serving.twin.twin import Twin, TwinConfig

log = structlog.get_logger()

DEFAULT_MEAN_ANSWER_TOKENS = 211
"""Of the Azure 2023 conversation trace."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m serving.twin", description="A vLLM twin.", allow_abbrev=False)
    vllm = found.add_argument_group("as vLLM's")
    vllm.add_argument("--model", type=Path, help="folder with tokenizer.json, tokenizer_config.json, chat_template.jinja")
    vllm.add_argument("--served-model-name", default="twin")
    vllm.add_argument("--host", default="127.0.0.1")
    vllm.add_argument("--port", type=int, default=8000)
    vllm.add_argument("--max-model-len", type=int, default=32_768)
    vllm.add_argument("--max-num-seqs", type=int, default=256)
    vllm.add_argument("--max-num-batched-tokens", type=int, default=8192)
    vllm.add_argument("--block-size", type=int, default=16)
    vllm.add_argument("--num-gpu-blocks-override", type=int, help="KV cache blocks [default: the profile's]")
    vllm.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True)
    vllm.add_argument("--enable-auto-tool-choice", action="store_true", help="tools can be called, with the next")
    vllm.add_argument("--tool-call-parser", help="any; a twin writes calls as hermes reads them")
    vllm.add_argument("--enable-lora", action="store_true")
    vllm.add_argument("--max-loras", type=int, default=1)
    vllm.add_argument("--max-lora-rank", type=int, default=16)
    vllm.add_argument("--kv-events-config", type=_json_of(EventsConfig), default="{}", help="JSON; `*` is the twin's own address")
    twin = found.add_argument_group("the twin's own")
    twin.add_argument("--profile", choices=sorted(PROFILES), default="a100-small", help="how fast it is and how much it holds")
    twin.add_argument("--speed", type=float, default=1.0, help="times faster than the profile; 0 takes no time")
    twin.add_argument("--seed", type=int, default=0, help="of texts and faults")
    twin.add_argument(
        "--mean-answer-tokens",
        type=int,
        default=DEFAULT_MEAN_ANSWER_TOKENS,
        help="of answers that nothing else ends; 0 never ends one",
    )
    twin.add_argument("--start-delay-s", type=float, default=0.0, help="listens only after this long")
    twin.add_argument("--faults", type=_json_of(FaultPlan), default="{}", help="JSON, as for /twin/faults, from the start")
    twin.add_argument("--twins", type=int, default=1, help="so many in this process, on ports that follow each other")
    twin.add_argument("--by-address", action="store_true", help="on addresses that follow each other instead, as pods are")
    return found


def _json_of(kind: type[Any]) -> Callable[[str], Any]:
    """Reads an argument that is a document; what is wrong with it is told with the argument's name."""

    def read(text: str) -> Any:
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.MsgspecError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def configs(options: argparse.Namespace) -> list[TwinConfig]:
    """One configuration a twin."""
    profile = PROFILES[options.profile]
    limits = Limits(
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_loras=options.max_loras if options.enable_lora else 0,
        law=profile.law,
        max_lora_rank=options.max_lora_rank,
        lora_load_s=profile.lora_load_s,
        speed=options.speed,
    )
    return [
        TwinConfig(
            host=str(ipaddress.ip_address(options.host) + number) if options.by_address else options.host,
            port=options.port + number if options.port and not options.by_address else options.port,
            served_name=options.served_model_name,
            model_root=str(options.model or "twin"),
            limits=limits,
            num_blocks=options.num_gpu_blocks_override or profile.num_blocks,
            block_tokens=options.block_size,
            is_caching=options.enable_prefix_caching,
            events=options.kv_events_config if options.by_address else _for_twin(options.kv_events_config, number),
            seed=options.seed,
            fault_seed=options.seed + number,
            mean_answer_tokens=options.mean_answer_tokens,
            has_tool_parser=options.enable_auto_tool_choice and options.tool_call_parser is not None,
        )
        for number in range(options.twins)
    ]


def _for_twin(events: EventsConfig, number: int) -> EventsConfig:
    """Each twin publishes two ports above the one before it: a replay port may lie beside each."""
    endpoint, replay = _moved(events.endpoint, 2 * number), events.replay_endpoint
    replay = _moved(replay, 2 * number) if replay else None
    return msgspec.structs.replace(events, endpoint=endpoint, replay_endpoint=replay)


def _moved(endpoint: str, by: int) -> str:
    """`tcp://*:5559` for `tcp://*:5557` and 2."""
    address, _, port = endpoint.rpartition(":")
    return f"{address}:{int(port) + by}"


async def serve(options: argparse.Namespace) -> int:
    """Run until SIGTERM; 2 where an address is taken."""
    is_alone = options.twins == 1
    words = vocabulary.load(options.model)
    await asyncio.sleep(options.start_delay_s)
    twins = [Twin(config, words, _kill_process if is_alone else Twin.vanish) for config in configs(options)]
    try:
        for twin in twins:
            await twin.start()
            twin.set_faults(options.faults)
    except OSError as error:
        sys.stderr.write(f"{twin.config.host}:{twin.config.port}: {error.strerror or error}\n")
        return 2
    ports = [twin.port for twin in twins]
    log.info("twins_ready", pid=os.getpid(), host=options.host, first_port=ports[0], num_twins=len(ports))
    over = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, over.set)
    await over.wait()
    for twin in twins:
        await twin.stop()
    return 0


def _kill_process(twin: Twin) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Entry point; 2 for arguments that do not fit."""
    options = parser().parse_args()
    num_blocks = options.num_gpu_blocks_override or PROFILES[options.profile].num_blocks
    if num_blocks * options.block_size <= options.max_model_len:
        parser().error(f"{num_blocks} blocks of {options.block_size} tokens do not hold --max-model-len {options.max_model_len}")
    try:
        return uvloop.run(serve(options))
    except vocabulary.VocabularyError as error:
        sys.stderr.write(f"python -m serving.twin: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
