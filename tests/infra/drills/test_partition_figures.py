"""What the drill of a partition makes of what it saw: every promise can be broken, and says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from infra.drills.failover_runs import Ran
from infra.drills.load import Asked
from infra.drills.partition import FAR, HOME, NUM_KEYS, Keyed, Story
from infra.drills.partition_figures import judged
from infra.drills.streams import Seen
from serving.models.registry import Alias, WeightedRelease

SERVED, NO_KEY = Seen(status=200, is_done=True), Seen(status=503)


def healed() -> Story:
    """All is well after two minutes: 180 of a limit of 60 a minute, burst included."""
    alias = Alias("small", (WeightedRelease("r1"),), 5, 1)
    return Story(
        cut_s=100.0,
        healed_s=220.0,
        asked=[Asked(100.0 + second, 101.0 + second, SERVED) for second in range(150)],
        probes={HOME: Counter({200: 100, 429: 20}), FAR: Counter({200: 80, 429: 40})},
        probed_s=120.0,
        keyed=[Keyed(SERVED, NO_KEY, replace(SERVED, is_replayed=True)) for _ in range(NUM_KEYS)],
        alias_before=2,
        alias_writes={HOME: Counter(done=3), FAR: Counter(refused=3)},
        aliases={HOME: alias, FAR: alias},
        new_key_status=200,
        runs={HOME: Ran(0, 5.0, ""), FAR: Ran(0, 5.0, "")},
        first_out=HOME,
        out_after=[HOME],
        rows={HOME: [], FAR: []},
    )


def _refuses_clients(story: Story) -> None:
    story.asked += [Asked(150.0, 150.1, NO_KEY, why="503")]


def _lets_a_tenant_past_its_limit(story: Story) -> None:
    story.probes[FAR][200] += 1


def _lets_nobody_in(story: Story) -> None:
    story.probes[FAR] = Counter({429: 120})


def _writes_the_alias_on_both_sides(story: Story) -> None:
    story.alias_writes[FAR] = Counter(done=3)


def _has_two_aliases(story: Story) -> None:
    story.aliases[FAR] = Alias("small", (WeightedRelease("r2"),), 5, 1)


def _generates_twice(story: Story) -> None:
    story.keyed[0].far = SERVED


def _generates_anew(story: Story) -> None:
    story.keyed[0].later = SERVED


def _keeps_both_out(story: Story) -> None:
    story.out_after = [HOME, FAR]


def _leaves_the_second_out(story: Story) -> None:
    story.out_after = [FAR]


def _fails_a_run(story: Story) -> None:
    story.runs[FAR] = Ran(2, 5.0, "check-survivors: no")


def _differs(story: Story) -> None:
    story.differing_items = ["freeze deploys"]


def _stays_out(story: Story) -> None:
    story.out_at_end = [HOME]


def _broken(story: Story) -> set[str]:
    """Parts that do not hold, but for those that want rows of a ledger."""
    return {part.name for part in judged(story) if not part.holds} - {"bills"}


@pytest.mark.parametrize(
    ("does", "part"),
    [
        (_refuses_clients, "requests"),
        (_lets_a_tenant_past_its_limit, "limits"),
        (_lets_nobody_in, "limits"),
        (_writes_the_alias_on_both_sides, "rollout"),
        (_has_two_aliases, "rollout"),
        (_keeps_both_out, "failover"),
        (_leaves_the_second_out, "failover"),
        (_fails_a_run, "failover"),
        (_differs, "failover"),
        (_stays_out, "failover"),
    ],
)
def test_every_promise_can_be_broken(does: Callable[[Story], None], part: str) -> None:
    story = healed()
    assert _broken(story) == {"ledgers"}, "it has no rows"
    does(story)
    assert _broken(story) == {"ledgers", part}


@pytest.mark.parametrize(("does", "figure"), [(_generates_twice, "num_generated_twice"), (_generates_anew, "num_replayed")])
def test_a_key_that_stood_for_two_answers_is_seen(does: Callable[[Story], None], figure: str) -> None:
    story = healed()
    does(story)
    (ledgers,) = [part for part in judged(story) if part.name == "ledgers"]
    assert ledgers.figures[figure] == {"num_generated_twice": 1, "num_replayed": NUM_KEYS - 1}[figure]
    assert [holds for what, _, holds in ledgers.rows if "generated twice" in what or "replayed" in what].count(False) == 1
