"""What a newcomer, an application developer and a careless operator do with a region, on the real vLLM.

The tests run in order on one region: the later ones hurt it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest
from e2e_support import FLOTILLA, PORT_OFFSET, REPOSITORY, LocalRegion, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

PROGRESS_TOKENS = 32
BILL_TIMEOUT_S = 30


def client(region: LocalRegion, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=region.home.base_url, api_key=region.target.api_key, timeout=120, max_retries=0, **options)


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def post(
    region: LocalRegion, path: str, body: bytes, key: str | None = "demo", **headers: str
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, decoded body and headers of a raw POST; `key="demo"` stands for the region's own key."""
    request = Request(region.home.base_url + path, data=body, headers={"content-type": "application/json", **headers})
    if key is not None:
        request.add_header("authorization", f"Bearer {region.target.api_key if key == 'demo' else key}")
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read()), {name.lower(): value for name, value in answer.headers.items()}
    except HTTPError as error:
        return error.code, json.loads(error.read()), {name.lower(): value for name, value in error.headers.items()}


def serves(region: LocalRegion) -> bool:
    """One token comes back; while a process is being replaced the connection may be refused or reset."""
    try:
        return post(region, "/chat/completions", chat_body(max_tokens=1))[0] == 200
    except OSError:
        return False


def settled_bill(region: LocalRegion, num_requests: int) -> dict[str, int]:
    wait_until(lambda: region.usage()["requests"] >= num_requests, BILL_TIMEOUT_S, f"{num_requests} requests in the ledger")
    return region.usage()


def test_the_printed_lines_work_as_printed(region: LocalRegion) -> None:
    report = json.loads(region.run("up", "--port-offset", str(PORT_OFFSET), "--json").stdout)
    curl = subprocess.run(["bash", "-c", report["curl"]], capture_output=True, text=True, timeout=120, check=True)
    assert "Paris" in curl.stdout
    snippet = subprocess.run([sys.executable, "-c", report["python"]], capture_output=True, text=True, timeout=120, check=True)
    assert snippet.stdout.strip()


def test_a_second_up_changes_nothing_and_says_so(region: LocalRegion) -> None:
    before = {pod["name"]: pod["started_at_ms"] for pod in region.pods()}
    done = region.run("up", "--port-offset", str(PORT_OFFSET))
    assert "nothing to change" in done.stdout.lower()
    assert {pod["name"]: pod["started_at_ms"] for pod in region.pods()} == before


def test_chat_streams_an_answer_of_the_real_model(region: LocalRegion) -> None:
    assert "Paris" in region.run("chat", "What is the capital of France?").stdout


def test_the_bill_equals_the_engines_own_counters_to_the_token(region: LocalRegion) -> None:
    """Ten requests, streamed and not, chat and completions, four of them left halfway."""
    counted = region.counters()
    wait_until(
        lambda: region.usage()["output_tokens"] >= counted["generation"], BILL_TIMEOUT_S, "all requests so far in the ledger"
    )
    settled = region.usage()
    assert (settled["uncached_input_tokens"] + settled["cached_input_tokens"], settled["output_tokens"]) == (
        counted["prompt"],
        counted["generation"],
    ), "all requests so far finished"

    api = client(region)
    finished = 0
    for number in range(3):
        answer = api.chat.completions.create(model="small", messages=ask(f"Count to {number + 3}."), max_tokens=24, temperature=0)
        finished += answer.usage.completion_tokens  # type: ignore[union-attr]
        stream = api.chat.completions.create(
            model="small",
            messages=ask(f"Name {number + 2} colours."),
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
        finished += sum(chunk.usage.completion_tokens for chunk in stream if chunk.usage)
    bill, counted_after = settled_bill(region, settled["requests"] + 6), region.counters()
    assert bill["output_tokens"] - settled["output_tokens"] == finished
    assert bill["output_tokens"] == counted_after["generation"]
    assert bill["uncached_input_tokens"] + bill["cached_input_tokens"] == counted_after["prompt"]

    for number in range(2):  # streamed, and left after a few tokens
        stream = api.chat.completions.create(
            model="small", messages=ask(f"Tell me story {number}."), max_tokens=400, temperature=0, stream=True
        )
        for seen, _ in enumerate(stream):
            if seen == 8:
                stream.close()
                break
        with pytest.raises(openai.APITimeoutError):  # not streamed, and left while it runs
            client(region).with_options(timeout=4).completions.create(
                model="small", prompt=f"Once upon a time {number}", max_tokens=400, temperature=0
            )
    wait_until(lambda: region.counters()["running"] == 0, 10, "the engine aborted what clients left")
    last, counted_last = settled_bill(region, bill["requests"] + 4), region.counters()
    assert 0 <= counted_last["generation"] - last["output_tokens"] <= 4, "each of the four lies within one engine step"
    assert last["output_tokens"] - bill["output_tokens"] >= 4 * 2
    assert last["uncached_input_tokens"] + last["cached_input_tokens"] == counted_last["prompt"]


def deep_json(depth: int) -> bytes:
    return b'{"model":"small","messages":' + b"[" * depth + b"]" * depth + b"}"


def chat_body(**fields: Any) -> bytes:
    return json.dumps({"model": "small", "messages": ask("Hello"), **fields}).encode()


BAD_REQUESTS: list[tuple[str, dict[str, Any], int, str]] = [
    ("a wrong key", {"body": chat_body(), "key": "fl_live_" + "0" * 36}, 401, "invalid_api_key"),
    ("no key", {"body": chat_body(), "key": None}, 401, "invalid_api_key"),
    ("a body of 2 MiB", {"body": chat_body(user="x" * 2 * 1024 * 1024)}, 413, "request_too_large"),
    ("a million answers", {"body": chat_body(n=1_000_000)}, 400, "invalid_value"),
    ("JSON ten thousand deep", {"body": deep_json(10_000)}, 400, "json_too_deep"),
    ("an unknown model", {"body": chat_body(model="gpt-17")}, 404, "model_not_found"),
    ("a prompt over the window", {"body": chat_body(messages=ask("word " * 20_000))}, 400, "context_length_exceeded"),
    ("bytes that are not UTF-8", {"body": b'{"model":"small","messages":"\xff\xfe"}'}, 400, "invalid_utf8"),
    ("a field that is not ours to pass", {"body": chat_body(cache_salt="mine")}, 400, "unsupported_parameter"),
]


@pytest.mark.parametrize(
    ("request_", "status", "code"), [case[1:] for case in BAD_REQUESTS], ids=[case[0] for case in BAD_REQUESTS]
)
def test_is_refused_with_a_stable_code_and_no_engine_call(
    region: LocalRegion, request_: dict[str, Any], status: int, code: str
) -> None:
    before = region.counters()
    got_status, body, _ = post(region, "/chat/completions", **request_)
    assert (got_status, body["error"]["code"]) == (status, code)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert region.counters() == before


def test_the_service_is_unharmed_by_all_that(region: LocalRegion) -> None:
    assert client(region).chat.completions.create(model="small", messages=ask("Hello"), max_tokens=4).choices[0].message.content


def test_a_revoked_key_is_refused_within_five_seconds(region: LocalRegion) -> None:
    region.run("tenants", "create", "acme")
    key = json.loads(region.run("keys", "create", "acme", "--json").stdout)
    assert post(region, "/chat/completions", chat_body(max_tokens=2), key["key"])[0] == 200
    region.run("keys", "revoke", key["key_id"])
    began = time.monotonic()
    wait_until(lambda: post(region, "/chat/completions", chat_body(max_tokens=2), key["key"])[0] == 401, 5, "the key is refused")
    assert time.monotonic() - began <= 5


def test_two_ups_at_once_one_refuses_clearly(region: LocalRegion) -> None:
    ups = [
        subprocess.Popen(
            [str(FLOTILLA), "up", "--port-offset", str(PORT_OFFSET)],
            cwd=REPOSITORY,
            env=region.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    results = [(up.communicate(timeout=300)[1], up.returncode) for up in ups]
    assert sorted(code for _, code in results) == [0, 2]
    (refusal,) = [message for message, code in results if code == 2]
    assert "another" in refusal
    assert "Traceback" not in refusal


def test_a_taken_port_is_one_line_naming_it(region: LocalRegion, tmp_path: Any) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        env = {**os.environ, "FLOTILLA_STATE": str(tmp_path / "other")}
        done = subprocess.run(
            [str(FLOTILLA), "up", "--port-offset", str(port - 8080)],
            cwd=REPOSITORY,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


def process_ids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def processes_of(pod: dict[str, Any], needle: str) -> list[int]:
    """Process ids in any session of the pod's containers whose command line has `needle`."""
    found = []
    sessions = {container["pid"] for container in pod["containers"]}
    for pid in process_ids():
        try:
            if os.getsid(pid) in sessions and needle in command_line(pid):
                found.append(pid)
        except OSError:
            continue
    return found


def test_kill_9_of_the_gateway_in_mid_stream_bills_once_what_was_last_recorded(region: LocalRegion) -> None:
    before = quiet_bill(region)
    counted_before = region.counters()["generation"]
    received = 0
    pod = region.pod("gateway")
    (gateway,) = processes_of(pod, "serving.gateway")
    stream = client(region).chat.completions.create(
        model="small", messages=ask("Tell me a long story."), max_tokens=300, stream=True
    )
    with pytest.raises((openai.APIError, openai.APIConnectionError, Exception)):  # the connection breaks off
        for chunk in stream:
            received += bool(chunk.choices and chunk.choices[0].delta.content)
            if received == 60:
                os.kill(gateway, signal.SIGKILL)
    wait_until(lambda: serves(region), 60, "the gateway serves again")
    bill = settled_bill(region, before["requests"] + 2)
    assert bill["requests"] == before["requests"] + 2, "the broken request once, the probe once"
    billed = bill["output_tokens"] - before["output_tokens"] - 1
    generated = region.counters()["generation"] - counted_before - 1
    assert received - PROGRESS_TOKENS <= billed <= generated


def test_kill_9_of_the_engine_is_an_honest_503_and_heals_without_a_hand(region: LocalRegion) -> None:
    pod = region.pod("engine-small")
    (api_server, *_) = processes_of(pod, "vllm.entrypoints.openai.api_server")
    os.kill(api_server, signal.SIGKILL)
    status, body, headers = post(region, "/chat/completions", chat_body(max_tokens=1))
    assert (status, body["error"]["code"]) == (503, "engine_unavailable")
    assert int(headers["retry-after"]) > 0
    took_s = wait_until(
        lambda: post(region, "/chat/completions", chat_body(max_tokens=1))[0] == 200, 300, "the engine serves again"
    )
    print(f"engine back after {took_s:.0f} s")


def flotilla_processes(state: str) -> list[str]:
    found = []
    for pid in (pid for pid in process_ids() if pid != os.getpid()):
        try:
            environment, command = Path(f"/proc/{pid}/environ").read_bytes(), command_line(pid)
        except OSError:
            continue
        if state.encode() in environment and "pytest" not in command:
            found.append(command)
    return found


def quiet_bill(region: LocalRegion) -> dict[str, int]:
    """The bill once nothing is on its way to the ledger any more: it stays the same for longer than shipping takes."""
    last: list[dict[str, int]] = []

    def is_quiet() -> bool:
        last.append(region.usage())
        time.sleep(5)
        return last[-1] == region.usage()

    wait_until(is_quiet, 60, "the bill is settled")
    return last[-1]


def test_down_leaves_no_process_and_no_port_and_the_ledger_survives(region: LocalRegion) -> None:
    before = quiet_bill(region)
    port = int(region.home.base_url.rsplit(":", 1)[1].split("/")[0])
    region.run("down")
    assert flotilla_processes(str(region.state)) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    down = region.run("usage", check=False)
    assert down.returncode == 2
    assert "flotilla up" in down.stderr
    region.up()
    assert region.usage() == before


def streams(region: LocalRegion, num: int) -> Iterator[threading.Thread]:
    for number in range(num):
        yield threading.Thread(
            target=lambda number=number: client(region).chat.completions.create(
                model="small", messages=ask(f"Story {number}"), max_tokens=40
            )
        )


def test_down_in_the_middle_of_requests_bills_every_one_of_them(region: LocalRegion) -> None:
    before = quiet_bill(region)
    threads = list(streams(region, 4))
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    region.run("down")
    for thread in threads:
        thread.join(60)
    region.up()
    assert region.usage()["requests"] == before["requests"] + 4
