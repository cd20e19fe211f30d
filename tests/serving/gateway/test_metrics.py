"""The gateway's series are those of `serving.series`: every one of them, with their labels, and no other."""

from __future__ import annotations

from typing import Any

import pytest
from gateway_support import Behaviour, Gateway, chat_body
from prometheus_client.parser import text_string_to_metric_families

from serving import series
from serving.gateway.metrics import Metrics
from serving.metering.journal import Commit

OURS = (
    series.REQUESTS, series.ERRORS, series.TTFT, series.TPOT, series.REQUEST_SECONDS, series.TOKENS, series.IN_FLIGHT,
    series.ENGINES_READY, series.RETRIES, series.RESUMES, series.USAGE_DISPUTED, series.HEDGES, series.LIMITER_FALLBACKS,
    series.JOURNAL_COMMIT, series.JOURNAL_HEALTHY, series.OPEN_EVENTS, series.FAST_TOKENIZER,
    series.TTFT_ERROR, series.QUEUE_WAITING, series.QUEUE_WAIT, series.QUEUE_REFUSALS,
)  # fmt: skip


async def test_every_series_is_produced_as_it_is_declared(gateway: Gateway) -> None:
    gateway.engine.behaviour = Behaviour(delay_s=0.001)
    async with gateway.post(body=chat_body(stream=True)) as answer:
        await answer.read()
    async with gateway.post(body=chat_body(model="made-up-by-a-client")) as answer:
        assert answer.status == 404
    gateway.metrics.commit(Commit(0.001, 3, 2))
    families = {family.name: family for family in text_string_to_metric_families(gateway.metrics.render().decode())}
    assert {one.name.removesuffix("_total") for one in OURS} == set(families)
    for one in OURS:
        family = families[one.name.removesuffix("_total")]
        assert family.type == one.kind
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples if not sample.name.endswith("_created")}
        assert labels == {frozenset(one.labels)}, one.name
    assert "made-up" not in gateway.metrics.render().decode()


async def test_what_was_billed_is_what_is_counted(gateway: Gateway) -> None:
    for _ in range(2):
        async with gateway.post() as answer:
            await answer.read()
    (first, second) = gateway.journal.closed
    assert gateway.metric('flotilla_tokens_total{kind="output",model="small"}') == first.output_tokens + second.output_tokens
    assert gateway.metric('flotilla_tokens_total{kind="cached_input",model="small"}') == 6
    inputs = first.prompt_tokens + second.prompt_tokens - 6
    assert gateway.metric('flotilla_tokens_total{kind="input",model="small"}') == inputs
    assert gateway.metric('flotilla_requests_total{code="200",endpoint="chat.completions",model="small"}') == 2
    assert gateway.metric('flotilla_ttft_seconds_count{model="small"}') == 2


@pytest.mark.parametrize("quantile_s", [0.15, 0.175, 0.2, 0.225, 0.25])
def test_the_median_can_be_read_around_200_ms(quantile_s: float) -> None:
    metrics = Metrics(["small"])
    metrics.ttft.labels("small").observe(quantile_s)
    assert f'le="{quantile_s}"' in metrics.render().decode()


async def test_the_log_says_nothing_of_what_was_said_and_no_key(gateway: Gateway, capsys: Any) -> None:
    gateway.engine.behaviour = Behaviour(tokens=["SECRET-ANSWER"])
    body = chat_body(messages=[{"role": "user", "content": "SECRET-QUESTION"}], user="SECRET-USER")
    async with gateway.post(body=body) as answer:
        assert "SECRET-ANSWER" in await answer.text()
    logged = capsys.readouterr().out
    assert "request" in logged
    assert "SECRET" not in logged
    assert gateway.key not in logged
