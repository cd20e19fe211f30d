"""What may be spent: limits by environment or stack, and whether what a program costs stays below them.

Two limits, as a bill has two sums: what runs always, and what autoscaling may add up to. What is billed by use or has no price is
in neither, so a budget says nothing about it. An environment that nobody gave a budget is over it: spending needs an owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from policies.costs.count import Bill

MIN_REASON_CHARS = 20


class Budget(BaseModel):
    """One limit and who answers for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    always_usd_per_h: Annotated[float, Field(gt=0)]
    at_most_usd_per_h: Annotated[float, Field(gt=0)] | None = None
    """With every pool at its limit; None holds only what runs always."""
    owner: Annotated[str, Field(min_length=1)]
    reason: Annotated[str, Field(min_length=MIN_REASON_CHARS)]


class BudgetsFile(BaseModel):
    """`stacks/budgets.yaml`: by environment, such as prod, or by stack, such as prod.serving.us-east-2."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budgets: Mapping[str, Budget]


@dataclass(frozen=True)
class BudgetVerdict:
    """One limit, and what it is held against."""

    scope: str
    """An environment or a stack."""
    measure: str
    """`always` or `at most`."""
    usd_per_h: float
    limit_usd_per_h: float | None
    """None: nobody gave this environment a budget."""
    owner: str = ""

    @property
    def is_exceeded(self) -> bool:
        """Whether it costs more than it may; always so without a budget."""
        return self.limit_usd_per_h is None or self.usd_per_h > self.limit_usd_per_h

    @property
    def message(self) -> str:
        """One line."""
        if self.limit_usd_per_h is None:
            return f"{self.scope} costs ${self.usd_per_h:,.2f} an hour and has no budget"
        state = "over" if self.is_exceeded else "within"
        limit = f"${self.limit_usd_per_h:,.2f} of {self.owner}"
        return f"{self.scope}, {self.measure}: ${self.usd_per_h:,.2f} an hour is {state} {limit}"

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {**vars(self), "usd_per_h": round(self.usd_per_h, 6), "is_exceeded": self.is_exceeded}


def judge_budgets(bills: Sequence[Bill], budgets: Mapping[str, Budget]) -> tuple[BudgetVerdict, ...]:
    """A verdict for each limit on an environment or a stack that `bills` name, in their order; none for other budgets."""
    environments = dict.fromkeys(_environment(bill) for bill in bills)
    found: list[BudgetVerdict] = []
    for scope in (*environments, *(bill.stack for bill in bills)):
        covered = [bill for bill in bills if scope in (bill.stack, _environment(bill))]
        always = sum(bill.floor_usd_per_h for bill in covered)
        budget = budgets.get(scope)
        if budget is None:
            if scope in environments:
                found.append(BudgetVerdict(scope, "always", always, None))
            continue
        found.append(BudgetVerdict(scope, "always", always, budget.always_usd_per_h, budget.owner))
        if budget.at_most_usd_per_h is not None:
            at_most = sum(bill.ceiling_usd_per_h for bill in covered)
            found.append(BudgetVerdict(scope, "at most", at_most, budget.at_most_usd_per_h, budget.owner))
    return tuple(found)


def _environment(bill: Bill) -> str:
    return bill.stack.partition(".")[0]
