"""The same as `policies.autoscaling.simulation`, request by request and step by step: slow, and exact under the step law.

Requests come at random moments of their second, with lengths drawn from the load's sample. An engine that is removed finishes
what it has, and is paid for until then. Spot engines are not lost here: what a loss does to those who wait, the fluid model
has.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from policies.autoscaling.events import Arrival, FirstToken, SteppedFleet
from policies.autoscaling.first_tokens import is_reachable
from policies.autoscaling.fleet import SYNC_S, Fleet, Scaler
from policies.autoscaling.outcome import Course, Outcome
from policies.autoscaling.rules import Observed
from policies.autoscaling.scenario import Bounds, EngineModel, Load
from policies.capacity.operating_point import BLOCK_TOKENS
from policies.capacity.traffic import bucket_of, mix_of


def replay(
    policy: str, scaler: Scaler, load: Load, engine: EngineModel, bounds: Bounds, silent: range = range(0), seed: int = 1
) -> Outcome:
    """Runs `scaler` over a load, as `simulate` does.

    Raises:
        ValueError: the bounds ask for losses of spot engines.
    """
    if bounds.spot_losses_per_h:
        raise ValueError("losses of spot engines are simulated by the fluid model alone")
    rng = random.Random(seed)  # noqa: S311 (a simulation, no secret)
    mix, profile = mix_of(load.lengths, load.cached_ratio), engine.profile
    fleet, course = Fleet(bounds, engine.cold_start_s, seed), Course()
    engines = SteppedFleet(profile, engine.max_batch, bounds.minimum)
    found: list[FirstToken] = []
    num_requests = num_reachable = 0
    shed_at: list[float] = []
    for second, arriving in enumerate(load.arrivals_per_s):
        for _ in range(fleet.advance(second)):
            engines.add()
        arrivals = list(_arrivals(load, second, arriving, rng))
        for arrival in arrivals:
            found.extend(engines.until(arrival.at_s))
            num_requests += 1
            num_reachable += is_reachable(profile, arrival.uncached_tokens, bounds.ttft_slo_s)
            if engines.queue_age_s(arrival.at_s) > bounds.shed_after_s:
                shed_at.append(arrival.at_s)
            else:
                engines.take(arrival)
        found.extend(engines.until(second + 1.0))
        course.pay(fleet.size + len(engines.leaving), fleet.on_spot, 1.0)
        waiting = sum(item.waiting for item in engines.engines)
        course.queued(waiting, engines.queue_age_s(second + 1.0))
        if second % SYNC_S == 0:
            recent = found[len(found) - min(len(found), 200) :]
            running = sum(item.running for item in engines.engines)
            times = sorted(token.ttft_s for token in recent) or [0.0]
            observed = Observed(
                ready=fleet.ready,
                running=running,
                waiting=waiting,
                ttft_s=sum(times) / len(times),
                ttft_p99_s=times[int(0.99 * len(times))],
                kv_ratio=min(1.0, running * mix.context_tokens / (fleet.ready * profile.num_blocks * BLOCK_TOKENS)),
                req_per_s=arriving,
                tokens_per_s=arriving * (mix.input_tokens + mix.output_tokens),
                slo_ratio=sum(time_s <= bounds.ttft_slo_s for time_s in times) / len(times),
            )
            for _ in range(fleet.sync(scaler, None if second in silent else observed, float(second))):
                engines.remove()
        if second % 60 == 59:
            course.sizes.append(fleet.size)
    course.shed = len(shed_at)
    course.useful_s = engines.useful_s
    found.extend(engines.until(float("inf")))
    course.kept = _kept(found, shed_at, bounds.ttft_slo_s)
    in_time = sum(
        token.ttft_s <= bounds.ttft_slo_s and is_reachable(profile, token.arrival.uncached_tokens, bounds.ttft_slo_s)
        for token in found
    )
    times_met = [(bucket_of(token.arrival.uncached_tokens), token.ttft_s, 1.0) for token in found]
    return course.outcome(policy, num_requests, num_reachable, in_time, times_met, fleet, engine)


def _kept(found: Sequence[FirstToken], shed_at: Sequence[float], limit_s: float) -> float:
    """Requests of those parts of a minute in which half of the first tokens came within `limit_s`, and nobody was shed."""
    times: dict[int, list[float]] = {}
    for token in found:
        times.setdefault(int(token.arrival.at_s // SYNC_S), []).append(token.ttft_s)
    for at_s in shed_at:
        times.pop(int(at_s // SYNC_S), None)
    return sum(len(part) for part in times.values() if sorted(part)[(len(part) - 1) // 2] <= limit_s)


def _arrivals(load: Load, second: int, arriving: float, rng: random.Random) -> Iterator[Arrival]:
    """Requests of one second, in order; a part of a request comes with that probability."""
    number = int(arriving) + (rng.random() < arriving % 1)
    for moment in sorted(rng.random() for _ in range(number)):
        length = rng.choice(load.lengths)
        yield Arrival(second + moment, round(length.input_tokens * (1 - load.cached_ratio)), *length)
