"""What a gateway says of its region, every few seconds, in the `failover` table: who must leave another region reads it.

The table replicates, so what a lost region last said is known to the survivors. A report that cannot be written is not made up
for: silence is what tells that a region is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from policies.failover.items import Report
from policies.failover.reports import REPORT_PERIOD_S
from serving.control_table import ControlTable
from serving.gateway.releases import ReleaseBook
from serving.gateway.route import Pool
from serving.settings import ServedModel

log = structlog.get_logger()

LOOK_S = 0.5
"""A raised floor is reported that soon: a failover waits for it."""

InFlight = Callable[[], Mapping[tuple[str, str], int]]
"""Requests of this gateway, by class and band."""


class Reporter:
    """Makes and writes the reports of one gateway."""

    def __init__(
        self,
        table: ControlTable,
        *,
        region: str,
        gateway: str,
        models: Sequence[ServedModel],
        pools: Mapping[str, Pool],
        releases: ReleaseBook,
        in_flight: InFlight,
        floors: Callable[[], Mapping[str, int]],
    ) -> None:
        self._table = table
        self._region, self._gateway = region, gateway
        self._models, self._pools, self._releases = models, pools, releases
        self._in_flight, self._floors = in_flight, floors

    def report(self, now_s: float) -> Report:
        """What is true now."""
        return Report(self._region, self._gateway, now_s, {model.model_class: self._class(model) for model in self._models})

    async def run(self) -> None:
        """Report every `REPORT_PERIOD_S`, and when a floor has changed, until cancelled."""
        next_s, floors = 0.0, dict(self._floors())
        while True:
            if time.monotonic() >= next_s or self._floors() != floors:
                next_s, floors = time.monotonic() + REPORT_PERIOD_S, dict(self._floors())
                try:
                    await asyncio.to_thread(self._table.put, self.report(time.time()))
                except (BotoCoreError, ClientError) as error:
                    log.warning("region_not_reported", error=str(error))
            await asyncio.sleep(LOOK_S)

    def _class(self, model: ServedModel) -> dict[str, Any]:
        name = model.model_class
        release = self._releases.get(name)
        num_ready = sum(engine.endpoint.is_ready for engine in self._pools[name].engines)
        limits = model.scaling.limits if model.scaling is not None else None
        return {
            "num_ready": num_ready,
            "max_engines": limits.maximum if limits is not None else num_ready,
            "places_per_engine": model.max_in_flight_per_engine,
            "min_engines": max(limits.floor if limits is not None else 0, self._floors().get(name, 0)),
            "release_ids": [release.release_id] if release is not None else [],
            "in_flight": {band: count for (its, band), count in self._in_flight().items() if its == name and count},
        }
