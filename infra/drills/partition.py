"""`flotilla drill partition`: nothing passes between two regions within AWS, and both go on serving and writing.

Cut are each region's calls to the other's AWS and the replication of tables and buckets. Clients reach both, as their load goes
through the edge. Meanwhile, from both sides: a tenant asks for more than its limit; the registry's alias is written; the same
idempotency keys are used; and two operators, who do not know of each other, each fail the other's region over. Then all is
healed, both failovers are taken back, and every bill, both ledgers and all shared state are compared. `partition_figures` judges.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from botocore.exceptions import BotoCoreError, ClientError

from infra.drills import failover_runs
from infra.drills.bills import held
from infra.drills.failover_runs import Ran
from infra.drills.judge import Verdict
from infra.drills.live import LiveView
from infra.drills.load import Asked, Load
from infra.drills.session import Session, on_uvloop
from infra.drills.streams import Clients, Seen, chat
from infra.drills.two_regions import REGIONS, TwoRegions, wait
from infra.embedded import faults
from infra.naming import CONTROL_PATH
from policies.failover.items import REPORT, SHIPPED
from serving.gateway import admin_client
from serving.metering.rows import LedgerRow
from serving.models import registry
from serving.target import aws_client

HOME, FAR = REGIONS
BEFORE_S, AFTER_S, SETTLE_LIMIT_S = 5.0, 5.0, 30.0
LIMITED, LIMIT_PER_MIN = "limited", 60
ASK_EVERY_S = 0.25
"""In each region: four times the limit."""
ALONE_SHARE = 0.6
"""Of the partition: then each side fails the other over. Limits are judged until then: who says that a region is out, says that
nobody else enforces its part."""
NUM_KEYS, NUM_ALIAS_WRITES = 10, 3
MODEL_CLASS = "small"
REQUEST_LIMIT_S = 30.0


@dataclass(frozen=True)
class Size:
    """How long the partition lasts, and how hard the load is."""

    seconds: float = 300.0
    per_s: float = 30.0
    seed: int = 1


@dataclass
class Keyed:
    """One idempotency key, used in both regions at once, and in the far one again after healing."""

    home: Seen
    far: Seen
    later: Seen | None = None


@dataclass
class Story:
    """What happened. Times are on the monotonic clock."""

    per_s: float = 0.0
    cut_s: float = 0.0
    healed_s: float = 0.0
    ended_s: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    """Of the load through the edge."""
    probes: dict[str, Counter[int]] = field(default_factory=lambda: {region: Counter() for region in REGIONS})
    """By region asked, answers to the tenant with a limit by status."""
    probed_s: float = 0.0
    keyed: list[Keyed] = field(default_factory=list)
    alias_before: int = 0
    alias_writes: dict[str, Counter[str]] = field(default_factory=lambda: {region: Counter() for region in REGIONS})
    """By region from which it was tried: `done` or `refused`."""
    aliases: dict[str, registry.Alias] = field(default_factory=dict)
    """After healing, by region."""
    new_key_status: int = 0
    """What the far region answers to a key that the home region made during the partition, after healing."""
    runs: dict[str, Ran] = field(default_factory=dict)
    """By region that was failed over."""
    out_during: list[str] = field(default_factory=list)
    """Regions that the other one's gateways told health checks to leave."""
    out_after: list[str] = field(default_factory=list)
    out_at_end: list[str] = field(default_factory=list)
    first_out: str = ""
    """The region whose evacuation was written first."""
    settled_after_s: float = 0.0
    differing_items: list[str] = field(default_factory=list)
    """Keys of the failover table whose items differ between the replicas after healing."""
    rows: dict[str, list[LedgerRow]] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    marks: list[tuple[float, str]] = field(default_factory=list)


class Partition:
    """One drill of two regions that are up."""

    def __init__(self, regions: TwoRegions, size: Size, view: LiveView) -> None:
        self._regions, self._size, self._session = regions, size, Session(regions, view)
        self.story = Story(per_s=size.per_s, marks=self._session.marks)
        self._clients = {region: Clients(regions.address(region)[1]) for region in REGIONS}
        self._probed: list[Asked] = []

    async def run(self) -> Story:
        """Everything, in order.

        Raises:
            UserError: a step of it could not be done.
        """
        story, target = self.story, self._regions.target
        await asyncio.to_thread(admin_client.create_tenant, target, LIMITED, requests_per_min=LIMIT_PER_MIN)
        limited = await asyncio.to_thread(admin_client.create_key, target, LIMITED)
        load = Load(*self._regions.edge, [target.api_key], self._size.seed)
        async with self._session.load(load):
            stop = asyncio.Event()
            asking = asyncio.create_task(load.run(story.per_s, stop))
            try:
                self._session.mark(f"load: {story.per_s:.0f} requests/s")
                await asyncio.sleep(BEFORE_S)
                new_key = await self._partitioned(limited)
                await self._healed(new_key)
                await asyncio.sleep(AFTER_S)
            finally:
                stop.set()
                await asking
                for clients in self._clients.values():
                    clients.close()
            story.ended_s, story.asked = time.monotonic(), load.asked
            # What is replayed was generated and billed under the request that was first.
            asked = [one for one in (*load.asked, *self._probed) if not one.seen.is_replayed]
            _, story.verdict = await held(self._regions, FAR, asked)
            story.rows = {region: await asyncio.to_thread(self._regions.rows, region) for region in REGIONS}
        return story

    async def _partitioned(self, limited: str) -> str:
        """Both sides by themselves; a key that the home region made meanwhile."""
        story, regions, lasts_s = self.story, self._regions, self._size.seconds
        story.alias_before = (await asyncio.to_thread(self._alias, HOME)).revision
        faults.partition(regions.state, FAR, [HOME])
        story.cut_s = time.monotonic()
        self._session.mark("nothing passes between the regions")
        ends_s = story.cut_s + lasts_s
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask_beyond_the_limit(limited, story.cut_s + ALONE_SHARE * lasts_s))
            tasks.create_task(self._use_keys_twice(lasts_s / (2 * NUM_KEYS)))
            tasks.create_task(self._write_alias(lasts_s / (2 * NUM_ALIAS_WRITES)))
            tasks.create_task(self._fail_both_over(ALONE_SHARE * lasts_s))
        await asyncio.sleep(max(0.0, ends_s - time.monotonic()))
        new_key = await asyncio.to_thread(admin_client.create_key, regions.target, LIMITED, name="made meanwhile")
        story.out_during = await asyncio.to_thread(self._said_out)
        return new_key

    async def _healed(self, new_key: str) -> None:
        story, regions, session = self.story, self._regions, self._session
        regions.heal()
        story.healed_s = time.monotonic()
        session.mark("healed")
        evacuations = {region: _value(item, "at_s") for region, item in self._controls(HOME).items()}
        story.first_out = min(evacuations, key=lambda region: (evacuations[region], region), default="")
        story.settled_after_s = await asyncio.to_thread(
            wait, lambda: self._said_out() == [story.first_out], SETTLE_LIMIT_S, "one region alone is out, by both sides' word"
        )
        story.out_after = await asyncio.to_thread(self._said_out)
        story.aliases = {region: await asyncio.to_thread(self._alias, region) for region in REGIONS}
        story.differing_items = await asyncio.to_thread(self._differing_items)
        for number, keyed in enumerate(story.keyed):
            keyed.later = await self._ask(FAR, regions.target.api_key, _keyed_request(number))
        await asyncio.sleep(2 * 60.0 / LIMIT_PER_MIN)  # the limit lets one more in
        story.new_key_status = (await self._ask(FAR, new_key)).status
        # First the evacuation that has no effect: at no moment is nobody in.
        for region in sorted(story.runs, key=lambda region: region == story.first_out):
            session.mark(f"failback {region}")
            await session.flotilla("failback", region)
        story.out_at_end = await asyncio.to_thread(self._said_out)

    async def _ask_beyond_the_limit(self, key: str, ends_s: float) -> None:
        """More than the limit in each region, until `ends_s`."""
        began_s = time.monotonic()

        async def ask_in(region: str) -> None:
            async with asyncio.TaskGroup() as asked:
                while time.monotonic() < ends_s:
                    asked.create_task(self._probe(region, key))
                    await asyncio.sleep(ASK_EVERY_S)

        await asyncio.gather(*(ask_in(region) for region in REGIONS))
        self.story.probed_s = time.monotonic() - began_s

    async def _probe(self, region: str, key: str) -> None:
        self.story.probes[region][(await self._ask(region, key)).status] += 1

    async def _use_keys_twice(self, every_s: float) -> None:
        for number in range(NUM_KEYS):
            await asyncio.sleep(every_s)
            key, wire = self._regions.target.api_key, _keyed_request(number)
            home, far = await asyncio.gather(self._ask(HOME, key, wire), self._ask(FAR, key, wire))
            self.story.keyed.append(Keyed(home, far))

    async def _write_alias(self, every_s: float) -> None:
        """From both sides, always in the home region: that is where an alias is written."""
        for _ in range(NUM_ALIAS_WRITES):
            await asyncio.sleep(every_s)
            for region in (FAR, HOME):
                self.story.alias_writes[region][await asyncio.to_thread(self._set_alias, region)] += 1

    def _set_alias(self, region: str) -> str:
        table = self._regions.target.regions[HOME].tables["registry"]
        client: Any = aws_client("dynamodb", HOME, self._regions.estate.region(region).aws_url)
        try:
            seen = registry.resolve(client, table, MODEL_CLASS)
            now_ms = int(time.time() * 1000)
            registry.set_alias(client, table, MODEL_CLASS, seen.releases, expected_revision=seen.revision, now_ms=now_ms)
        except (BotoCoreError, ClientError):
            return "refused"
        return "done"

    async def _fail_both_over(self, after_s: float) -> None:
        """Two operators, one on each side, each of whom believes that the other's region is lost."""
        await asyncio.sleep(after_s)
        self._session.mark("each side fails the other over")

        async def fail_over(lost: str, seat: str) -> None:
            arguments = ("run", lost, "--from", seat, "--reason", "drill")
            self.story.runs[lost] = await failover_runs.run(
                self._regions, *arguments, on_line=lambda line: self._session.say(f"  {seat}: {line}")
            )

        await asyncio.gather(fail_over(HOME, FAR), fail_over(FAR, HOME))

    async def _ask(self, region: str, key: str, make: Callable[[str, str], bytes] | None = None) -> Seen:
        """What `region` itself answers; kept, to be held against its bill."""
        host, _ = self._regions.address(region)
        began_s, seen, why = time.monotonic(), Seen(), ""
        try:
            seen = await self._clients[region].ask(host, (make or _request)(host, key), limit_s=REQUEST_LIMIT_S)
        except OSError as error:  # TimeoutError included
            why = f"no answer: {error}"
        self._probed.append(Asked(began_s, time.monotonic(), seen, why=why))
        return seen

    def _alias(self, region: str) -> registry.Alias:
        table = self._regions.target.regions[region].tables["registry"]
        return registry.resolve(self._regions.client("dynamodb", region), table, MODEL_CLASS)

    def _said_out(self) -> list[str]:
        """Regions of which the other one's gateways say that they are evacuated."""
        return [region for region, other in zip(REGIONS, reversed(REGIONS), strict=True) if self._says_out(other, region)]

    def _says_out(self, asked: str, region: str) -> bool:
        try:
            url = f"{self._regions.estate.region(asked).url}{CONTROL_PATH}/{region}"
            with urlopen(url, timeout=5) as answer:  # noqa: S310 (ours)
                return int(answer.status) == 200
        except (HTTPError, URLError):
            return False

    def _controls(self, region: str) -> dict[str, dict[str, Any]]:
        """The region's evacuations, by region that they name."""
        found = self._items(region)
        return {sk: item for (pk, sk), item in found.items() if pk == "control" and item["is_evacuated"]["BOOL"]}

    def _differing_items(self) -> list[str]:
        home, far = (self._items(region) for region in REGIONS)
        keys = [key for key in home.keys() | far.keys() if key[0] not in (REPORT, SHIPPED)]  # those are written all the time
        return sorted(" ".join(key) for key in keys if home.get(key) != far.get(key))

    def _items(self, region: str) -> dict[tuple[str, str], dict[str, Any]]:
        client = self._regions.client("dynamodb", region)
        pages = client.get_paginator("scan").paginate(TableName=self._regions.estate.failover_table)
        return {(item["pk"]["S"], item["sk"]["S"]): item for page in pages for item in page["Items"]}


_numbers = itertools.count()


def _request(host: str, key: str) -> bytes:
    return chat(host, key, messages=[{"role": "user", "content": f"question {next(_numbers)}"}], max_tokens=16)


def _keyed_request(number: int) -> Callable[[str, str], bytes]:
    def make(host: str, key: str) -> bytes:
        messages = [{"role": "user", "content": f"asked twice, number {number}"}]
        return chat(host, key, idempotency_key=f"partition-{number}", messages=messages, max_tokens=16)

    return make


def _value(item: dict[str, Any], name: str) -> float:
    return float(item[name]["N"])


def drill(regions: TwoRegions, size: Size, view: LiveView) -> Story:
    """Runs the drill on regions that are up.

    Raises:
        UserError: a step of it could not be done.
    """
    return on_uvloop(lambda: Partition(regions, size, view).run())
