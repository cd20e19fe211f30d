"""`/v1/usage` shows a tenant its own usage, to the token, and nobody else's."""

from __future__ import annotations

import time
from typing import Any

import pytest
from gateway_support import Gateway

from serving.gateway.tenants import Tenant


async def usage(gateway: Gateway, query: str = "", key: str | None = None) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key or gateway.key}"}
    async with gateway.http.get(f"{gateway.base_url}/v1/usage{query}", headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_tenant_sees_what_it_used_and_no_other_tenant(gateway: Gateway) -> None:
    other = gateway.keys.add(Tenant("other"))
    for key in (gateway.key, gateway.key, other):
        await gateway.openai(key).completions.create(model="small", prompt="Hello")
    status, own = await usage(gateway, "?group_by=hour&group_by=model")
    closed = [close for close in gateway.journal.closed if close.open.tenant == "acme"]
    assert status == 200
    assert own["total"]["requests"] == len(closed) == 2
    assert own["total"]["output_tokens"] == sum(close.output_tokens for close in closed)
    assert own["total"]["cost_pico_usd"] == sum(close.cost_pico_usd for close in closed)
    (row,) = own["data"]
    assert row["model"] == "small"
    assert row["hour"] == time.strftime("%Y-%m-%dT%H", time.gmtime(closed[0].open.opened_at_ms / 1000))
    assert not {"tenant", "key_id", "day"} & set(row)
    _, others = await usage(gateway, key=other)
    assert others["total"]["requests"] == 1


@pytest.mark.parametrize("query", ["?tenant=other", "?group_by=key&tenant=other&tenant_id=other"])
async def test_no_parameter_names_another_tenant(gateway: Gateway, query: str) -> None:
    await gateway.openai(gateway.keys.add(Tenant("other"))).completions.create(model="small", prompt="Hello")
    status, own = await usage(gateway, query)
    assert (status, own["data"], own["total"]["requests"]) == (200, [], 0)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("?group_by=tenant", "group_by.0"),
        ("?start_time=soon", "start_time"),
        ("?start_time=10&end_time=10", "start_time"),
        ("?start_time=0&end_time=8035201", "start_time"),
        ("?end_time=999999999999999999999", "end_time"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_with_its_parameter(gateway: Gateway, query: str, param: str) -> None:
    status, answer = await usage(gateway, query)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "invalid_value", param)


async def test_without_a_key_nothing_is_shown(gateway: Gateway) -> None:
    status, answer = await usage(gateway, key="nonsense")
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
