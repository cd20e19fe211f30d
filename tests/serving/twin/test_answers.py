"""A twin as its clients see it."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.serving.twin.conftest import Asker, Start

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
async def client(twin: Asker) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{twin.base}/v1", api_key="none", max_retries=0)


async def test_a_stream_and_a_document_say_the_same(client: openai.AsyncOpenAI) -> None:
    document = await client.chat.completions.create(model="small", messages=QUESTION, max_tokens=20, temperature=0)
    stream = await client.chat.completions.create(
        model="small", messages=QUESTION, max_tokens=20, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == document.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) == 1 + 20 + 1  # the role, the tokens, the totals
    assert chunks[-1].usage.completion_tokens == document.usage.completion_tokens == 20
    assert chunks[-2].choices[0].finish_reason == document.choices[0].finish_reason == "length"


async def test_running_counts_rise_by_one(twin: Asker) -> None:
    events = await twin.stream(max_tokens=6)
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 4, 5, 6, 6]
    assert {event["usage"]["prompt_tokens"] for event in events} == {events[-1]["usage"]["prompt_tokens"]}


async def test_several_choices_stream_side_by_side(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="small", messages=QUESTION, max_tokens=5, n=2, seed=1, stream=True, stream_options={"include_usage": True}
    )
    texts, usage = {0: "", 1: ""}, None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert len(set(texts.values())) == 2
    assert usage is not None and usage.completion_tokens == 10


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_stop_string_ends_the_answer_before_it(twin: Asker, is_streamed: bool) -> None:
    whole = (await twin.complete("the people", 12))["choices"][0]["text"]
    stop = whole.split()[4][1:] + " " + whole.split()[5][:2]  # begins and ends inside words
    expected = whole[: whole.index(stop)]
    if is_streamed:
        events = await twin.stream("the people", 12, stop=[stop])
        text, last = "".join(event["choices"][0]["text"] for event in events[:-1]), events[-2]["choices"][0]
        assert all(stop[:-1] not in event["choices"][0]["text"] for event in events[:-1])
    else:
        last = (await twin.complete("the people", 12, stop=stop))["choices"][0]
        text = last["text"]
    assert (text, last["finish_reason"], last["stop_reason"]) == (expected, "stop", stop)
    assert twin.records[-1].generated_tokens == 6


async def test_a_list_of_prompts_has_a_choice_each_and_one_bill(twin: Asker) -> None:
    alone = [(await twin.complete(prompt))["choices"][0]["text"] for prompt in ("one", "two")]
    both = await twin.complete(["one", "two"])  # type: ignore[list-item]
    assert [choice["text"] for choice in both["choices"]] == alone
    assert both["usage"]["completion_tokens"] == 16


async def test_a_message_begun_by_the_caller_goes_on(twin: Asker) -> None:
    _, whole = await twin.post("/v1/chat/completions", model="small", messages=QUESTION, max_tokens=10, temperature=0)
    text = whole["choices"][0]["message"]["content"]
    begun = " ".join(text.split(" ")[:5])
    _, rest = await twin.post(
        "/v1/chat/completions",
        model="small",
        messages=[*QUESTION, {"role": "assistant", "content": begun}],
        continue_final_message=True,
        add_generation_prompt=False,
        max_tokens=6,
        temperature=0,
    )
    assert begun + rest["choices"][0]["message"]["content"] == text


async def test_tokens_are_told_as_they_are_counted(twin: Asker) -> None:
    _, told = await twin.post("/tokenize", model="small", messages=QUESTION)
    _, answer = await twin.post("/v1/chat/completions", model="small", messages=QUESTION, max_tokens=1)
    assert told["count"] == len(told["tokens"]) == answer["usage"]["prompt_tokens"]
    _, text = await twin.post("/tokenize", prompt="of the people", return_token_strs=True)
    assert text["token_strs"][-2:] == ["Ġthe", "Ġpeople"]
    assert (await twin.post("/detokenize", tokens=text["tokens"]))[1] == {"prompt": "of the people"}


async def test_pipelined_requests_are_answered_in_their_order(twin: Asker) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", twin.twin.port)
    body = b'{"model":"small","prompt":"one","max_tokens":3,"stream":true}'
    ask = b"POST /v1/completions HTTP/1.1\r\nhost: twin\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    writer.write(ask % (len(body), body) + b"GET /version HTTP/1.1\r\nhost: twin\r\nconnection: close\r\n\r\n")
    answers = (await reader.read()).decode()
    assert answers.index("[DONE]") < answers.index('{"version"')
    writer.close()


async def test_a_long_prompt_is_counted_like_a_short_one(start: Start) -> None:
    """It is read in a thread, which must change nothing."""
    roomy = await start(limits={"max_model_len": 32_768})
    answer = await roomy.complete("word" + " people" * 10_000, 1)
    assert answer["usage"]["prompt_tokens"] == 10_000 + len("word")
