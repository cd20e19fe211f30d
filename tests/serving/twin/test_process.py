"""`python -m serving.twin`: many twins in one process, what ends them, and what is wrong with a command line."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

from serving.twin.__main__ import configs, parser

Run = Callable[..., tuple[subprocess.Popen[bytes], int]]


def free_ports(number: int) -> int:
    """The first of `number` ports in a row that nobody has."""
    for first in range(21_000, 29_000, number):
        listeners = []
        try:
            for port in range(first, first + number):
                listeners.append(socket.create_server(("127.0.0.1", port)))
            return first
        except OSError:
            continue
        finally:
            for listener in listeners:
                listener.close()
    raise AssertionError("no ports")


def call(port: int, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"}), timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def answers(port: int) -> bool:
    try:
        return bool(call(port, "/version"))
    except OSError:
        return False


@pytest.fixture
def run() -> Iterator[Run]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, twins: int = 1) -> tuple[subprocess.Popen[bytes], int]:
        port = free_ports(twins)
        command = [sys.executable, "-m", "serving.twin", "--port", str(port), "--twins", str(twins), "--speed", "0", *arguments]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        deadline = time.monotonic() + 30
        while not answers(port):
            assert processes[-1].poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        return processes[-1], port

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_many_twins_share_a_process_and_nothing_else(run: Run) -> None:
    process, first = run(twins=16)
    ask = {"prompt": "of the people", "max_tokens": 5, "temperature": 0}
    texts = {call(port, "/v1/completions", ask)["choices"][0]["text"] for port in range(first, first + 16)}
    assert len(texts) == 1, "replicas of one model"
    call(first + 3, "/v1/completions", ask)
    arrived = [call(port, "/twin/state")["num_arrived"] for port in range(first, first + 16)]
    assert arrived == [1, 1, 1, 2, *[1] * 12]
    call(first + 2, "/twin/faults", {"faults": [{"kind": "die", "at_token": 1}]})
    with pytest.raises(OSError):
        call(first + 2, "/v1/completions", ask)
    assert not answers(first + 2) and answers(first + 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_twins_can_have_addresses_of_their_own_as_pods_have() -> None:
    events = '{"enable_kv_cache_events": true, "endpoint": "tcp://*:5557"}'
    line = ["--twins", "3", "--host", "127.30.0.1", "--by-address", "--kv-events-config", events]
    found = configs(parser().parse_args(line))
    assert [(config.host, config.port) for config in found] == [(f"127.30.0.{number}", 8000) for number in (1, 2, 3)]
    assert {config.events.endpoint for config in found} == {"tcp://*:5557"}  # `*` is each one's own address
    by_port = configs(parser().parse_args(["--twins", "2", "--port", "9000", "--kv-events-config", events]))
    assert [(config.port, config.events.endpoint) for config in by_port] == [(9000, "tcp://*:5557"), (9001, "tcp://*:5559")]
    assert [config.seed for config in found] == [0] * 3 and len({config.fault_seed for config in found}) == 3


def test_the_death_of_a_lone_twin_is_its_processs(run: Run) -> None:
    process, port = run("--faults", '{"faults": [{"kind": "die", "at_token": 2}]}')
    with pytest.raises(OSError):
        call(port, "/v1/completions", {"prompt": "of the people", "max_tokens": 5})
    assert process.wait(10) == -signal.SIGKILL


def test_a_slow_start_listens_late(run: Run) -> None:
    began = time.monotonic()
    run("--start-delay-s", "1")
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--profile", "h100"], "invalid choice: 'h100'"),
        (["--model", "/nowhere"], "/nowhere: "),
        (["--faults", '{"faults": [{"kind": "sulk"}]}'], "sulk"),
        (["--kv-events-config", "{"], "argument --kv-events-config: Input data was truncated"),
        (["--num-gpu-blocks-override", "8"], "8 blocks of 16 tokens do not hold --max-model-len 32768"),
        (["--max-num-seq-s", "8"], "unrecognized arguments"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(arguments: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving.twin", "--port", "0", *arguments], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
