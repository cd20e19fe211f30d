"""The twin held against the real vLLM on a CPU, field by field: whatever a client can see of one, it sees of the other.

Both serve the same tokenizer and are asked the same. Values differ where a model speaks (texts, counts of an answer, times, ids);
what is compared is everything else: statuses, headers, each event's keys in their order and the kinds of their values, errors to
the letter, prompt counts, cached tokens, block hashes in KV events, metric names and labels.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from serving.gateway import resume, validate
from serving.gateway.prompts import prompt_counter
from serving.gateway.resume import Transcript
from serving.kv_events import BlockStored, EventBatch
from serving.models.conversions import converted, engine_python
from serving.twin.vocabulary import TEMPLATE, own_files
from tests.serving.twin.conftest import free_port

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
HOST = "127.0.0.1"
VLLM_PORT, TWIN_PORT, *EVENT_PORTS = (free_port() for _ in range(6))
VLLM_REPLAY, TWIN_REPLAY = EVENT_PORTS[1], EVENT_PORTS[3]
BLOCK = 128
"""vLLM's block size on CPUs."""
WINDOW = 2048
SHARED = ["--served-model-name", "small", "--max-model-len", str(WINDOW), "--max-num-seqs", "8", "--enable-lora"]
SHARED += ["--max-loras", "2", "--max-lora-rank", "8", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
CHAT_BODY = {"model": "small", "messages": QUESTION, "max_tokens": 5, "temperature": 0, "ignore_eos": True}
PLAIN_BODY = {"model": "small", "prompt": "The capital of France is", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
COUNTED = {"include_usage": True, "continuous_usage_stats": True}
LONG = "word " * 300
GOES_ON = {"prompt": [504, 3575, 282, 4649, 314, 260], "cache_salt": "s", "seed": 7, "return_token_ids": True}
"""What the gateway asks an engine to go on with."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def events(self) -> list[Any]:
        """The events of a stream as JSON; `[DONE]` as it is."""
        found = [event.removeprefix("data: ") for event in self.text.split("\n\n") if event]
        return [event if event == "[DONE]" else json.loads(event) for event in found]


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    connection = HTTPConnection(HOST, port, timeout=120)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    connection.request(method, path, data, {"content-type": "application/json", **headers} if data is not None else headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, text)


def started(command: list[str], port: int, log: Path, env: dict[str, str], timeout_s: float) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env, start_new_session=True)
    began = time.monotonic()
    while True:
        try:
            if ask(port, "GET", "/health").status == 200:
                return process
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() - began > timeout_s:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{command[2]} does not serve: {log.read_text()[-3000:]}")
        time.sleep(0.2)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a LoRA adapter of rank 8 for the model, of zeros."""
    folder = tmp_path_factory.mktemp("adapter")
    make = """
import sys, torch
from safetensors.torch import save_file
layers = [f"base_model.model.model.layers.{layer}.self_attn.q_proj" for layer in range(30)]
tensors = {f"{layer}.lora_A.weight": torch.zeros(8, 576) for layer in layers}
tensors |= {f"{layer}.lora_B.weight": torch.zeros(576, 8) for layer in layers}
save_file(tensors, sys.argv[1])
"""
    subprocess.run([engine_python(), "-c", make, folder / "adapter_model.safetensors"], check=True, capture_output=True)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "x", "task_type": "CAUSAL_LM"}))
    return str(folder)


def with_tools_template(files: Path, out: Path) -> Path:
    """The model with a chat template that shows tools and their calls, which its own does not."""
    out.mkdir()
    for file in files.iterdir():
        (out / file.name).symlink_to(file)
    (out / TEMPLATE).unlink()
    (out / TEMPLATE).write_bytes(own_files()[TEMPLATE])
    return out


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Ports of a vLLM and of a twin of the same model."""
    folder = tmp_path_factory.mktemp("both")
    model = str(with_tools_template(converted("smollm2", lambda _: None) / "files", folder / "model"))

    def events(port: int, replay: int) -> str:
        endpoints = {"endpoint": f"tcp://*:{port}", "replay_endpoint": f"tcp://*:{replay}"}
        return json.dumps({"enable_kv_cache_events": True, "publisher": "zmq", **endpoints})

    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TORCHDYNAMO_DISABLE": "1"}
    env = {**os.environ, **quiet, "VLLM_HOST_IP": HOST, "GLOO_SOCKET_IFNAME": "lo", "VLLM_CPU_KVCACHE_SPACE": "1"}
    vllm = [str(engine_python()), "-m", "vllm.entrypoints.openai.api_server", "--model", model, *SHARED, "--enforce-eager"]
    vllm += ["--host", HOST, "--port", str(VLLM_PORT), "--enable-prompt-tokens-details", "--disable-fastapi-docs"]
    vllm += ["--dtype", "bfloat16", "--kv-events-config", events(*EVENT_PORTS[:2])]
    twin = [sys.executable, "-m", "serving.twin", "--model", model, *SHARED, "--host", HOST, "--port", str(TWIN_PORT)]
    twin += ["--block-size", str(BLOCK), "--speed", "0", "--kv-events-config", events(*EVENT_PORTS[2:])]
    lora = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    processes = [started(twin, TWIN_PORT, folder / "twin.log", {**os.environ}, 30)]
    try:
        processes.append(started(vllm, VLLM_PORT, folder / "vllm.log", {**env, **lora}, 500))
        yield VLLM_PORT, TWIN_PORT
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


FREE = {"id", "created", "content", "text", "root", "token_ids", "system_fingerprint", "stop_reason", "token_strs"}
"""Fields whose values are a model's, a clock's or chance; their kinds are compared."""
HEADERS_APART = {"date", "content-length"}


def shape(value: Any, key: str = "") -> Any:
    """`value` with its keys in order, and the kind of each value that is free."""
    if isinstance(value, dict):
        return [(name, shape(item, name)) for name, item in value.items()]
    if key in FREE and value is not None:
        return type(value).__name__
    if isinstance(value, list):
        return [shape(item) for item in value]
    return value


STREAMS: list[tuple[str, str, dict[str, Any]]] = [
    ("a chat", CHAT, {**CHAT_BODY}),
    ("a chat with totals", CHAT, {**CHAT_BODY, "stream_options": {"include_usage": True}}),
    ("a chat with running counts", CHAT, {**CHAT_BODY, "stream_options": COUNTED}),
    ("a chat with token ids", CHAT, {**CHAT_BODY, "return_token_ids": True, "stream_options": COUNTED}),
    ("plain", PLAIN, {**PLAIN_BODY}),
    ("plain with totals", PLAIN, {**PLAIN_BODY, "stream_options": {"include_usage": True}}),
    ("plain with running counts", PLAIN, {**PLAIN_BODY, "stream_options": COUNTED}),
    ("plain with token ids", PLAIN, {**PLAIN_BODY, "return_token_ids": True}),
    ("plain of token ids", PLAIN, {**PLAIN_BODY, "prompt": [504, 3575, 282, 4649, 314], "stream_options": COUNTED}),
    ("an answer that goes on", PLAIN, {**PLAIN_BODY, **GOES_ON, "stream_options": COUNTED}),
    ("plain of one token", PLAIN, {**PLAIN_BODY, "max_tokens": 1}),
]


@pytest.mark.parametrize(("path", "body"), [stream[1:] for stream in STREAMS], ids=[stream[0] for stream in STREAMS])
def test_streams_are_alike(both: tuple[int, int], path: str, body: dict[str, Any]) -> None:
    real, twin = (ask(port, "POST", path, {**body, "stream": True}) for port in both)
    assert twin.status == real.status
    assert {name: twin.headers.get(name) for name in real.headers.keys() - HEADERS_APART} == {
        name: value for name, value in real.headers.items() if name not in HEADERS_APART
    }
    assert shape(twin.events) == shape(real.events)


@pytest.mark.parametrize(("path", "body"), [stream[1:] for stream in STREAMS], ids=[stream[0] for stream in STREAMS])
def test_documents_are_alike(both: tuple[int, int], path: str, body: dict[str, Any]) -> None:
    real, twin = (
        ask(port, "POST", path, {key: value for key, value in body.items() if key != "stream_options"}) for port in both
    )
    assert twin.headers.keys() == real.headers.keys()
    assert shape(json.loads(twin.text)) == shape(json.loads(real.text))


def test_several_choices_are_alike_whatever_their_order(both: tuple[int, int]) -> None:
    """The events of two choices interleave as the engine makes them."""

    def by_choice(answer: Answer) -> list[list[Any]]:
        events = answer.events
        return [[shape(event) for event in events if event != "[DONE]" and event["choices"] and event["choices"][0]["index"] == i]
                for i in range(2)]  # fmt: skip

    body = {**CHAT_BODY, "temperature": 0.7, "seed": 1, "n": 2, "stream": True, "stream_options": COUNTED}
    real, twin = (ask(port, "POST", CHAT, body) for port in both)
    assert by_choice(twin) == by_choice(real)
    assert shape(twin.events[-2:]) == shape(real.events[-2:])


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_stop_string_is_told_alike(both: tuple[int, int], is_streamed: bool) -> None:
    endings = []
    for port in both:
        text = json.loads(ask(port, "POST", PLAIN, {**PLAIN_BODY, "max_tokens": 8}).text)["choices"][0]["text"]
        stop = text.strip()[4:7]
        body = {**PLAIN_BODY, "max_tokens": 8, "stop": [stop], "stream": is_streamed}
        answer = ask(port, "POST", PLAIN, body)
        choice = answer.events[-2]["choices"][0] if is_streamed else json.loads(answer.text)["choices"][0]
        assert choice["stop_reason"] == stop
        endings.append(shape(choice))
    assert endings[0] == endings[1]


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "unit": {"enum": ["c", "f"]},
        "days": {"type": "integer", "maximum": 9},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "é", "parameters": SCHEMA, "strict": True}}
WAIT = {"type": "function", "function": {"name": "wait"}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALLED = [
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "wait", "arguments": ""}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "done"},
]
FORM = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}
NONSENSE = {"name": "w", "schema": {"type": "nonsense"}}
TOOLS_BODY = {"model": "small", "messages": QUESTION, "max_tokens": 120, "temperature": 0, "tools": [WEATHER]}
FORMS: list[tuple[str, str, dict[str, Any]]] = [
    ("a named tool", CHAT, {**TOOLS_BODY, "tool_choice": NAMED}),
    ("a required tool", CHAT, {**TOOLS_BODY, "tool_choice": "required", "parallel_tool_calls": False}),
    ("a call cut short", CHAT, {**TOOLS_BODY, "tool_choice": NAMED, "max_tokens": 3}),
    ("no tool", CHAT, {**TOOLS_BODY, "tool_choice": "none", "max_tokens": 3, "ignore_eos": True}),
    ("no tool behind a call", CHAT, {**TOOLS_BODY, "messages": QUESTION + CALLED, "tool_choice": "none", "max_tokens": 1}),
    ("a schema", CHAT, {"model": "small", "messages": QUESTION, "max_tokens": 120, "temperature": 0, "response_format": FORM}),
    ("a schema, plain", PLAIN, {**PLAIN_BODY, "max_tokens": 120, "ignore_eos": False, "response_format": FORM}),
    ("log probabilities", CHAT, {**CHAT_BODY, "logprobs": True}),
    ("the likeliest", CHAT, {**CHAT_BODY, "logprobs": True, "top_logprobs": 2}),
    ("log probabilities, plain", PLAIN, {**PLAIN_BODY, "logprobs": 0}),
    ("the likeliest, plain", PLAIN, {**PLAIN_BODY, "logprobs": 2}),
    ("log probabilities of a call", CHAT, {**TOOLS_BODY, "tool_choice": NAMED, "logprobs": True, "max_tokens": 4}),
]  # fmt: skip


def outline(value: Any, key: str = "") -> Any:
    """Keys in their order and kinds of values, but for why it ended; of a list its different kinds of items."""
    if key == "finish_reason":
        return value
    if isinstance(value, dict):
        is_by_token = key == "top_logprobs"
        return (
            sorted({str(outline(item)) for item in value.values()})
            if is_by_token
            else [(n, outline(v, n)) for n, v in value.items()]
        )
    if isinstance(value, list):
        return list(dict.fromkeys(str(outline(item, key)) for item in value))
    return type(value).__name__


@pytest.mark.parametrize(("path", "body"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_answers_of_a_form_are_told_alike(both: tuple[int, int], path: str, body: dict[str, Any]) -> None:
    """What a model and a twin write differs in length; each kind of event comes from both, and in the same order at first."""
    real, twin = (ask(port, "POST", path, {**body, "stream": True, "stream_options": COUNTED}) for port in both)
    assert outline(twin.events) == outline(real.events)
    real, twin = (ask(port, "POST", path, body) for port in both)
    assert outline(json.loads(twin.text)) == outline(json.loads(real.text))
    assert json.loads(twin.text)["usage"]["prompt_tokens"] == json.loads(real.text)["usage"]["prompt_tokens"]


STORIES = ("Tell me about the sea.", "Why is the sky blue?", "Count from one to twenty in words.")


@pytest.mark.parametrize("has_stop", [False, True], ids=["to its length", "to a stop string that begins before the break"])
def test_a_stream_that_broke_goes_on_from_its_token_ids(both: tuple[int, int], has_stop: bool) -> None:
    """As the gateway does it. Whether a real greedy answer is the same then is measured and told: an engine's arithmetic is not
    the same for one token after another as for a prompt of many. The twin's is."""
    folder = converted("smollm2", lambda _: None) / "files"
    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")]
    template = files[2].read_bytes() if files[2].is_file() else None
    counter = prompt_counter(files[0].read_bytes(), files[1].read_bytes(), template)
    for port, engine in zip(both, ("vLLM", "the twin"), strict=True):
        identical = []
        for story in STORIES:
            chat = {"model": "small", "messages": [{"role": "user", "content": story}], "max_tokens": 24, "temperature": 0}
            with_ids = {"stream": True, "stream_options": COUNTED, "return_token_ids": True, "cache_salt": "s"}
            whole = events_of(ask(port, "POST", CHAT, {**chat, **with_ids}))
            if has_stop:
                seam = len(text_of(whole[:9]))
                chat["stop"] = [text_of(whole)[seam - 2 : seam + 4]]
                whole = events_of(ask(port, "POST", CHAT, {**chat, **with_ids}))
            request = validate.parse("chat.completions", json.dumps({**chat, "stream": True}).encode(), max_depth=9)
            transcript = Transcript(request, model="small", max_tokens=24, cache_salt="s", counter=counter)
            shown = [piece for event in whole[:9] for piece in transcript.record(event)]
            assert transcript.can_go_on(), "its ids spell what it sent"
            rest = events_of(ask(port, "POST", resume.PATH, transcript.request()))
            shown += [piece for event in rest for piece in transcript.go_on(event)]
            begun, ended = json.loads(shown[0][6:]), json.loads(shown[-2][6:])
            assert shown[-1] == b"data: [DONE]"
            assert ended["id"] == begun["id"]
            assert ended["usage"]["prompt_tokens"] == begun["usage"]["prompt_tokens"]
            assert ended["usage"]["completion_tokens"] == len(transcript.ids) <= 24
            identical.append(text_of(shown) == text_of(whole))
        print(f"{engine}: {sum(identical)} of {len(identical)} greedy answers go on identically")
        assert engine == "vLLM" or all(identical)


def events_of(answer: Answer) -> list[bytes]:
    return [event.encode() for event in answer.text.split("\n\n") if event]


def text_of(events: list[bytes]) -> str:
    choices = [json.loads(event[6:])["choices"] for event in events if event != b"data: [DONE]"]
    return "".join(choice[0]["delta"].get("content") or "" for choice in choices if choice)


REFUSED: list[tuple[str, str, Any]] = [
    ("an unknown model", CHAT, {**CHAT_BODY, "model": "nope"}),
    ("an unknown model, streamed", CHAT, {**CHAT_BODY, "model": "nope", "stream": True}),
    ("a negative temperature", CHAT, {**CHAT_BODY, "temperature": -1.0}),
    ("a prompt over the window", CHAT, {**CHAT_BODY, "messages": [{"role": "user", "content": "hello " * 2500}]}),
    ("the same, streamed", CHAT, {**CHAT_BODY, "messages": [{"role": "user", "content": "hello " * 2500}], "stream": True}),
    ("token ids over the window", PLAIN, {**PLAIN_BODY, "prompt": [504] * 2500}),
    ("a prompt that fills the window", PLAIN, {**PLAIN_BODY, "prompt": [504] * WINDOW}),
    ("an answer over the window", CHAT, {**CHAT_BODY, "max_tokens": 5000}),
    ("no answer at all", CHAT, {**CHAT_BODY, "max_tokens": 0}),
    ("an unknown token", PLAIN, {**PLAIN_BODY, "prompt": [99_999_999]}),
    ("an empty prompt", PLAIN, {**PLAIN_BODY, "prompt": ""}),
    ("no choice", CHAT, {**CHAT_BODY, "n": 0}),
    ("greedy choices", CHAT, {**CHAT_BODY, "n": 2}),
    ("an empty salt", CHAT, {**CHAT_BODY, "cache_salt": ""}),
    ("stream options without a stream", CHAT, {**CHAT_BODY, "stream_options": {"include_usage": True}}),
    ("no tools", CHAT, {**CHAT_BODY, "tools": []}),
    ("a choice of no tools", CHAT, {**CHAT_BODY, "tool_choice": "required"}),
    ("a tool that is not there", CHAT, {**CHAT_BODY, "tools": [WAIT], "tool_choice": NAMED}),
    ("a schema of no type", CHAT, {**CHAT_BODY, "response_format": {"type": "json_schema", "json_schema": NONSENSE}}),
    ("too many log probabilities", CHAT, {**CHAT_BODY, "logprobs": True, "top_logprobs": 21}),
    ("an unknown path", "/nope", {}),
    ("embeddings of a model that generates", "/v1/embeddings", {"model": "small", "input": "x"}),
    ("an adapter that is not there", "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/nope"}),
    ("an adapter that is not loaded", "/v1/unload_lora_adapter", {"lora_name": "zz"}),
]


@pytest.mark.parametrize(("path", "body"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refusals_are_the_same_to_the_letter(both: tuple[int, int], path: str, body: dict[str, Any]) -> None:
    real, twin = (ask(port, "POST", path, body) for port in both)
    assert (twin.status, json.loads(twin.text)) == (real.status, json.loads(real.text))


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, b"{nope"), (CHAT, b'{"model": "small"}'), (CHAT, b'{"messages": [], "max_tokens": "many"}')]
)
def test_bodies_of_the_wrong_form_are_refused_in_the_same_frame(both: tuple[int, int], path: str, body: bytes) -> None:
    """The message within is pydantic's, and differs."""
    real, twin = (ask(port, "POST", path, body) for port in both)
    errors = [json.loads(answer.text)["error"] for answer in (real, twin)]
    assert twin.status == real.status == 400
    assert [(error["type"], error["code"], error["message"].split("\n")[0]) for error in errors] == [
        ("Bad Request", 400, "1 validation error:")
    ] * 2


def test_a_method_that_is_not_there_is_refused_alike(both: tuple[int, int]) -> None:
    real, twin = (ask(port, "GET", CHAT) for port in both)
    assert (twin.status, twin.text, twin.headers["allow"]) == (real.status, real.text, real.headers["allow"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"model": "small", "prompt": "Hello world", "return_token_strs": True}),
        ("/tokenize", {"model": "small", "messages": QUESTION}),
        ("/tokenize", {"model": "small", "messages": QUESTION, "tools": [WEATHER, WAIT]}),
        ("/tokenize", {"model": "small", "messages": QUESTION + CALLED, "tools": [WEATHER]}),
        ("/tokenize", {"model": "small", "prompt": "größe 東京 " * 20}),
        ("/detokenize", {"model": "small", "tokens": [19556, 905]}),
    ],
)
def test_tokens_are_the_same(both: tuple[int, int], path: str, body: dict[str, Any]) -> None:
    real, twin = (ask(port, "POST", path, body) for port in both)
    assert json.loads(twin.text) == json.loads(real.text)


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/load", "/v1/models"])
def test_what_it_says_of_itself_is_alike(both: tuple[int, int], path: str) -> None:
    real, twin = (ask(port, "GET", path) for port in both)
    assert twin.headers.keys() == real.headers.keys()
    assert shape(json.loads(twin.text or "{}")) == shape(json.loads(real.text or "{}"))


def test_adapters_come_and_go_alike(both: tuple[int, int], adapter: str) -> None:
    def life(port: int) -> list[Any]:
        name = {"lora_name": "acme", "lora_path": adapter}
        told = [ask(port, "POST", "/v1/load_lora_adapter", name) for _ in range(2)]
        said = [(answer.status, answer.text) for answer in told]
        said.append(shape(json.loads(ask(port, "GET", "/v1/models").text)))
        said.append(shape(json.loads(ask(port, "POST", CHAT, {**CHAT_BODY, "model": "acme"}).text)))
        removed = ask(port, "POST", "/v1/unload_lora_adapter", {"lora_name": "acme"})
        return [*said, (removed.status, removed.text)]

    real, twin = (life(port) for port in both)
    assert twin == real


def test_the_same_prompts_find_the_same_tokens_and_leave_the_same_blocks(both: tuple[int, int]) -> None:
    """One prompt twice, its beginning with another end, with a salt; then the events of both, block hash by block hash."""
    prompts: list[dict[str, Any]] = [
        {},
        {},
        {"prompt": LONG[: 5 * 200] + "and so on " * 30},
        {"cache_salt": "s"},
        {"cache_salt": "s"},
    ]
    found = []
    for port in both:
        answers = [ask(port, "POST", PLAIN, {**PLAIN_BODY, "prompt": LONG, "max_tokens": 1, **prompt}) for prompt in prompts]
        usages = [json.loads(answer.text)["usage"] for answer in answers]
        found.append([(usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) for usage in usages])
    assert found[0] == found[1]
    assert [cached for _, cached in found[0]] == [0, 2 * BLOCK, BLOCK, 0, 2 * BLOCK]
    real, twin = (replayed(port) for port in (VLLM_REPLAY, TWIN_REPLAY))
    for events in (real, twin):
        for event in events:
            event["token_ids"] = len(event["token_ids"])  # their hashes say which
    assert twin == real
    assert [event["parent_block_hash"] is not None for event in twin[-3:]] == [False, True, False]


def replayed(port: int) -> list[dict[str, Any]]:
    """Every event that a replay of all gives, but for where its cache lies."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(f"tcp://{HOST}:{port}")
        socket.send_multipart((b"", (0).to_bytes(8, "big")))
        events: list[dict[str, Any]] = []
        while True:
            assert socket.poll(5000), "the replay ends with a marker"
            frames = socket.recv_multipart()
            if frames[2] == (-1).to_bytes(8, "big", signed=True):
                return events
            batch = msgspec.msgpack.decode(frames[3], type=EventBatch)
            events += [msgspec.to_builtins(event) for event in batch.events if isinstance(event, BlockStored)]


NOT_A_TWINS = re.compile(r"vllm:estimated_|vllm:tool_call_parser_|vllm:\w+_created")
"""What depends on the machine's arithmetic, how often a parser ran (a twin has none), and the times at which counters began."""


def samples(text: str) -> dict[str, set[str]]:
    """Label sets of each of vLLM's own series, without the values of those that tell of the engine's configuration."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line.startswith("vllm:") and not NOT_A_TWINS.match(line):
            name, _, labels = line.rpartition(" ")[0].partition("{")
            found.setdefault(name, set()).add(re.sub(r'(?<=lora_adapters=)"[^"]*"', '"…"', labels))
    return found


def test_metrics_have_the_same_names_labels_and_buckets(both: tuple[int, int]) -> None:
    for port in both:
        ask(port, "POST", PLAIN, PLAIN_BODY)
    real, twin = (ask(port, "GET", "/metrics") for port in both)
    assert twin.headers["content-type"] == real.headers["content-type"]
    found, expected = samples(twin.text), samples(real.text)
    config = ("vllm:cache_config_info",)
    assert {name: labels for name, labels in found.items() if name not in config} == {
        name: labels for name, labels in expected.items() if name not in config
    }
    kinds = [dict(re.findall(r"^# TYPE (vllm:\S+) (\S+)$", answer.text, re.MULTILINE)) for answer in (real, twin)]
    assert kinds[1] == {name: kind for name, kind in kinds[0].items() if not NOT_A_TWINS.match(name)}
