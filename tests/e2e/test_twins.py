"""A region of twins, brought up by the command line: every class answers, and the bill is what the twins know to be true."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any, get_args
from urllib.request import urlopen

import openai
import pytest
from e2e_support import LocalRegion, wait_until

from serving.settings import ModelClass

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PORT_OFFSET = 21_000
BILL_TIMEOUT_S = 30


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegion]:
    state = tmp_path_factory.mktemp("twins") / "local"
    region = LocalRegion(state, {**os.environ, "FLOTILLA_STATE": str(state)})
    try:
        region.run("up", "--engine", "twin", "--port-offset", str(PORT_OFFSET))
        yield region
    finally:
        region.run("down", "--purge", check=False)
        shutil.rmtree(state, ignore_errors=True)


def records(region: LocalRegion, model_class: str) -> list[dict[str, Any]]:
    """What the class's twin knows of the requests that came through the gateway; canaries ask with a length of eight."""
    with urlopen(f"http://{region.pod(f'engine-{model_class}')['address']}:8000/twin/requests", timeout=10) as answer:
        found: list[dict[str, Any]] = json.loads(answer.read())
    return [record for record in found if record["endpoint"] == "/v1/chat/completions"]


def test_every_class_answers_and_pays_for_what_its_twin_generated(twins: LocalRegion) -> None:
    api = openai.OpenAI(base_url=twins.home.base_url, api_key=twins.target.api_key, max_retries=0)
    for model_class in get_args(ModelClass):
        question: Any = [{"role": "user", "content": f"What do you know of {model_class} models?"}]
        answer = api.chat.completions.create(model=model_class, messages=question, max_tokens=20, temperature=0)
        assert answer.choices[0].message.content
        stream = api.chat.completions.create(model=model_class, messages=question, max_tokens=400, temperature=0, stream=True)
        for number, _ in enumerate(stream):
            if number == 5:
                stream.close()  # left halfway: what had arrived is billed
                break
    wait_until(lambda: twins.usage()["requests"] == 6, BILL_TIMEOUT_S, "six requests in the ledger")
    found = [record for model_class in get_args(ModelClass) for record in records(twins, model_class)]
    assert [record["outcome"] for record in found] == ["length", "aborted"] * 3
    bill = twins.usage()
    generated = sum(record["generated_tokens"] for record in found)
    assert 0 <= generated - bill["output_tokens"] <= 3 * 2, "each of the three that were left lies within two engine steps"
    assert bill["uncached_input_tokens"] + bill["cached_input_tokens"] == sum(record["prompt_tokens"] for record in found)


def test_all_three_classes_answer_to_auto_each_for_its_own_reason(twins: LocalRegion) -> None:
    api = openai.OpenAI(base_url=twins.home.base_url, api_key=twins.target.api_key, max_retries=0)
    tool: Any = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    asked: dict[str, dict[str, Any]] = {
        "small short_and_simple": {},
        "medium tools": {"tools": [tool]},
        "medium declared_reasoning": {"extra_headers": {"x-flotilla-needs": "reasoning"}},
        "large declared_coding": {"metadata": {"flotilla_needs": "coding"}},
    }
    for expected, fields in asked.items():
        model_class, reason = expected.split()
        num_before = len(records(twins, model_class))
        question: Any = [{"role": "user", "content": "What is the capital of France?"}]
        answer = api.chat.completions.with_raw_response.create(model="auto", messages=question, max_tokens=8, **fields)
        assert (answer.headers["x-flotilla-model"], answer.parse().model) == (model_class, model_class)
        assert answer.headers["x-flotilla-model-reason"].startswith(f"{reason}; prompt_tokens=")
        assert len(records(twins, model_class)) == num_before + 1
