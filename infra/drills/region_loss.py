"""`flotilla drill region-loss`: one of two regions loses power and its AWS under load, is left by the runbook, and comes back.

In order: what this machine bears, both regions through the edge and the survivor by itself; a load of 60 % of the lesser, since
one region must carry it; a tenant's key made just before; the loss; seconds in which health checks are alone; `flotilla failover
run` as a process of its own; the region's power and volumes back; `failback`; some seconds more; then every bill is held against
what clients and twins saw. Nothing asks a gateway for the truth.

Health checks and names here have their local periods. What AWS adds is on a simulated clock: periods that the program declares to
Route 53, the time to live of its records, and the bound of S3's replication time control. Such figures are named `simulated`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from infra.components.artifacts.replication import REPLICATION_TIME_MINUTES
from infra.drills import failover_runs
from infra.drills.bills import bills, held
from infra.drills.failover_runs import Kills, Ran
from infra.drills.figures import Part
from infra.drills.judge import Verdict
from infra.drills.live import LiveView
from infra.drills.load import Asked, Load
from infra.drills.session import Session, on_uvloop, served_ratio, since
from infra.drills.timeline import Mark
from infra.drills.two_regions import REGIONS, Holdings, TwoRegions, wait
from infra.embedded import edge
from infra.recovery.record import RunRecord
from policies.failover.rotation import CHECK_FAILURES, CHECK_PERIOD_S, CONTROL_FAILURES, RECORD_TTL_S
from serving.gateway import admin_client
from serving.metering.rows import LedgerRow

WORKERS, LEARN_S = 192, 8.0
LOAD_SHARE = 0.6
BEFORE_S, ALONE_S, AFTER_S = 25.0, 25.0, 10.0
GRACE_S = 10.0
"""By then health checks have taken the region out."""
MIN_SERVED, MAX_RUN_S, MAX_RTO_S, MAX_RPO_S = 0.999, 60.0, 600.0, 900.0
OPERATOR_S = 300.0
"""Assumed: from the loss until somebody has been paged, has read the runbook's short version and types the command."""
BACK_LIMIT_S = 90.0
POLL_TWINS_S = 1.0
TENANT = "late-tenant"
T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """How long and how hard. `per_s` None: `LOAD_SHARE` of what this machine bears."""

    seconds: float = 1.0
    """Times the usual lengths."""
    per_s: float | None = None
    seed: int = 1
    kills: bool = False


@dataclass
class Story:
    """What happened, for judgement and for the picture. Times are on the monotonic clock."""

    bears_per_s: float = 0.0
    survivor_bears_per_s: float = 0.0
    num_running_at_loss: int = 0
    per_s: float = 0.0
    lost_s: float = 0.0
    lost_at_s: float = 0.0
    """The same moment on the wall clock."""
    dead_after_s: float = 0.0
    failover_s: float = 0.0
    healed_s: float = 0.0
    before: Holdings | None = None
    after: Holdings | None = None
    failover: Ran | None = None
    failover_record: RunRecord | None = None
    failback: Ran | None = None
    back_after_s: float = 0.0
    unshipped: list[str] = field(default_factory=list)
    """Requests begun before the loss that engines were asked for and no survivor's ledger had after the takeover."""
    kills: Kills | None = None
    ends: list[dict[str, Any]] = field(default_factory=list)
    """What the survivor's table said after a failover without kills, and with them."""
    asked: list[Asked] = field(default_factory=list)
    rows: list[LedgerRow] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    marks: list[tuple[float, str]] = field(default_factory=list)


class RegionLoss:
    """One drill of two regions that are up."""

    def __init__(self, regions: TwoRegions, size: Size, view: LiveView) -> None:
        self._regions, self._size, self._session = regions, size, Session(regions, view)
        self._lost, self._survivor = REGIONS
        self._mark, self._say = self._session.mark, self._session.say
        self.story = Story(marks=self._session.marks)

    async def run(self) -> Story:
        """Everything, in order.

        Raises:
            UserError: a step of it could not be done.
        """
        story, size = self.story, self._size
        host, port = self._regions.edge
        target = self._regions.target
        await asyncio.to_thread(admin_client.ensure_tenant, target, TENANT)
        load = Load(host, port, [target.api_key], size.seed)
        async with self._session.load(load) as following:
            if size.per_s is None:
                await self._learn(load)
            story.per_s = size.per_s or LOAD_SHARE * min(story.bears_per_s, story.survivor_bears_per_s)
            stop = asyncio.Event()
            asking = asyncio.create_task(load.run(story.per_s, stop))
            try:
                await self._under_load(load)
                for task in (following, asking):
                    if task.done():
                        task.result()  # what was asked, or what twins told, is not all of it: no figure would be true
            finally:
                stop.set()
                await asking
            story.asked = load.asked
            story.rows, story.verdict = await held(self._regions, self._survivor, story.asked)
            self._say(f"{len(story.rows):,} rows in the ledger, {story.verdict.counts['lost']} requests without one")
        if size.kills:
            await self._with_kills()
        return story

    async def _learn(self, load: Load) -> None:
        story, lasts_s = self.story, LEARN_S * min(1.0, self._size.seconds)
        story.bears_per_s = await load.bears_per_s(WORKERS, lasts_s)
        self._say(f"both regions bear {story.bears_per_s:.0f} requests/s through the edge")
        alone = Load(*self._regions.address(self._survivor), load.keys, self._size.seed)
        try:
            story.survivor_bears_per_s = await alone.bears_per_s(WORKERS, lasts_s)
        finally:
            alone.close()
        self._say(f"{self._survivor} by itself bears {story.survivor_bears_per_s:.0f} requests/s")

    async def _under_load(self, load: Load) -> None:
        story, regions, seconds = self.story, self._regions, self._size.seconds
        self._mark(f"load: {story.per_s:.0f} requests/s")
        await asyncio.sleep(BEFORE_S * seconds)
        key = await asyncio.to_thread(admin_client.create_key, regions.target, TENANT, name="made just before the loss")
        story.before = await asyncio.to_thread(regions.holdings, self._lost, self._lost)
        load.keys = [*load.keys, key]
        story.lost_s, story.lost_at_s, story.num_running_at_loss = time.monotonic(), time.time(), load.num_running
        regions.lose(self._lost, self._survivor)
        self._mark(f"{self._lost} loses power and AWS")
        story.dead_after_s = await asyncio.to_thread(wait, lambda: not regions.has_pods(self._lost), 10.0, "its processes end")
        await asyncio.sleep(max(GRACE_S + 5.0, ALONE_S * seconds))
        story.failover_s = time.monotonic()
        self._mark("failover run")
        story.failover = await self._session.flotilla("run", self._lost, "--reason", "drill")
        self._mark("failover over")
        story.failover_record = await asyncio.to_thread(failover_runs.record_of, regions, self._lost)
        story.ends.append(await asyncio.to_thread(failover_runs.end_state, regions, self._lost, self._survivor))
        await asyncio.sleep(AFTER_S * seconds)
        story.after = await asyncio.to_thread(regions.holdings, self._survivor, self._lost)
        story.unshipped = self._unshipped(load.asked, story.after)
        story.healed_s = time.monotonic()
        await self._bring_back()
        await asyncio.sleep(AFTER_S * seconds)

    async def _bring_back(self) -> None:
        story, regions = self.story, self._regions
        regions.heal()
        self._mark("power and volumes are back")
        story.back_after_s = await asyncio.to_thread(
            wait, lambda: regions.is_serving(self._lost), BACK_LIMIT_S, "it starts again"
        )
        await asyncio.sleep(5.0)  # its gateways report every few seconds: failback refuses a region that has not
        self._mark("failback")
        story.failback = await self._session.flotilla("failback", self._lost)
        self._mark("failback over")

    async def _with_kills(self) -> None:
        """A second loss, whose failover is killed within every step and after it."""
        story, regions = self.story, self._regions
        regions.lose(self._lost, self._survivor)
        self._say(f"{self._lost} is lost again; now every step is killed")
        await asyncio.to_thread(wait, lambda: not regions.has_pods(self._lost), 10.0, "its processes end")
        await asyncio.sleep(GRACE_S)
        story.kills = await failover_runs.run_killed(regions, self._lost, self._say)
        story.ends.append(await asyncio.to_thread(failover_runs.end_state, regions, self._lost, self._survivor))

    def _unshipped(self, asked: Sequence[Asked], after: Holdings) -> list[str]:
        rows = {json.loads(row).get("request_id", "") for row in after.rows.values()}
        began = {one.seen.request_id for one in asked if one.seen.status == 200 and one.began_s < self.story.lost_s + GRACE_S}
        return sorted(began - rows - {""})


def drill(regions: TwoRegions, size: Size, view: LiveView) -> Story:
    """Runs the drill on regions that are up.

    Raises:
        UserError: a step of it could not be done.
    """
    return on_uvloop(lambda: RegionLoss(regions, size, view).run())


def judged(story: Story) -> list[Part]:
    """The figures, and whether each holds."""
    parts = [_requests(story), _runbook(story), _data(story), bills(story.rows, story.verdict), _simulated(story)]
    return [*parts, _kills(story)] if story.kills is not None else parts


def begun(story: Story) -> list[tuple[float, bool]]:
    """Of the judged load: when each request began, from the loss, and whether it was served."""
    first_s = story.marks[0][0]
    return [(one.began_s - story.lost_s, one.is_served) for one in story.asked if one.began_s >= first_s]


def marks(story: Story) -> list[Mark]:
    """What was done, from the loss."""
    return since(story.lost_s, story.marks)


def _requests(story: Story) -> Part:
    part, all_ = Part("requests"), begun(story)
    failover_at = story.failover_s - story.lost_s
    before = [one for one in all_ if one[0] < -5.0]
    within = [one for one in all_ if 0 <= one[0] < GRACE_S]
    alone = [one for one in all_ if GRACE_S <= one[0] < failover_at]
    later = [one for one in all_ if one[0] >= GRACE_S]
    part.show("both regions bear, requests/s through the edge", "bears_per_s", round(story.bears_per_s, 1))
    part.show("the survivor by itself bears, requests/s", "survivor_bears_per_s", round(story.survivor_bears_per_s, 1))
    part.show("asked, requests/s: 60 % of the lesser, if not told otherwise", "load_per_s", round(story.per_s, 1))
    part.show("in flight at the loss", "num_in_flight_at_loss", story.num_running_at_loss)
    part.show("begun in all", "num_requests", len(all_))
    part.show("served before the loss", "served_before_ratio", round(served_ratio(before), 5))
    part.show("served of those begun in the first 10 s", "served_within_10_s_ratio", round(served_ratio(within), 5))
    for second in range(int(GRACE_S)):
        some = [one for one in within if second <= one[0] < second + 1]
        part.show(f"  in second {second + 1}", f"served_in_second_{second + 1}_ratio", round(served_ratio(some), 3))
    served = served_ratio(alone)
    part.show(
        "served of those begun later, by health checks alone (≥ 99.9 %)",
        "served_alone_ratio",
        round(served, 5),
        served >= MIN_SERVED,
    )
    served = served_ratio(later)
    part.show(
        "served of all begun later, failback included (≥ 99.9 %)", "served_later_ratio", round(served, 5), served >= MIN_SERVED
    )
    until = time_until(all_, MIN_SERVED)
    part.show("until ≥ 99.9 % of new requests are served (≤ 10 s)", "until_served_s", until, until <= GRACE_S)
    broken = sum(not is_served for at_s, is_served in all_ if at_s < 0 and at_s > -35.0)
    part.show("broke off, begun before the loss", "num_broken_streams", broken)
    whys = Counter(one.why for one in story.asked if one.why and one.began_s >= story.lost_s + GRACE_S)
    part.show("why not, later than 10 s", "failures_later", dict(whys.most_common(5)))
    return part


def time_until(all_: Sequence[tuple[float, bool]], ratio: float) -> float:
    """Half seconds from the loss after which no fewer than `ratio` of the requests begun are served, to the end.

    >>> time_until([(0.1, False), (0.7, False), (1.2, True), (3.0, True)], 0.999)
    1.0
    """
    later = sorted((one for one in all_ if one[0] >= 0), reverse=True)
    num, num_served, found = 0, 0, 0.0
    for place, (at_s, is_served) in enumerate(later):
        num, num_served = num + 1, num_served + is_served
        is_last_of_half = place + 1 == len(later) or later[place + 1][0] // 0.5 != at_s // 0.5
        if is_last_of_half and num_served / num < ratio:
            found = max(found, at_s // 0.5 * 0.5 + 0.5)
    return found


def _runbook(story: Story) -> Part:
    part = Part("runbook")
    assert story.failover is not None and story.failback is not None and story.failover_record is not None
    part.show("every process of the region ended, s after", "processes_ended_s", round(story.dead_after_s, 1))
    took_s = story.failover.took_s
    part.show("flotilla failover run, s (≤ 60)", "failover_run_s", round(took_s, 1), took_s <= MAX_RUN_S)
    for step in story.failover_record.steps:
        part.show(f"  {step.name}", f"step_{step.name.replace('-', '_')}_s", round(step.took_s, 2))
    unseen = [step.name for step in story.failover_record.steps if step.state != "done"]
    part.show("steps that were not seen to hold", "unverified_steps", unseen, not unseen)
    part.show("region starts again, s", "region_back_s", round(story.back_after_s, 1))
    part.show("flotilla failover failback, s", "failback_s", round(story.failback.took_s, 1))
    return part


def _data(story: Story) -> Part:
    part = Part("what was acknowledged")
    assert story.before is not None and story.after is not None
    for kind, num in story.before.lost_in(story.after).items():
        had = len(getattr(story.before, kind))
        names = {"archived": "shipped segments", "rows": "rows of the ledger", "releases": "objects of releases"}
        part.show(f"lost of {had:,} {names.get(kind, kind)} (0)", f"num_lost_{kind}", num, num == 0 and had > 0)
    num = len(story.unshipped)
    part.show("answers that were on volumes only, until they came back", "num_unshipped_until_heal", num)
    record = story.failover_record
    told = record.step("take-over-usage").seen if record is not None else ""
    part.show("what the failover said of it", "unshipped_bound_told", told, "archived at" in told)
    newest = max((row.closed_at_ms for row in story.rows if f"{row.key.pk} {row.key.sk}" in story.before.rows), default=0) / 1e3
    part.show("  usage after the newest shipped row, s", "unshipped_bound_s", round(max(0.0, story.lost_at_s - newest), 1))
    present = {row.request_id for row in story.rows}
    missing = sum(request_id not in present for request_id in story.unshipped)
    part.show("of these not billed after the volumes came back: RPO (0)", "num_rpo_requests", missing, missing == 0)
    return part


def _simulated(story: Story) -> Part:
    part = Part("simulated clock")
    part.show("health check, s: Route 53's period × failures, declared", "simulated_check_s", CHECK_PERIOD_S * CHECK_FAILURES)
    part.show("time to live of names, s: declared", "simulated_ttl_s", RECORD_TTL_S)
    measured = time_until(begun(story), MIN_SERVED)
    beyond = max(0.0, measured - CHECK_FAILURES * edge.CHECK_PERIOD_S)
    rto = CHECK_PERIOD_S * CHECK_FAILURES + RECORD_TTL_S + beyond
    what = "RTO by health checks, s: simulated periods, and what was measured beyond the local ones (≤ 600)"
    part.show(what, "simulated_rto_health_checks_s", round(rto, 1), rto <= MAX_RTO_S)
    record = story.failover_record
    assert record is not None and story.failover is not None
    rto = OPERATOR_S + story.failover.took_s + CONTROL_FAILURES * CHECK_PERIOD_S + RECORD_TTL_S
    what = f"RTO by the runbook, s: {OPERATOR_S:.0f} until it is typed (assumed), its run (measured), periods (simulated) (≤ 600)"
    part.show(what, "simulated_rto_runbook_s", round(rto, 1), rto <= MAX_RTO_S)
    rpo = REPLICATION_TIME_MINUTES * 60.0
    what = "RPO of artifacts, s: S3's bound for replication time control, which the program declares (≤ 900)"
    part.show(what, "simulated_rpo_artifacts_s", rpo, rpo <= MAX_RPO_S)
    return part


def _kills(story: Story) -> Part:
    part, kills = Part("killed failovers"), story.kills
    assert kills is not None and story.failover_record is not None
    names = [step.name for step in story.failover_record.steps]
    part.show("SIGKILLs of `flotilla failover run`", "num_kills", kills.num_kills)
    missed = [name for name in names if not kills.within.get(name)]
    part.show("steps within which none landed", "steps_not_killed_within", missed, not missed)
    missed = [name for name in names[:-1] if not kills.after.get(name)]
    part.show("steps after which none landed", "steps_not_killed_after", missed, not missed)
    plain, killed = story.ends
    different = {key: [plain.get(key), its] for key, its in killed.items() if its != plain.get(key)}
    part.show("what ends otherwise than without kills (nothing)", "ends_differently", different, not different)
    return part
