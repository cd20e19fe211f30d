"""What stacks cost, and what a change would make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.documents import parse, raise_all, read_yaml
from infra.embedded.declared import declared
from infra.embedded.graph import Graph
from infra.instances import INSTANCE_SHAPES
from infra.naming import LOCAL, parse_stack
from policies import costs
from policies.costs.count import Bill, bills
from policies.costs.prices import HOURS_PER_MONTH, Line, PriceBook

PRICES = Path(costs.__file__).with_name("prices.yaml")
PRICES_SHOWN = "policies/costs/prices.yaml"


@dataclass(frozen=True)
class StackCost:
    """One stack before and after; `before` is None without a comparison or where the stack is new, `after` where it goes."""

    stack: str
    after: Bill | None
    before: Bill | None = None

    @property
    def delta_usd_per_h(self) -> float:
        """How much more the floor costs after."""
        return (self.after.floor_usd_per_h if self.after else 0.0) - (self.before.floor_usd_per_h if self.before else 0.0)


@dataclass(frozen=True)
class CostReport:
    """All stacks."""

    stacks: tuple[StackCost, ...]
    book: PriceBook
    against: str = ""
    """What it is compared with; empty for nothing."""

    @property
    def floor_usd_per_h(self) -> float:
        """What runs whatever happens, over all stacks."""
        return sum(bill.floor_usd_per_h for bill in self.bills)

    @property
    def ceiling_usd_per_h(self) -> float:
        """With every pool at its limit."""
        return sum(bill.ceiling_usd_per_h for bill in self.bills)

    @property
    def unconfirmed_ratio(self) -> float:
        """Share of the floor that rests on prices which were not read from their source."""
        return sum(bill.unconfirmed_usd_per_h for bill in self.bills) / self.floor_usd_per_h if self.floor_usd_per_h else 0.0

    @property
    def bills(self) -> tuple[Bill, ...]:
        """The bills after."""
        return tuple(item.after for item in self.stacks if item.after)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "currency": "USD",
            "price_region": self.book.region,
            "against": self.against,
            "floor_usd_per_h": _rounded(self.floor_usd_per_h),
            "floor_usd_per_month": _rounded(self.floor_usd_per_h * HOURS_PER_MONTH),
            "ceiling_usd_per_h": _rounded(self.ceiling_usd_per_h),
            "unconfirmed_ratio": round(self.unconfirmed_ratio, 4),
            "stacks": [_stack_json(item, bool(self.against)) for item in self.stacks],
        }


def load_prices(path: Path = PRICES) -> PriceBook:
    """The price book.

    Raises:
        ConfigError: the file cannot be read or does not fit.
    """
    book, faults = parse(PriceBook, read_yaml(path, PRICES_SHOWN), PRICES_SHOWN)
    raise_all(faults)
    assert book is not None
    return book


def cost_of(
    graphs: Mapping[str, Graph], book: PriceBook, before: Mapping[str, Graph] | None = None, against: str = ""
) -> CostReport:
    """What the graphs cost; beside `before`, if that is given. What runs on this machine costs nothing, and is left out."""
    after = _bills(graphs, book)
    if before is None:
        return CostReport(tuple(StackCost(stack, bill) for stack, bill in after.items()), book)
    earlier = _bills(before, book)
    names = [*after, *(stack for stack in earlier if stack not in after)]
    return CostReport(tuple(StackCost(name, after.get(name), earlier.get(name)) for name in names), book, against)


def _bills(graphs: Mapping[str, Graph], book: PriceBook) -> dict[str, Bill]:
    gpus_per_node = {name: shape.num_gpus for name, shape in INSTANCE_SHAPES.items()}
    bought = {stack: declared(graph) for stack, graph in graphs.items() if parse_stack(stack).environment != LOCAL}
    found = bills(bought, book, gpus_per_node)
    return {bill.stack: bill for bill in found}


def _stack_json(item: StackCost, is_compared: bool) -> dict[str, Any]:
    bill = item.after
    document: dict[str, Any] = {"stack": item.stack, "floor_usd_per_h": _rounded(bill.floor_usd_per_h if bill else 0.0)}
    if is_compared:
        document["delta_usd_per_h"] = _rounded(item.delta_usd_per_h)
    if bill:
        document |= {
            "ceiling_usd_per_h": _rounded(bill.ceiling_usd_per_h),
            "floor": [_line_json(line) for line in bill.floor],
            "growth": [_line_json(line) for line in bill.growth],
            "by_use": dict(bill.by_use),
            "unpriced": dict(bill.unpriced),
        }
    return document


def _line_json(line: Line) -> dict[str, Any]:
    return {
        "name": line.name,
        "type": line.type,
        "price": line.key,
        "quantity": line.quantity,
        "usd_per_h": _rounded(line.usd_per_h),
        "note": line.note,
    }


def _rounded(usd: float) -> float:
    return round(usd, 6)
