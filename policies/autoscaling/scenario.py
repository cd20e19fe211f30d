"""What is simulated: an engine, the load on its class, and the bounds and promises of the class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policies.capacity.step_law import Profile
from policies.capacity.traffic import AZURE_2023_CONVERSATIONS, Length


@dataclass(frozen=True)
class EngineModel:
    """One engine of the class."""

    profile: Profile
    max_batch: int
    cold_start_s: float
    gpus: int
    usd_per_h: float


@dataclass(frozen=True)
class Load:
    """What is asked of the class."""

    arrivals_per_s: Sequence[float]
    """One number for each second."""
    lengths: tuple[Length, ...] = AZURE_2023_CONVERSATIONS
    """A sample of requests."""
    cached_ratio: float = 0.0
    """Share of prompts found in the prefix cache."""


@dataclass(frozen=True)
class Bounds:
    """Least and most engines of the class, what is promised, and what spot is like."""

    minimum: int
    maximum: int
    """Spot included."""
    spot: int = 0
    """The last engines of `maximum` are on spot."""
    spot_losses_per_h: float = 0.0
    """How often a spot engine goes, each one by itself."""
    spot_discount_ratio: float = 0.0
    ttft_slo_s: float = 0.2
    shed_after_s: float = 10.0
