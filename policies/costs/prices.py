"""The price book: each price with its unit, its source and the day it was read.

AWS changes prices and has one list a region, so a price without a date is a rumour. The file is `prices.yaml` beside this module;
reading it is the caller's. A price that was not read from a source is marked, and every report that uses it says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

HOURS_PER_MONTH = 730
"""As AWS's own calculator counts."""


class Unit(StrEnum):
    """What a price is for."""

    HOUR = "hour"
    MONTH = "month"


class Price(BaseModel):
    """One price of the list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    usd: Annotated[float, Field(ge=0)]
    per: Unit = Unit.HOUR
    source: Annotated[str, Field(min_length=1)]
    read: date
    is_confirmed: bool = True
    """False: known, but not read from its source on that day. Reports count these."""

    @property
    def usd_per_h(self) -> float:
        """The price for an hour; a month has 730."""
        return self.usd / HOURS_PER_MONTH if self.per is Unit.MONTH else self.usd


class SpotClaim(BaseModel):
    """How much less spot is assumed to cost than on-demand: it floats, so it is configuration and no price."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    discount_ratio: Annotated[float, Field(ge=0, lt=1)]
    source: Annotated[str, Field(min_length=1)]
    read: date


class PriceBook(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    region: str
    """Whose list it is. Other regions of the program have the same list prices for these (us-east-2 and us-west-2)."""
    prices: Mapping[str, Price]
    spot: SpotClaim
    by_use: Mapping[str, str]
    """Resource type → what its bill depends on: priced by use, and so in no sum."""
    free: tuple[str, ...]
    """Types that cost nothing by themselves."""


@dataclass(frozen=True)
class Line:
    """Something that is bought, all the time."""

    stack: str
    urn: str
    name: str
    type: str
    key: str
    """Which price."""
    quantity: float
    usd_per_h: float
    note: str = ""
