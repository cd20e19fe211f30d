"""`/v1/embeddings` through the `openai` client: the engine's vectors as they are, billed for their input; or a clear no."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from gateway_support import WINDOW, Behaviour, Gateway

from serving.metering.events import CountSource, Outcome

INPUTS: list[tuple[str, Any, int]] = [
    # what is asked; so many vectors
    ("a text", "Hello", 1),
    ("texts", ["Hello", "you"], 2),
    ("lists of token ids", [[3, 4], [5]], 2),
]


@pytest.mark.parametrize(("asked", "num_vectors"), [row[1:] for row in INPUTS], ids=[row[0] for row in INPUTS])
async def test_vectors_pass_as_they_are_and_their_input_is_billed(gateway: Gateway, asked: Any, num_vectors: int) -> None:
    gateway.engine.behaviour = Behaviour(vectors=True)
    answer = await gateway.openai().embeddings.create(model="SmolLM2", input=asked, encoding_format="float", dimensions=2)
    assert [vector.embedding for vector in answer.data] == [[0.5, -0.25]] * num_vectors
    (upstream,) = gateway.engine.asked
    salt = upstream.body.pop("cache_salt")
    assert (upstream.body, len(salt)) == ({"model": "small", "input": asked, "encoding_format": "float", "dimensions": 2}, 64)
    (opened,), (closed,) = gateway.journal.opened, gateway.journal.closed
    assert (opened.endpoint, opened.prompt_tokens > 0) == ("embeddings", True)
    assert (closed.outcome, closed.source) == (Outcome.FINISHED, CountSource.ENGINE_FINAL)
    assert (closed.prompt_tokens, closed.output_tokens) == (answer.usage.prompt_tokens, 0)
    assert closed.cost_pico_usd == closed.prompt_tokens * 100


async def test_a_list_of_numbers_is_one_input(gateway: Gateway) -> None:
    gateway.engine.behaviour = Behaviour(vectors=True)
    await gateway.openai().embeddings.create(model="small", input=[3, 4, 5])
    assert gateway.journal.opened[0].prompt_tokens == 3


async def test_a_model_that_generates_says_that_it_has_none_and_its_engine_stays_in_rotation(gateway: Gateway) -> None:
    for _ in range(3):
        with pytest.raises(openai.BadRequestError) as caught:
            await gateway.openai().embeddings.create(model="small", input="Hello")
        assert (caught.value.code, caught.value.param) == ("unsupported_endpoint", "model")
    assert {closed.outcome for closed in gateway.journal.closed} == {Outcome.NOT_SERVED}
    assert (await gateway.openai().completions.create(model="small", prompt="x")).choices[0].text == " Paris."


async def test_half_a_document_is_asked_again_elsewhere_and_never_billed(make_gateway: Any) -> None:
    gateway = await make_gateway(num_engines=2)
    for engine in gateway.engines:
        engine.behaviour = Behaviour(vectors=True, cut_after=0)
    with pytest.raises(openai.InternalServerError) as caught:
        await gateway.openai().embeddings.create(model="small", input="Hello")
    assert caught.value.code == "engine_unavailable"
    assert [len(engine.asked) for engine in gateway.engines] == [1, 1]
    assert gateway.journal.closed[0].cost_pico_usd == 0


BAD: list[tuple[str, Any, str]] = [
    ("nothing", [], "invalid_value"),
    ("an empty text", "", "invalid_value"),
    ("a text over the window", "word " * 2000, "context_length_exceeded"),
    ("one of several over the window", [[1], [1] * (WINDOW + 1)], "context_length_exceeded"),
    ("an unknown token", [99_999], "invalid_value"),
    ("too many", ["x"] * 2049, "invalid_value"),
]


@pytest.mark.parametrize(("asked", "code"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_bad_input_is_refused_and_asks_no_engine(gateway: Gateway, asked: Any, code: str) -> None:
    async with gateway.post("/v1/embeddings", {"model": "small", "input": asked}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, code)
    assert gateway.num_asked == 0
