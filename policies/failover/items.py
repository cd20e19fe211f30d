"""The control items of a failover: who writes them says what must hold, who reads them obeys.

    pk control    sk <region>           the region is evacuated, or serves again     read by gateways, who tell health checks
    pk floor      sk <region>#<class>   the region keeps at least so many engines     read by the scaling policy
    pk takeover   sk <region>           another region ships this region's usage      read by that region's shipper
    pk freeze     sk deploys            nobody deploys                                read by `flotilla deploy` and workflows
    pk report     sk <region>#<gateway> what a gateway last said of its region        written by gateways, read by `failover`
    pk shipped    sk <region>#<gateway> what a shipper's volume still holds               written by shippers, read by `failover`
    pk shipped    sk <region>#by        what another region's shipper made of its archive written by it, read by `failover`
    pk run        sk <lost region>      the failover of that region, step by step     written and read by `failover`

They lie in the `failover` table, and are written in a surviving region alone. Plain values; who talks to the table
packs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, Protocol, TypeVar

CONTROL, FLOOR, TAKEOVER, FREEZE, REPORT, SHIPPED, RUN = "control", "floor", "takeover", "freeze", "report", "shipped", "run"
DEPLOYS = "deploys"


@dataclass(frozen=True)
class Control:
    """What somebody has said of a region."""

    region: str
    is_evacuated: bool
    reason: str
    run_id: str
    by: str
    at_s: float
    """Seconds since 1970."""

    @property
    def key(self) -> tuple[str, str]:
        """Where it lies."""
        return CONTROL, self.region


@dataclass(frozen=True)
class Floor:
    """A region keeps at least `min_engines` of a class, whatever its load; 0 lifts it."""

    region: str
    model_class: str
    min_engines: int
    run_id: str
    at_s: float

    @property
    def key(self) -> tuple[str, str]:
        """Where it lies."""
        return FLOOR, f"{self.region}#{self.model_class}"


@dataclass(frozen=True)
class Takeover:
    """`by_region` makes ledger rows of what `region` has archived and not accounted for; "" ends it."""

    region: str
    by_region: str
    run_id: str
    at_s: float

    @property
    def key(self) -> tuple[str, str]:
        """Where it lies."""
        return TAKEOVER, self.region


@dataclass(frozen=True)
class Freeze:
    """Nobody deploys while it holds."""

    is_frozen: bool
    reason: str
    run_id: str
    by: str
    at_s: float

    @property
    def key(self) -> tuple[str, str]:
        """Where it lies."""
        return FREEZE, DEPLOYS


@dataclass(frozen=True)
class Report:
    """What one gateway knows of its region; `failover` reads the newest, of the lost region too."""

    region: str
    gateway: str
    at_s: float
    classes: Mapping[str, Mapping[str, Any]]
    """By model class: `num_ready`, `max_engines` and `places_per_engine` of its engines, `min_engines` as the scaling policy has
    it now, `release_ids` that it serves, and by band the requests `in_flight` in this gateway."""

    @property
    def key(self) -> tuple[str, str]:
        """Where it lies."""
        return REPORT, f"{self.region}#{self.gateway}"


@dataclass(frozen=True)
class Shipped:
    """What a gateway's shipper still has to ship."""

    region: str
    gateway: str
    at_s: float
    num_waiting: int
    """Sealed segments on its volume that are not accounted for."""

    @property
    def key(self) -> tuple[str, str]:
        """Where it lies."""
        return SHIPPED, f"{self.region}#{self.gateway}"


@dataclass(frozen=True)
class TakenOver:
    """What `by_region` made of the archive of `region`."""

    region: str
    by_region: str
    run_id: str
    at_s: float
    num_segments: int
    num_new_rows: int
    newest_sealed_at: str
    """When the newest segment was archived, ISO 8601; "" if there is none. What came later is on the region's volumes."""

    @property
    def key(self) -> tuple[str, str]:
        """Where it lies."""
        return SHIPPED, f"{self.region}#by"


class Item(Protocol):
    """Any of them."""

    @property
    def key(self) -> tuple[str, str]:
        """Partition and sort key."""


ItemT = TypeVar("ItemT")


def pack(item: Item) -> dict[str, Any]:
    """The item as a table keeps it: its fields beside `pk` and `sk`.

    >>> pack(Takeover("us-east-2", "us-west-2", "r1", 5.0))["sk"]
    'us-east-2'
    """
    pk, sk = item.key
    fields: dict[str, Any] = stored(asdict(item))  # type: ignore[call-overload]
    return {"pk": pk, "sk": sk, **fields}


def unpack(kind: type[ItemT], values: Mapping[str, Any]) -> ItemT:
    """The item that `pack` made `values` of; fields that are not known here are left out, so writers may be newer than readers.

    Raises:
        ValueError: a field is missing.
    """
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    try:
        return kind(**{name: plain(values[name]) for name in names})
    except KeyError as error:
        raise ValueError(f"{values.get('pk')} {values.get('sk')}: {error.args[0]} is missing") from error


def stored(value: Any) -> Any:
    """`value` with decimals for floats, whose digits a table cannot keep; in lists and dictionaries too."""
    if isinstance(value, float):
        return Decimal(str(value))
    if isinstance(value, dict):
        return {name: stored(its) for name, its in value.items()}
    if isinstance(value, list | tuple):
        return [stored(its) for its in value]
    return value


def plain(value: Any) -> Any:
    """What `stored` was made of: whole numbers as integers, others as floats."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {name: plain(its) for name, its in value.items()}
    if isinstance(value, list):
        return [plain(its) for its in value]
    return value
