"""What operators have said of the regions, read from this region's replica of the `failover` table.

`/controls/<region>` at a *surviving* region is how a region is taken out: Route 53's checkers ask there, inverted, so no control
plane takes part. Floors are how a survivor grows before the traffic comes: the leader's policy keeps them. Reads go on every
`POLL_S`; one that fails leaves what was said as it is (`policies/failover/controls.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from policies.failover.controls import Decision, Verdict, decide_evacuated, settle
from policies.failover.items import CONTROL, FLOOR, Control, Floor
from serving.control_table import ControlTable

log = structlog.get_logger()

POLL_S = 2.0
"""A fifth of the period of health checks, so that it is not what an evacuation waits for."""
NEVER_NAMED = Decision(Verdict.SERVING, "nobody has evacuated it")


class Controls:
    """The controls of every region, as a gateway of the region `here` tells them, and the floors of its own."""

    def __init__(self, table: ControlTable, here: str) -> None:
        self._table = table
        self._here = here
        self._said: dict[str, Decision] = {}
        self._floors: dict[str, int] = {}

    def of(self, region: str) -> Decision:
        """What is said of `region`; of one that no control names, that it serves."""
        return self._said.get(region, NEVER_NAMED)

    def floors(self) -> Mapping[str, int]:
        """Engines that somebody wants here at least, by class; 0 where nobody does any more."""
        return self._floors

    async def refresh(self) -> None:
        """Read the table once. Never raises."""
        controls: dict[str, Control] | None = None
        try:
            read, floors = await asyncio.to_thread(self._read)
            controls = {control.region: control for control in read}
            self._floors = {floor.model_class: floor.min_engines for floor in floors if floor.region == self._here}
        except (BotoCoreError, ClientError, ValueError) as error:
            log.warning("controls_unreadable", error=str(error))
        for region in {*self._said, *(controls or ())}:
            before, decision = self.of(region), decide_evacuated(controls, region, self._here)
            verdict = settle(before.verdict, decision)
            if verdict is not before.verdict:
                log.warning("region_control_changed", region=region, verdict=verdict.value, reason=decision.reason)
            self._said[region] = before if decision.verdict is Verdict.UNSURE else decision

    async def run(self) -> None:
        """Read it again and again, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(POLL_S)

    def _read(self) -> tuple[list[Control], list[Floor]]:
        return self._table.read(Control, CONTROL), self._table.read(Floor, FLOOR)
