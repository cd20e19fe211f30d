"""The three fleets that a model class may have, and what sets them apart.

| fleet | runs on | serves | goes away |
|---|---|---|---|
| base | reserved nodes, then on-demand ones | whoever asks for the class | one engine at a time, when its budget allows |
| overflow | spot | the same, beside base, at peaks | with its node, two minutes after the notice |
| batch | spot | batches alone, behind a Service of its own | the same, and first |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from infra import timers
from infra.naming import ENGINE
from infra.scheduling import Capacity
from infra.timers import Stop
from serving.settings import ModelClass


class FleetKind(StrEnum):
    """Base carries what is promised; overflow and batch may vanish."""

    BASE = "base"
    OVERFLOW = "overflow"
    BATCH = "batch"


INTERACTIVE = (FleetKind.BASE, FleetKind.OVERFLOW)
"""Behind the class's Service: a request may land on either."""


@dataclass(frozen=True)
class Fleet:
    """One fleet of one model class."""

    model_class: ModelClass
    kind: FleetKind

    @property
    def name(self) -> str:
        """Name of its Deployment and of all that belongs to it alone: `engine-small`, `engine-small-overflow`."""
        return service_name(self.model_class) if self.kind is FleetKind.BASE else f"{ENGINE}-{self.model_class}-{self.kind}"

    @property
    def service(self) -> str:
        """The Service that its pods answer for."""
        return service_name(self.model_class) if self.kind in INTERACTIVE else self.name

    @property
    def capacities(self) -> tuple[Capacity, ...]:
        """What it may run on, the preferred first."""
        return (Capacity.RESERVED, Capacity.ON_DEMAND) if self.kind is FleetKind.BASE else (Capacity.SPOT,)

    @property
    def priority(self) -> str:
        """Key of its priority class in `serving_namespace.PRIORITIES`."""
        return ENGINE if self.kind is FleetKind.BASE else str(self.kind)

    @property
    def max_unavailable(self) -> int | str:
        """How many a drain may take at once. A spot node is gone in two minutes whatever a budget says: one that held evictions
        back would only keep the engines of that node from finishing what they run."""
        return 1 if self.kind is FleetKind.BASE else "100%"

    def stop(self, gateway: Stop) -> Stop:
        """How its engines end, where gateways end like `gateway`."""
        return timers.base_engine_stop(gateway) if self.kind is FleetKind.BASE else timers.spot_engine_stop(gateway)


def service_name(model_class: ModelClass) -> str:
    """The Service of a class: what gateways ask for its engines."""
    return f"{ENGINE}-{model_class}"
