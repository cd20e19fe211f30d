"""What operators, or gateways themselves, keep out of service in one region: kept in the tenants' table, obeyed by every gateway.

    pk region#<region>  sk out#<how>#<kind>#<name>

    drain       a gateway or an engine gets no new requests; those that it has finish
    quarantine  an engine as well, and those that can leave it do: it is suspected, and left running to be looked at;
                a request is refused wherever it is sent, since engines die of it

Items are the region's own, so they are written to its own replica: no other region writes them, and a region can drain while the
home region is lost. Every gateway reads them each `POLL_S`; a read that fails leaves things as they are. A request that took two
engines down at one gateway is written by it, and so goes to no engine of the region from any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec
import structlog
from botocore.exceptions import BotoCoreError, ClientError

from serving.gateway.audited import UNKNOWN, AuditedTable, encode, is_conditional, now_ms
from serving.gateway.route import Pool

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

log = structlog.get_logger()

POLL_S = 2.0
REFUSE_AFTER_S = 45.0
"""A drained gateway is not ready at once, and refuses what still comes from then on: load balancer and cluster have forgotten it
by then, and a client that asks again reaches another."""
LEARNT_FOR_MS = 24 * 3600 * 1000
"""How long a request that gateways put in quarantine themselves stays there: whoever sends it may have mended engine or model."""

How = Literal["drain", "quarantine"]
Kind = Literal["gateway", "engine", "request"]
KINDS: dict[How, tuple[Kind, ...]] = {"drain": ("gateway", "engine"), "quarantine": ("engine", "request")}


class Exclusion(msgspec.Struct, frozen=True):
    """One thing that is out of service."""

    how: How
    kind: Kind
    name: str
    """A pod's name, or a request's fingerprint in hex."""
    by: str = UNKNOWN
    note: str = ""
    since_ms: int = 0
    until_ms: int | None = None
    """It is over by itself then; None: when somebody ends it."""

    def holds(self, at_ms: int) -> bool:
        """It is not over."""
        return self.until_ms is None or at_ms < self.until_ms


class NotExcluded(Exception):
    """There is nothing to end."""


class ExclusionTable:
    """The exclusions of one region, in its own replica of the table."""

    def __init__(self, client: DynamoDBClient, table: str, region: str) -> None:
        self._table = AuditedTable(client, table)
        self._region = region

    def list(self) -> list[Exclusion]:
        """Those that hold, by how, kind and name."""
        at_ms = now_ms()
        return [each for each in self._table.query(Exclusion, f"region#{self._region}", "out#") if each.holds(at_ms)]

    def put(self, exclusion: Exclusion) -> Exclusion:
        """Write it, over one of the same name."""
        made = msgspec.structs.replace(exclusion, since_ms=now_ms())
        put = {"Put": {"TableName": self._table.name, "Item": {**self._key(made.how, made.kind, made.name), **encode(made)}}}
        self._table.write(made.by, f"{made.how}_begun", self._subject(made.kind, made.name), made, put)
        return made

    def end(self, how: How, kind: Kind, name: str, *, by: str) -> None:
        """Delete it.

        Raises:
            NotExcluded: as it says.
        """
        gone = {
            "Delete": {
                "TableName": self._table.name,
                "Key": self._key(how, kind, name),
                "ConditionExpression": "attribute_exists(pk)",
            }
        }
        try:
            self._table.write(by, f"{how}_ended", self._subject(kind, name), "", gone)
        except ClientError as error:
            if is_conditional(error):
                raise NotExcluded(name) from error
            raise

    def _key(self, how: How, kind: Kind, name: str) -> dict[str, dict[str, str]]:
        return {"pk": {"S": f"region#{self._region}"}, "sk": {"S": f"out#{how}#{kind}#{name}"}}

    def _subject(self, kind: Kind, name: str) -> str:
        return f"{kind}/{self._region}/{name}"


class Exclusions:
    """Makes a gateway obey them."""

    def __init__(self, table: ExclusionTable, *, gateway: str, pools: Mapping[str, Pool]) -> None:
        self._table = table
        self._gateway = gateway
        self._pools = pools
        self._pod = gateway.rpartition("-")[0]
        """A pod's workers drain together."""
        self._drained: Exclusion | None = None
        self._requests: set[bytes] = set()

    @property
    def why_drained(self) -> str:
        """Why this gateway wants no traffic; empty where it does."""
        return f"drained by {self._drained.by}" if self._drained is not None else ""

    def refuses(self, at_ms: int) -> bool:
        """Whether new requests are refused by now."""
        return self._drained is not None and at_ms >= self._drained.since_ms + REFUSE_AFTER_S * 1e3

    async def refresh(self) -> None:
        """Tell what was learnt, read what holds, and obey it. Never raises."""
        try:
            found = await asyncio.to_thread(self._exchange, self._learnt())
        except (BotoCoreError, ClientError, msgspec.ValidationError) as error:
            log.warning("exclusions_unreadable", error=str(error))
            return
        self._obey(found)

    async def run(self) -> None:
        """Again and again, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.refresh()

    def _learnt(self) -> list[bytes]:
        """Requests that engines died of here, and that nobody was told of."""
        return [each for pool in self._pools.values() for each in pool.quarantine.learnt() if each not in self._requests]

    def _exchange(self, learnt: list[bytes]) -> list[Exclusion]:
        for fingerprint in learnt:
            note = "two engines broke off while they worked on it"
            until_ms = now_ms() + LEARNT_FOR_MS
            self._table.put(Exclusion("quarantine", "request", fingerprint.hex(), self._gateway, note, until_ms=until_ms))
        return self._table.list()

    def _obey(self, found: list[Exclusion]) -> None:
        drained = next((each for each in found if (each.how, each.kind, each.name) == ("drain", "gateway", self._pod)), None)
        if (drained is None) != (self._drained is None):
            log.warning("gateway_drained" if drained is not None else "gateway_serves_again", by=drained.by if drained else "")
        self._drained = drained
        engines = {each.name: each.how for each in sorted(found, key=lambda each: each.how) if each.kind == "engine"}
        requests = {bytes.fromhex(each.name) for each in found if each.kind == "request"}
        for pool in self._pools.values():
            pool.exclude(engines)
            pool.quarantine.told(requests)
            for fingerprint in self._requests - requests:
                pool.quarantine.answered(fingerprint)
        self._requests = requests
