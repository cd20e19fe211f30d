"""The ready replica with the fewest requests of ours, ties broken at random.

Our own in-flight counts are exact and immediate; polled metrics are neither, and every gateway that reads the same poll sends its
next burst to the same replica. Random ties matter for the same reason: with a fixed order every gateway that starts cold
picks the first. Each gateway counts only its own requests, which is near enough while gateways see like shares of the traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal


@dataclass(frozen=True)
class Replica:
    """What is known of one replica at the moment of choice."""

    is_ready: bool
    num_in_flight: int
    ejected_until_s: float = float("-inf")
    """It failed a request lately and is passed over until then, on the clock of `now_s`."""
    has_failed_this: bool = False
    """It has already failed the request to be placed."""


@dataclass(frozen=True)
class Choice:
    """Index into the replicas, or -1 with the reason why none was chosen."""

    index: int
    reason: Literal["least_loaded", "all_ejected", "none_ready", "all_full"]

    @property
    def is_placed(self) -> bool:
        """A replica was chosen."""
        return self.index >= 0


def choose(replicas: Sequence[Replica], *, max_in_flight: int, now_s: float, random: Random) -> Choice:
    """Place one request.

    Ejected replicas are passed over unless every usable one is ejected: then suspicion says nothing, and one of them is tried
    (reason `all_ejected`). A replica that has already failed this very request is not asked again. With no replicas, or none
    ready, the answer is `none_ready`; with every candidate at `max_in_flight`, `all_full`.
    """
    usable = [index for index, replica in enumerate(replicas) if replica.is_ready and not replica.has_failed_this]
    if not usable:
        return Choice(-1, "none_ready")
    trusted = [index for index in usable if replicas[index].ejected_until_s <= now_s]
    candidates = [index for index in trusted or usable if replicas[index].num_in_flight < max_in_flight]
    if not candidates:
        return Choice(-1, "all_full")
    fewest = min(replicas[index].num_in_flight for index in candidates)
    tied = [index for index in candidates if replicas[index].num_in_flight == fewest]
    return Choice(tied[0] if len(tied) == 1 else random.choice(tied), "least_loaded" if trusted else "all_ejected")
