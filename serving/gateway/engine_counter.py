"""Keeps what engines count: once in a while one gateway of the region looks at every engine's counters and archives them.

They are what bills are reconciled with (`serving/metering/engine_counts.py`). Whoever puts a minute's object first has done it
for all; gateways begin at random, so the others mostly see that it is there and ask nobody. A look that fails is a look less.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import aiohttp
import msgspec
import structlog
from botocore.exceptions import BotoCoreError, ClientError

from policies.billing.reconciliation import Look
from serving.gateway.discovery import Endpoint
from serving.gateway.route import Pool
from serving.metering.engine_counts import counts_key, parse_counters

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

EVERY_S = 300.0
SPREAD_S = 20.0
TIMEOUT_S = 3.0
AT_ONCE = 16

log = structlog.get_logger()


class EngineCounter:
    """Looks at a region's engines."""

    def __init__(self, s3: S3Client, bucket: str, region: str, pools: Mapping[str, Pool]) -> None:
        self._s3, self._bucket, self._region, self._pools = s3, bucket, region, pools

    async def run(self) -> None:
        """Look every `EVERY_S`, at the same times everywhere, until cancelled."""
        while True:
            slot_s = (time.time() // EVERY_S + 1) * EVERY_S
            await asyncio.sleep(slot_s - time.time() + random.uniform(0, SPREAD_S))  # noqa: S311 (spreads load)
            try:
                await self.look(int(slot_s * 1000))
            except (BotoCoreError, ClientError) as error:
                log.warning("engine_counts_not_kept", error=str(error))

    async def look(self, slot_ms: int) -> int:
        """Look for the slot, unless somebody has; how many engines were counted."""
        key = counts_key(self._region, slot_ms)
        if await asyncio.to_thread(self._is_there, key):
            return 0
        wanted = [(model, engine.endpoint) for model, pool in self._pools.items() for engine in pool.engines]
        timeout, connector = aiohttp.ClientTimeout(total=TIMEOUT_S), aiohttp.TCPConnector(limit=AT_ONCE, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False) as session:
            answers = await asyncio.gather(*(_counters(session, model, endpoint) for model, endpoint in wanted))
        looks = [look for look in answers if look is not None]
        if looks:
            await asyncio.to_thread(self._put, key, msgspec.json.encode(looks))
        return len(looks)

    def _is_there(self, key: str) -> bool:
        return bool(self._s3.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1).get("Contents"))

    def _put(self, key: str, data: bytes) -> None:
        try:
            self._s3.put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:  # another was first
                raise


async def _counters(session: aiohttp.ClientSession, model: str, endpoint: Endpoint) -> Look | None:
    try:
        async with session.get(f"http://{endpoint.authority}/metrics") as answer:
            text = await answer.text() if answer.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None
    return parse_counters(text, endpoint.name, model, time.time_ns() // 1_000_000)
