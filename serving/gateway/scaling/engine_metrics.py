"""What a class's engines say of themselves: one look at every ready one, and their sums."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from serving import series
from serving.gateway.discovery import Endpoint

READ_TIMEOUT_S = 3.0
AT_ONCE = 16


@dataclass(frozen=True)
class EngineNumbers:
    """One engine."""

    running: float
    waiting: float
    kv_ratio: float
    tokens: float
    """Prompt and answer tokens since it started."""


@dataclass(frozen=True)
class FleetNumbers:
    """All that answered, of `ready` engines."""

    ready: int
    heard: int
    running: float
    waiting: float
    kv_ratio: float | None
    tokens_per_s: float | None
    """None at the first look, which has nothing to compare with."""


def parsed(text: str) -> EngineNumbers | None:
    """vLLM's numbers, summed over its ranks (KV memory: their mean); None where they are not there."""
    names = (series.VLLM_RUNNING, series.VLLM_WAITING, series.VLLM_KV_RATIO, *series.VLLM_TOKENS)
    values: dict[str, list[float]] = {name: [] for name in names}
    for line in text.splitlines():
        found = values.get(line.partition("{")[0])
        if found is not None:
            found.append(float(line.rpartition(" ")[2]))
    running, waiting, kv, *tokens = values.values()
    if not running or not waiting:
        return None
    return EngineNumbers(sum(running), sum(waiting), sum(kv) / len(kv) if kv else 0.0, sum(map(sum, tokens)))


class EngineMetrics:
    """Reads the engines of one class."""

    def __init__(self) -> None:
        timeout = aiohttp.ClientTimeout(total=READ_TIMEOUT_S)
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(limit=AT_ONCE, force_close=True), trust_env=False
        )
        self._before: dict[Endpoint, float] = {}
        self._before_s = 0.0

    async def read(self, engines: Sequence[Endpoint], now_s: float) -> FleetNumbers:
        """One look at each of `engines`. One that does not answer in time is not heard."""
        found = await asyncio.gather(*map(self._read_one, engines))
        heard = {endpoint: numbers for endpoint, numbers in zip(engines, found, strict=True) if numbers is not None}
        # A counter that fell is of an engine that started again.
        computed = [
            max(0.0, numbers.tokens - self._before[endpoint]) for endpoint, numbers in heard.items() if endpoint in self._before
        ]
        elapsed_s = now_s - self._before_s
        self._before, self._before_s = {endpoint: numbers.tokens for endpoint, numbers in heard.items()}, now_s
        return FleetNumbers(
            ready=len(engines),
            heard=len(heard),
            running=sum(numbers.running for numbers in heard.values()),
            waiting=sum(numbers.waiting for numbers in heard.values()),
            kv_ratio=sum(numbers.kv_ratio for numbers in heard.values()) / len(heard) if heard else None,
            tokens_per_s=sum(computed) / elapsed_s if computed and elapsed_s > 0 else None,
        )

    async def aclose(self) -> None:
        """Close its connections."""
        await self._session.close()

    async def _read_one(self, endpoint: Endpoint) -> EngineNumbers | None:
        try:
            async with self._session.get(f"http://{endpoint.authority}/metrics") as answer:
                return parsed(await answer.text()) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
