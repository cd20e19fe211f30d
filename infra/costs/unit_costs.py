"""What a million tokens cost in an environment, from the catalog's classes, their engines' operating points and the prices."""

from __future__ import annotations

from infra import config
from infra.capacity.commands import class_demands
from policies.capacity.operating_point import Mix, operating_point
from policies.costs.prices import PriceBook
from policies.costs.unit_cost import UnitCost, unit_cost
from serving.errors import UserError

UTILIZATION_RATIO = 0.7
"""What the system design promises: useful tokens above 70 %."""


def unit_costs(env: str, book: PriceBook, mix: Mix | None = None) -> tuple[tuple[UnitCost, UnitCost], ...]:
    """For each class that `env` serves: on demand, and on spot at the book's discount.

    Raises:
        UserError: a class runs on no A100, or its node has no price.
    """
    catalog, mix = config.load_catalog(), mix or Mix()
    classes = config.environment_of(catalog, env).models
    found: list[tuple[UnitCost, UnitCost]] = []
    for item in class_demands(catalog, env, {str(name): 1 / len(classes) for name in classes}):
        if item.usd_per_node_h is None:
            raise UserError(f"{item.name}: its nodes have no price", "add one to policies/costs/prices.yaml")
        point = operating_point(item.profile, mix, UTILIZATION_RATIO, item.max_batch)
        found.append((unit_cost(item, point, mix), unit_cost(item, point, mix, book.spot.discount_ratio)))
    return tuple(found)
