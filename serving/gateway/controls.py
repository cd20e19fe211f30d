"""What operators have said of the regions, read from this region's replica of the `failover` table and told to health checks.

`/controls/<region>` at a *surviving* region is how a region is taken out: Route 53's checkers ask there, inverted, so no control
plane takes part. Reads go on every `POLL_S`; one that fails leaves what was said as it is (`policies/failover/controls.py`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from boto3.dynamodb.types import TypeDeserializer
from botocore.exceptions import BotoCoreError, ClientError

from policies.failover.controls import Decision, Verdict, decide_evacuated, settle
from policies.failover.items import CONTROL, Control, unpack

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

log = structlog.get_logger()

POLL_S = 2.0
"""A fifth of the period of health checks, so that it is not what an evacuation waits for."""
NEVER_NAMED = Decision(Verdict.SERVING, "nobody has evacuated it")


class Controls:
    """The controls of every region, as a gateway of the region `here` tells them."""

    def __init__(self, client: DynamoDBClient, table: str, here: str) -> None:
        self._client = client
        self._table = table
        self._here = here
        self._said: dict[str, Decision] = {}
        self._unpack = TypeDeserializer().deserialize

    def of(self, region: str) -> Decision:
        """What is said of `region`; of one that no control names, that it serves."""
        return self._said.get(region, NEVER_NAMED)

    async def refresh(self) -> None:
        """Read the controls once. Never raises."""
        try:
            controls = await asyncio.to_thread(self._read)
        except (BotoCoreError, ClientError, ValueError) as error:
            log.warning("controls_unreadable", error=str(error))
            controls = None
        for region in {*self._said, *(controls or ())}:
            before, decision = self.of(region), decide_evacuated(controls, region, self._here)
            verdict = settle(before.verdict, decision)
            if verdict is not before.verdict:
                log.warning("region_control_changed", region=region, verdict=verdict.value, reason=decision.reason)
            self._said[region] = before if decision.verdict is Verdict.UNSURE else decision

    async def run(self) -> None:
        """Read them again and again, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(POLL_S)

    def _read(self) -> dict[str, Control]:
        found = self._client.query(
            TableName=self._table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": CONTROL}},
            ConsistentRead=True,
        )
        items = [{name: self._unpack(value) for name, value in item.items()} for item in found["Items"]]
        return {str(item["sk"]): unpack(Control, item) for item in items}
