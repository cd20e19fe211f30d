"""What a partition must not do, judged: refuse clients, let a tenant past its limit, lose or double bills, leave two truths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from infra.drills.bills import bills
from infra.drills.figures import Part
from infra.drills.partition import FAR, HOME, LIMIT_PER_MIN, NUM_ALIAS_WRITES, NUM_KEYS, Story
from infra.drills.session import served_ratio, since
from infra.drills.timeline import Mark
from infra.drills.two_regions import REGIONS
from serving.metering.rows import LedgerRow

MIN_SERVED = 0.999


def judged(story: Story) -> list[Part]:
    """The figures, and whether each holds."""
    return [
        _requests(story),
        _limits(story),
        _rollout(story),
        _failover(story),
        _ledgers(story),
        bills(story.rows[FAR], story.verdict),
    ]


def begun(story: Story) -> list[tuple[float, bool]]:
    """Of the load: when each request began, from the cut, and whether it was served."""
    return [(one.began_s - story.cut_s, one.is_served) for one in story.asked]


def marks(story: Story) -> list[Mark]:
    """What was done, from the cut."""
    return since(story.cut_s, story.marks)


def _requests(story: Story) -> Part:
    part, all_ = Part("requests"), begun(story)
    lasted_s = story.healed_s - story.cut_s
    part.show("partition, s", "partition_s", round(lasted_s, 1))
    part.show("asked, requests/s", "load_per_s", round(story.per_s, 1))
    part.show("begun in all, through the edge", "num_requests", len(all_))
    for what, name, some in (
        (
            "served of those begun in the partition (≥ 99.9 %)",
            "served_partitioned_ratio",
            [it for it in all_ if 0 <= it[0] < lasted_s],
        ),
        ("served of those begun later (≥ 99.9 %)", "served_healed_ratio", [it for it in all_ if it[0] >= lasted_s]),
    ):
        ratio = served_ratio(some)
        part.show(what, name, round(ratio, 5), ratio >= MIN_SERVED)
    whys = Counter(one.why for one in story.asked if one.why and one.began_s >= story.cut_s)
    part.show("why not", "failures", dict(whys.most_common(5)))
    return part


def _limits(story: Story) -> Part:
    part = Part("limits")
    per_region = {region: its[200] for region, its in story.probes.items()}
    minutes = story.probed_s / 60.0
    # A rate of N a minute lets N in at once, and then N a minute.
    most = round(LIMIT_PER_MIN * (1 + minutes))
    asked, admitted = sum(sum(its.values()) for its in story.probes.values()), sum(per_region.values())
    part.show(f"asked by a tenant with {LIMIT_PER_MIN} requests a minute, in both regions", "num_limited_asked", asked)
    for region, count in per_region.items():
        name = f"num_admitted_{'home' if region == HOME else 'far'}"
        part.show(f"admitted in {region}", name, count, 0 < count <= most)
    part.show(f"admitted in both: the limit lets in at most {most}", "num_admitted", admitted, admitted <= most)
    return part


def _rollout(story: Story) -> Part:
    part = Part("rollout")
    home, far = story.alias_writes[HOME], story.alias_writes[FAR]
    done, refused = home["done"], far["refused"]
    part.show(f"alias written by the home region (of {NUM_ALIAS_WRITES})", "num_home_writes", done, done == NUM_ALIAS_WRITES)
    part.show(
        f"the same refused to the far region (of {NUM_ALIAS_WRITES})", "num_far_refused", refused, refused == NUM_ALIAS_WRITES
    )
    gained = story.aliases[HOME].revision - story.alias_before
    part.show("revisions of the alias since", "num_revisions", gained, gained == done + far["done"])
    agree = story.aliases[HOME] == story.aliases[FAR]
    part.show("both regions name the same releases after healing", "aliases_agree", agree, agree)
    status = story.new_key_status
    part.show("the far region to a key that the home region made meanwhile", "new_key_status", status, status == 200)
    return part


def _failover(story: Story) -> Part:
    part = Part("failover")
    codes = {region: ran.exit_code for region, ran in story.runs.items()}
    part.show("`failover run` of each region by the other, exit codes", "failover_exit_codes", codes, set(codes.values()) == {0})
    part.show("out by the other's word, in the partition: health checks then send to all", "out_partitioned", story.out_during)
    part.show(
        "out after healing: the one that was evacuated first", "out_healed", story.out_after, story.out_after == [story.first_out]
    )
    part.show("until both sides say so, s after healing", "settled_after_s", round(story.settled_after_s, 1))
    differing = story.differing_items
    part.show("items that differ between the replicas after healing (none)", "differing_items", differing, not differing)
    part.show("out after both failbacks (none)", "out_at_end", story.out_at_end, not story.out_at_end)
    return part


def _ledgers(story: Story) -> Part:
    part = Part("ledgers")
    served = {region: _closed_within(story, story.rows[FAR], region) for region in REGIONS}
    for region, count in served.items():
        part.show(f"rows of {region}", f"num_rows_{'home' if region == HOME else 'far'}", count, count > 0)
    home, far = ({row.event_id: row.canonical() for row in story.rows[region]} for region in REGIONS)
    different = sum(home.get(key) != far.get(key) for key in home.keys() | far.keys())
    part.show("rows that differ between the two ledgers (0)", "num_differing_rows", different, different == 0)
    twice = sum(keyed.home.status == keyed.far.status == 200 for keyed in story.keyed)
    part.show(
        f"of {NUM_KEYS} idempotency keys used in both regions at once, generated twice (0)",
        "num_generated_twice",
        twice,
        twice == 0,
    )
    replayed = sum(keyed.later is not None and keyed.later.is_replayed for keyed in story.keyed)
    part.show(
        "the first answer replayed by the far region after healing", "num_replayed", replayed, replayed == len(story.keyed) > 0
    )
    return part


def _closed_within(story: Story, rows: Sequence[LedgerRow], region: str) -> int:
    return sum(row.region == region for row in rows)
