"""What a twin can be told to do wrong, and to which requests.

Faults of a request are drawn when it arrives, from a seed and the order of arrivals: the same seed and order, the same faults.
Faults of the whole twin are switches. Both are set at `/twin/faults`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import msgspec


class FaultKind(StrEnum):
    """Faults of one request. `at_token` counts tokens that have been sent."""

    HANG = "hang"
    """Stays running from `at_token` on and makes no more tokens."""
    DRIP = "drip"
    """From `at_token` on, a token each `delay_s`."""
    REFUSE = "refuse"
    """Answered with `status` and an error document; nothing is generated."""
    CUT = "cut"
    """The connection is reset at `at_token`."""
    DIE = "die"
    """The whole twin is gone at `at_token`, as by SIGKILL."""
    TRUNCATE = "truncate"
    """The stream ends, in good order, in the middle of the event after `at_token`."""
    GARBLE = "garble"
    """The event after `at_token` is not JSON."""
    ERROR = "error"
    """The event after `at_token` tells of a failure, and the stream ends, as when vLLM's engine core dies."""
    SPLIT = "split"
    """Each event arrives in two pieces, cut inside a character where it has a wide one."""
    WRONG_TEXT = "wrong_text"
    """Answers with other tokens than its own, as after a bad wake from sleep."""
    LIE_USAGE = "lie_usage"
    """Completion tokens in usage are multiplied by `factor`: 0 and negative numbers too."""
    DROP_FINAL_USAGE = "drop_final_usage"
    """The last event with the totals is left out."""
    DROP_USAGE = "drop_usage"
    """No event has counts."""


STREAM_FAULTS = frozenset({FaultKind.TRUNCATE, FaultKind.GARBLE, FaultKind.ERROR, FaultKind.SPLIT})
"""Faults of events: a request that is not streamed does not meet them."""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault, and which requests it meets."""

    kind: FaultKind
    at_token: Annotated[int, msgspec.Meta(ge=0)] = 0
    delay_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 500
    factor: float = 2.0
    probability: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Meets at most so many requests; None any number."""


class Switches(msgspec.Struct, forbid_unknown_fields=True):
    """Faults of the whole twin."""

    frozen: bool = False
    """No step ends: requests wait or run for ever, and /health says 200."""
    silent: bool = False
    """Connections are accepted and nothing is answered, probes included; `/twin` still is."""
    dead: bool = False
    """/health says 503 and generations fail with 500, as when vLLM's engine core has died."""
    stale_metrics: bool = False
    """/metrics answers what it answered last."""
    no_metrics: bool = False
    """/metrics is not found."""


class FaultPlan(msgspec.Struct, forbid_unknown_fields=True):
    """The document of `/twin/faults`."""

    faults: list[Fault] = []
    switches: Switches = msgspec.field(default_factory=Switches)


class Faults:
    """Draws faults for requests."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.set(FaultPlan())

    def set(self, plan: FaultPlan) -> None:
        """From now on `plan`; the draw begins anew."""
        self.plan = plan
        self.switches = plan.switches
        self._random = random.Random(self._seed)  # noqa: S311 (reproducible, not secret)
        self._left = [fault.times for fault in plan.faults]

    def draw(self) -> Fault | None:
        """The next request's fault: the first that meets it."""
        for number, fault in enumerate(self.plan.faults):
            left = self._left[number]
            if left == 0 or self._random.random() >= fault.probability:
                continue
            if left is not None:
                self._left[number] = left - 1
            return fault
        return None

    @property
    def active(self) -> Sequence[Fault]:
        """Faults that may still meet a request."""
        return [fault for fault, left in zip(self.plan.faults, self._left, strict=True) if left != 0]
