"""A client's trace goes on to the engine, and nothing that only looks like one."""

from __future__ import annotations

import pytest
from gateway_support import Gateway

from serving.gateway.trace import NO_TRACE, trace_of

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def test_the_engine_gets_the_clients_trace_with_us_as_its_parent(gateway: Gateway) -> None:
    async with gateway.post(traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="vendor=1,other=2") as answer:
        assert answer.status == 200
    async with gateway.post() as answer:
        assert answer.status == 200
    traced, plain = (asked.headers for asked in gateway.engine.asked)
    version, trace, parent, flags = traced["traceparent"].split("-")
    assert (version, trace, flags, traced["tracestate"]) == ("00", TRACE, "01", "vendor=1,other=2")
    assert parent != PARENT
    assert "traceparent" not in plain


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01\r\nx: y",
    ],
)
def test_what_is_no_trace_is_dropped(given: str) -> None:
    assert trace_of({b"traceparent": given.encode(), b"tracestate": b"a=b"}) is NO_TRACE


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert trace_of({b"traceparent": f"01-{TRACE}-{PARENT}-01-more".encode()}).id == TRACE


@pytest.mark.parametrize("state", [b"x" * 513, b"a=\x00"])
def test_a_state_that_cannot_travel_is_dropped_alone(state: bytes) -> None:
    trace = trace_of({b"traceparent": f"00-{TRACE}-{PARENT}-01".encode(), b"tracestate": state})
    assert trace.id == TRACE
    assert b"tracestate" not in trace.lines
