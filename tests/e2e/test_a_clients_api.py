"""What a developer asks through the `openai` client, on the real vLLM and on a twin: chats, tools, forms, long prompts.

Runs before the tests that hurt the region, and leaves with all of it billed.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from e2e_support import LocalRegion, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
BILL_TIMEOUT_S = 30
MODELS = ("small", "medium")
"""The real vLLM's and a twin's."""
ASK: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA, "strict": True}}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
SHARED_TOKENS = 1_800
BLOCK_TOKENS = 128
"""vLLM's on CPUs."""


@pytest.fixture(scope="module", autouse=True)
def all_is_billed(region: LocalRegion) -> Iterator[None]:
    """The ledger is complete before the tests after these look at it."""
    yield
    generated = region.counters()["generation"]

    def is_complete() -> bool:
        return region.usage()["output_tokens"] == generated

    wait_until(is_complete, BILL_TIMEOUT_S, "every token of the real engine in the ledger, tool calls included")


@pytest.fixture(scope="module")
def keys(region: LocalRegion) -> dict[str, str]:
    """A key for each model. The twin's tenant is its own, since later tests compare `demo`'s bill with the real engine."""
    region.run("tenants", "create", "twins")
    other = json.loads(region.run("keys", "create", "twins", "--json").stdout)["key"]
    return {"small": region.target.api_key, "medium": other}


@pytest.fixture
def client(region: LocalRegion, keys: dict[str, str], model: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=region.home.base_url, api_key=keys[model], timeout=120, max_retries=0)


@pytest.mark.parametrize("model", MODELS)
def test_sync_async_and_streamed_chats_give_the_same_answer(client: openai.OpenAI, model: str) -> None:
    asked: Any = {"model": model, "messages": ASK, "max_tokens": 8, "temperature": 0}
    plain = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)

    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0) as api:
            return await api.chat.completions.create(**asked)

    texts = [plain.choices[0].message.content, asyncio.run(ask()).choices[0].message.content]
    texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
    assert len(set(texts)) == 1
    assert texts[0]
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.total_tokens == plain.usage.total_tokens


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("choice", "finish"), [(NAMED, "stop"), ("required", "tool_calls")], ids=["named", "required"])
def test_a_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI, model: str, choice: Any, finish: str) -> None:
    asked: Any = {"model": model, "messages": ASK, "tools": [WEATHER], "tool_choice": choice, "max_tokens": 120, "temperature": 0}
    plain = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    for found in (plain, streamed):
        (call,) = found.message.tool_calls  # type: ignore[misc]
        arguments = json.loads(call.function.arguments)
        assert (call.function.name, set(arguments), found.finish_reason) == ("get_weather", {"city", "unit"}, finish)
        assert arguments["unit"] in ("celsius", "fahrenheit")
    result: Any = {"role": "tool", "tool_call_id": plain.message.tool_calls[0].id, "content": "sunny"}  # type: ignore[index]
    behind = client.chat.completions.create(
        model=model, messages=[*ASK, plain.message, result], tools=[WEATHER], max_tokens=4, temperature=0
    )
    assert behind.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("model", MODELS)
def test_forms_and_probabilities(client: openai.OpenAI, model: str) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
    asked: Any = {"model": model, "messages": ASK, "temperature": 0}
    formed = client.chat.completions.create(**asked, response_format=form, max_tokens=80).choices[0].message.content
    assert set(json.loads(formed or "")) == {"city", "unit"}
    likely = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, max_tokens=3).choices[0].logprobs
    assert [len(token.top_logprobs) for token in likely.content] == [2, 2, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize("model", ["medium"])
def test_several_choices_are_billed_for_the_tokens_of_all(client: openai.OpenAI, model: str) -> None:
    """Of the twin alone: a vLLM counts the prompt of each choice, which a later test would take for a wrong bill."""
    several = client.chat.completions.create(model=model, messages=ASK, n=2, seed=1, temperature=0.8, max_tokens=4)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.usage.completion_tokens == 8  # type: ignore[union-attr]


@pytest.mark.parametrize("model", MODELS)
def test_a_response_says_what_the_chat_says_and_its_prompt_is_counted_exactly(client: openai.OpenAI, model: str) -> None:
    chat = client.chat.completions.create(model=model, messages=ASK, max_tokens=6, temperature=0)
    asked: Any = {"model": model, "input": ASK[0]["content"]}
    events = list(client.responses.create(**asked, max_output_tokens=6, temperature=0, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")
    response = events[-1].response
    assert response.output_text == chat.choices[0].message.content
    counted = client.responses.input_tokens.count(**asked).input_tokens
    assert counted == response.usage.input_tokens == chat.usage.prompt_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_generates_has_no_embeddings_and_says_so(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=model, input="Hello")
    assert caught.value.code == "unsupported_endpoint"


def prompt_of(num_tokens: int, seed: int) -> list[int]:
    """Token ids that nobody has asked before; those of letters and words, in any vocabulary here."""
    chance = random.Random(seed)
    return [chance.randrange(300, 4_000) for _ in range(num_tokens)]


@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_that_fills_the_window_passes_and_one_token_more_does_not(client: openai.OpenAI, model: str) -> None:
    """8,192 tokens on the real vLLM, 32,768 on the twin: prompt and one token of an answer. It comes before shorter prompts: the
    gateway's patience is learnt from those, and attention makes a whole window slower than they let expect."""
    window = client.models.retrieve(model).max_model_len  # type: ignore[attr-defined]
    assert window == {"small": 8_192, "medium": 32_768}[model]
    answer = client.completions.create(model=model, prompt=prompt_of(window - 1, seed=4), max_tokens=1, temperature=0)
    assert answer.usage.total_tokens == window  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=prompt_of(window, seed=4), max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("model", ["small"])
def test_a_long_shared_prefix_is_found_again(client: openai.OpenAI, model: str) -> None:
    """How much sooner the first token comes then is for `make bench-engine`."""
    shared = prompt_of(SHARED_TOKENS, seed=1)
    usages = [
        client.completions.create(model=model, prompt=[*shared, *prompt_of(20, seed)], max_tokens=1, temperature=0).usage
        for seed in (2, 3)
    ]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages]  # type: ignore[union-attr]
    assert cached == [0, SHARED_TOKENS // BLOCK_TOKENS * BLOCK_TOKENS]
