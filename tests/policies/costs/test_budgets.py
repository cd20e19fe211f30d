"""Budgets: held by environment and by stack, and an environment without one is over it."""

from __future__ import annotations

import pytest

from policies.costs.budgets import Budget, judge_budgets
from policies.costs.count import Bill
from policies.costs.prices import Line

WHY = "what the committed load needs"


def bill(stack: str, floor: float, growth: float = 0.0) -> Bill:
    def line(usd: float) -> Line:
        return Line(stack, "urn", "it", "aws:a/b:C", "key", 1, usd)

    return Bill(stack, (line(floor),), (line(growth),), {}, {}, 0.0)


BILLS = (bill("prod.cluster.us-east-2", 40.0), bill("prod.serving.us-east-2", 10.0, 30.0), bill("staging.edge", 1.0))


@pytest.mark.parametrize(
    ("always", "at_most", "exceeded"),
    [
        (50.0, 80.0, []),  # 40 + 10 = 50 always, + 30 at most: at the limit is within it
        (49.9, 80.0, ["always"]),
        (50.0, 79.9, ["at most"]),
        (49.9, 79.9, ["always", "at most"]),
        (50.0, None, []),  # no limit on growth
    ],
)
def test_an_environment_is_the_sum_of_its_stacks(always: float, at_most: float | None, exceeded: list[str]) -> None:
    budget = Budget(always_usd_per_h=always, at_most_usd_per_h=at_most, owner="us", reason=WHY)
    found = judge_budgets(BILLS[:2], {"prod": budget})
    assert [verdict.measure for verdict in found if verdict.is_exceeded] == exceeded
    assert len(found) == (1 if at_most is None else 2)


def test_a_stack_may_have_a_budget_of_its_own() -> None:
    budgets = {
        scope: Budget(always_usd_per_h=45, owner=scope, reason=WHY) for scope in ("prod", "prod.cluster.us-east-2", "other.edge")
    }
    found = judge_budgets(BILLS[:2], budgets)
    assert [(verdict.scope, verdict.owner, verdict.usd_per_h, verdict.is_exceeded) for verdict in found] == [
        ("prod", "prod", 50.0, True),
        ("prod.cluster.us-east-2", "prod.cluster.us-east-2", 40.0, False),
    ]


def test_an_environment_that_nobody_gave_a_budget_is_over_it() -> None:
    """A new environment must not be free of limits because someone forgot."""
    (verdict,) = judge_budgets(BILLS[2:], {})
    assert verdict.is_exceeded and verdict.message == "staging costs $1.00 an hour and has no budget"
