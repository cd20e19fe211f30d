"""What the load balancer and the health checks of DNS ask."""

from __future__ import annotations

from gateway_support import Gateway


async def test_health_needs_no_key_and_tells_why_no_traffic_should_come(gateway: Gateway) -> None:
    for reasons, status in (([], 200), (["draining"], 503), ([], 200)):
        gateway.unready[:] = reasons
        async with gateway.http.get(f"{gateway.base_url}/health") as answer:
            assert answer.status == status
            assert await answer.json() == {"healthy": not reasons, "reasons": reasons}
