"""What tenants pay: the tariffs, each from a date on, and the rate that an event is billed at.

A tariff has whole micro-dollars per million tokens for each model and kind of token. What an adapter adds and a batch saves
are percents of that; the product is rounded once, half to even, to a whole micro-dollar per million tokens. So a rate is an
integer, a token costs a whole number of pico-dollars (1e-12), and rows and their sums are exact. Money is rounded a second and
last time where an invoice states a line in micro-dollars (`invoices.py`).

The tariff in force when a request is opened rates it, however long it runs. Before the first date the first tariff holds. A
tariff that has begun is history: a new price is a new tariff, and what was billed already changes by revisions alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MicroUsd = Annotated[int, Field(ge=0, le=10**12)]
Percent = Annotated[int, Field(ge=0, le=1000)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TokenPrices(_Frozen):
    """Micro-dollars per million tokens, by kind."""

    input: MicroUsd
    """Prompt tokens that had to be computed."""
    cached_input: MicroUsd
    """Prompt tokens that were found in the prefix cache."""
    output: MicroUsd


class Tariff(_Frozen):
    """All prices from a date on."""

    version: Annotated[str, Field(min_length=1, max_length=64)]
    """Stands in every event that it rates."""
    effective_from: date
    """From midnight UTC of this day."""
    batch_discount_percent: Annotated[int, Field(ge=0, le=100)] = 0
    adapter_surcharge_percent: Percent = 0
    """On every token of a request that names an adapter, unless `adapters` says otherwise."""
    adapters: dict[str, Percent] = {}
    """Surcharge of single adapters, by name."""
    models: Annotated[dict[str, TokenPrices], Field(min_length=1)]
    """By name of the catalog's model."""


class Tariffs(_Frozen):
    """The whole of `stacks/tariffs.yaml`."""

    tariffs: tuple[Tariff, ...]
    """In order of their dates; at least one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = [] if self.tariffs else ["`tariffs` is empty. Add one."]
        for earlier, later in pairwise(self.tariffs):
            if later.effective_from <= earlier.effective_from:
                faults.append(
                    f"`tariffs`: {later.version!r} begins {later.effective_from}, must begin after {earlier.version!r}"
                    f" ({earlier.effective_from}). Put them in order."
                )
        versions = [tariff.version for tariff in self.tariffs]
        faults += [
            f"`tariffs`: version {version!r} stands there {versions.count(version)} times. Give each its own."
            for version in sorted(set(versions))
            if versions.count(version) > 1
        ]
        for tariff in self.tariffs:
            faults += [
                f"`tariffs`: {tariff.version!r} prices `{model}` cached input at {prices.cached_input}, must be at most its input"
                f" ({prices.input})."
                for model, prices in tariff.models.items()
                if prices.cached_input > prices.input
            ]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def unpriced(self, models: Iterable[str]) -> list[str]:
        """A fault for each of `models` that the last tariff does not price: it would be served for nothing."""
        last = self.tariffs[-1]
        return [
            f"`tariffs`: the last one, {last.version!r}, has no price of `{model}`, which is served. Add it."
            for model in models
            if model not in last.models
        ]

    def price_list(self, model: str) -> tuple[ListPrice, ...]:
        """The prices of `model`, oldest first; empty where no tariff has any."""
        return tuple(
            ListPrice(
                version=tariff.version,
                effective_from_ms=_midnight_ms(tariff.effective_from),
                input_micro_usd_per_mtok=tariff.models[model].input,
                cached_input_micro_usd_per_mtok=tariff.models[model].cached_input,
                output_micro_usd_per_mtok=tariff.models[model].output,
                batch_discount_percent=tariff.batch_discount_percent,
                adapter_surcharge_percent=tariff.adapter_surcharge_percent,
                adapters=tariff.adapters,
            )
            for tariff in self.tariffs
            if model in tariff.models
        )


@dataclass(frozen=True)
class ListPrice:
    """What a tariff says of one model."""

    version: str
    effective_from_ms: int
    """Unix time."""
    input_micro_usd_per_mtok: int
    cached_input_micro_usd_per_mtok: int
    output_micro_usd_per_mtok: int
    batch_discount_percent: int = 0
    adapter_surcharge_percent: int = 0
    adapters: Mapping[str, int] = field(default_factory=dict)

    def rate(self, adapter: str, is_batch: bool) -> Rate:
        """The rate of requests with this adapter (empty: none), in a batch or not."""
        factor = Fraction(100 - self.batch_discount_percent if is_batch else 100, 100)
        if adapter:
            factor *= Fraction(100 + self.adapters.get(adapter, self.adapter_surcharge_percent), 100)
        return Rate(
            self.version,
            round(self.input_micro_usd_per_mtok * factor),  # a Fraction rounds half to even
            round(self.cached_input_micro_usd_per_mtok * factor),
            round(self.output_micro_usd_per_mtok * factor),
        )


@dataclass(frozen=True)
class Rate:
    """What a token of each kind costs one request: micro-dollars per million, which is pico-dollars each."""

    version: str
    input_micro_usd_per_mtok: int
    cached_input_micro_usd_per_mtok: int
    output_micro_usd_per_mtok: int

    def cost_pico_usd(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """The cost of a request, exact: 70 tokens at $0.10, 30 cached at $0.05 and 211 at $0.40 a million cost 92,900,000."""
        return (
            (prompt_tokens - cached_tokens) * self.input_micro_usd_per_mtok
            + cached_tokens * self.cached_input_micro_usd_per_mtok
            + output_tokens * self.output_micro_usd_per_mtok
        )


class PriceList:
    """The rates of one model, looked up for every request: what was computed once is kept."""

    def __init__(self, prices: Sequence[ListPrice]) -> None:
        assert prices  # whoever writes settings refuses a model without a price
        self._prices = tuple(sorted(prices, key=lambda price: price.effective_from_ms))
        self._begins = [price.effective_from_ms for price in self._prices]
        self._known: dict[tuple[int, str, bool], Rate] = {}

    def rate(self, opened_at_ms: int, adapter: str = "", is_batch: bool = False) -> Rate:
        """The rate of a request that is opened at this moment."""
        place = max(bisect_right(self._begins, opened_at_ms) - 1, 0)
        known = self._known.get((place, adapter, is_batch))
        if known is None:
            known = self._known[place, adapter, is_batch] = self._prices[place].rate(adapter, is_batch)
        return known

    def of_version(self, version: str, adapter: str = "", is_batch: bool = False) -> Rate | None:
        """The rate under the tariff `version`; None where that does not price this model."""
        return next((price.rate(adapter, is_batch) for price in self._prices if price.version == version), None)


def _midnight_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
