"""What came of a policy over a load: promises kept, what was paid for and how much of it was of use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from policies.autoscaling.first_tokens import FirstTokens
from policies.autoscaling.fleet import Fleet
from policies.autoscaling.scenario import EngineModel

QUEUE_BIN_S = 0.02
"""How finely waiting in a queue is counted."""
FINE_UNTIL, COARSE = 25, 10
"""Beyond 0.5 s it is counted ten times as coarsely: every request is late then."""


@dataclass(frozen=True)
class BucketTimes:
    """First tokens of one bucket of uncached prompt tokens."""

    num_requests: float
    p50_s: float
    p99_s: float
    in_time_ratio: float


@dataclass(frozen=True)
class Outcome:
    """What came of a policy."""

    policy: str
    num_requests: float
    kept_ratio: float
    """Of all requests, those that came while the promise was kept: half of the first tokens within it, and nobody shed."""
    slo_ratio: float
    """First token within the promise, of all requests that an idle engine would have served within it, shed and lost ones
    included: no policy can do anything for the rest."""
    reachable_ratio: float
    """Share of requests that an idle engine would serve within the promise."""
    shed_ratio: float
    lost_ratio: float
    """Ended in the middle, since their spot engine went."""
    ttft_p50_s: float
    ttft_p99_s: float
    buckets: Mapping[int, BucketTimes]
    """By the bucket's upper bound."""
    max_waiting: float
    """Requests beyond batches, at the worst moment."""
    max_queue_age_s: float
    """How long the eldest of them had waited."""
    utilization_ratio: float
    """Useful-token utilization of what was paid for."""
    gpu_hours: float
    usd: float
    usd_per_1k_in_time: float | None
    """Dollars for a thousand requests whose first token came within the promise; None where there was none."""
    num_changes: int
    num_spot_losses: int
    engines: tuple[int, ...]
    """Ready and starting, at the end of each minute."""


@dataclass
class Course:
    """What a simulation notes on its way."""

    base_s: float = 0.0
    """Engine seconds on nodes that stay."""
    spot_s: float = 0.0
    useful_s: float = 0.0
    kept: float = 0.0
    shed: float = 0.0
    lost: float = 0.0
    max_waiting: float = 0.0
    max_queue_s: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def pay(self, num_engines: float, on_spot: float, during_s: float) -> None:
        """So many engines, some of them on spot, for so long."""
        self.base_s += (num_engines - on_spot) * during_s
        self.spot_s += on_spot * during_s

    def queued(self, waiting: float, eldest_s: float) -> None:
        """So many wait beyond batches now, the eldest of them for so long."""
        self.max_waiting = max(self.max_waiting, waiting)
        self.max_queue_s = max(self.max_queue_s, eldest_s)

    def outcome(
        self,
        policy: str,
        num_requests: float,
        num_reachable: float,
        num_in_time: float,
        times: Sequence[tuple[int, float, float]],
        fleet: Fleet,
        engine: EngineModel,
    ) -> Outcome:
        """The whole of it. `times` are bucket, time to first token and number of requests."""
        bounds, engine_s = fleet.bounds, self.base_s + self.spot_s
        usd = (self.base_s + self.spot_s * (1 - bounds.spot_discount_ratio)) * engine.usd_per_h / 3600
        everything = [(time_s, number) for _, time_s, number in times]
        return Outcome(
            policy=policy,
            num_requests=num_requests,
            kept_ratio=self.kept / num_requests if num_requests else 1.0,
            slo_ratio=num_in_time / num_reachable if num_reachable else 1.0,
            reachable_ratio=num_reachable / num_requests if num_requests else 1.0,
            shed_ratio=self.shed / num_requests if num_requests else 0.0,
            lost_ratio=self.lost / num_requests if num_requests else 0.0,
            ttft_p50_s=quantile(everything, 0.5),
            ttft_p99_s=quantile(everything, 0.99),
            buckets=_by_bucket(times, bounds.ttft_slo_s),
            max_waiting=self.max_waiting,
            max_queue_age_s=self.max_queue_s,
            utilization_ratio=self.useful_s / engine_s if engine_s else 0.0,
            gpu_hours=engine_s * engine.gpus / 3600,
            usd=usd,
            usd_per_1k_in_time=usd / num_in_time * 1000 if num_in_time else None,
            num_changes=fleet.num_changes,
            num_spot_losses=fleet.num_lost,
            engines=tuple(self.sizes),
        )


class Tally:
    """First tokens as a fluid simulation has them: how many requests met which load and which queue."""

    def __init__(self, table: FirstTokens) -> None:
        self._table = table
        self._met: Counter[tuple[int, int]] = Counter()

    def add(self, batch: float, queue_s: float, number: float) -> None:
        """So many requests came to engines with such a batch, behind such a queue."""
        queue = round(queue_s / QUEUE_BIN_S)
        if queue > FINE_UNTIL:
            queue = COARSE * round(queue / COARSE)
        for index, weight in self._table.around(batch):
            if weight:
                self._met[index, queue] += number * weight  # type: ignore[assignment]  # a Counter of shares

    def ttft_p50_s(self, batch: float, queue_s: float) -> float:
        """Median of who comes now."""
        return sum(weight * self._table.spreads[index].p50_s for index, weight in self._table.around(batch)) + queue_s

    def ttft_s(self, batch: float, queue_s: float) -> tuple[float, float]:
        """Mean and 99th percentile of who comes now."""
        sides = self._table.around(batch)
        mean_s = sum(weight * self._table.spreads[index].mean_s for index, weight in sides)
        p99_s = sum(weight * self._table.spreads[index].p99_s for index, weight in sides)
        return mean_s + queue_s, p99_s + queue_s

    def in_time_ratio(self, batch: float, queue_s: float, limit_s: float) -> float:
        """Of all who come now, within `limit_s`."""
        return self._table.reachable_ratio * sum(
            weight * self._table.spreads[index].in_time_ratio(limit_s - queue_s) for index, weight in self._table.around(batch)
        )

    def in_time(self, limit_s: float) -> float:
        """Requests within `limit_s`, of those that can be."""
        return self._table.reachable_ratio * sum(
            number * self._table.spreads[index].in_time_ratio(limit_s - queue * QUEUE_BIN_S)
            for (index, queue), number in self._met.items()
        )

    def times(self) -> list[tuple[int, float, float]]:
        """Bucket, time to first token and number of requests, over all."""
        return [
            (bucket, time_s + queue * QUEUE_BIN_S, number * weight)
            for (index, queue), number in self._met.items()
            for bucket, time_s, weight in self._table.spreads[index].points()
        ]


def _by_bucket(times: Iterable[tuple[int, float, float]], limit_s: float) -> dict[int, BucketTimes]:
    """Bucket, time and number of requests, by bucket."""
    apart: dict[int, list[tuple[float, float]]] = {}
    for bucket, time_s, number in times:
        apart.setdefault(bucket, []).append((time_s, number))
    found = {}
    for bucket, met in sorted(apart.items()):
        total = sum(number for _, number in met)
        in_time = sum(number for time_s, number in met if time_s <= limit_s)
        found[bucket] = BucketTimes(total, quantile(met, 0.5), quantile(met, 0.99), in_time / total if total else 1.0)
    return found


def quantile(met: Iterable[tuple[float, float]], share: float) -> float:
    """The time that `share` of all requests did not exceed, from times with numbers of requests; 0 where there were none."""
    ordered = sorted(met)
    left = share * sum(number for _, number in ordered)
    if left <= 0:
        return 0.0
    for time_s, number in ordered:
        left -= number
        if left <= 1e-9:
            return time_s
    return ordered[-1][0]
