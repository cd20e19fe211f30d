"""A day of one model class in seconds: a fluid model of its engines under a load, with a real pace and a real cold start.

Each second, requests arrive, engines take what their batches hold, and finish what an engine at that batch finishes
(`policies.capacity.operating_point`: a step lasts `base + B · g / O`). First tokens are looked up in what runs event by event
gave at that batch (`policies.autoscaling.first_tokens`), behind the queue where there is one. Requests that would wait longer
than `Bounds.shed_after_s` in it are refused, and counted.

Fluid means that requests are a real number, spread evenly over engines. How far that is from the truth is no matter of opinion:
`policies.autoscaling.replay` runs the same load, policy and engines request by request, and `flotilla simulate
--check-against-events` puts both beside each other.
"""

from __future__ import annotations

from policies.autoscaling.first_tokens import largest_batch, measured
from policies.autoscaling.fleet import SYNC_S, Fleet, Scaler
from policies.autoscaling.outcome import Course, Outcome, Tally
from policies.autoscaling.rules import Observed
from policies.autoscaling.scenario import Bounds, EngineModel, Load
from policies.capacity.operating_point import BLOCK_TOKENS, work_s
from policies.capacity.traffic import mix_of


def simulate(
    policy: str,
    scaler: Scaler,
    load: Load,
    engine: EngineModel,
    bounds: Bounds,
    silent: range = range(0),
    seed: int = 1,
    measured_s: range | None = None,
) -> Outcome:
    """Runs `scaler` over a load. In `silent` seconds the metrics give no answer. The same arguments give the same outcome.

    The outcome is of the seconds `measured_s`, or of all.
    """
    within = range(len(load.arrivals_per_s)) if measured_s is None else measured_s
    profile, mix = engine.profile, mix_of(load.lengths, load.cached_ratio)
    work, law = work_s(profile, mix), profile.law
    fullest = largest_batch(profile, load.lengths, engine.max_batch)
    kv_tokens = profile.num_blocks * BLOCK_TOKENS
    table = measured(profile, load.lengths, load.cached_ratio, engine.max_batch, bounds.ttft_slo_s)
    fleet = Fleet(bounds, engine.cold_start_s, seed)
    inside, outside = (Tally(table), Course()), (Tally(table), Course())
    running = waiting = 0.0
    for second, arriving in enumerate(load.arrivals_per_s):
        tally, course = inside if second in within else outside
        fleet.advance(second)
        gone = fleet.lose(1.0)
        if gone:
            broken = running * gone / (fleet.ready + gone)
            running -= broken
            course.lost += broken
        room = fleet.ready * fullest - running
        batch = max(running / fleet.ready, 1e-9)
        rate = fleet.ready * batch / (mix.output_tokens * law.base_s + batch * work)
        queue_s = max(0.0, waiting - room) / max(rate, 1e-9)
        refused = arriving if queue_s > bounds.shed_after_s else 0.0
        course.shed += refused
        tally.add(batch, queue_s, arriving - refused)
        if not refused and tally.ttft_p50_s(batch, queue_s) <= bounds.ttft_slo_s:
            course.kept += arriving
        waiting += arriving - refused
        taken = min(waiting, max(0.0, room))
        waiting -= taken
        finished = min(running, rate)
        running += taken - finished
        course.useful_s += finished * work
        course.pay(fleet.size, fleet.on_spot, 1.0)
        course.queued(waiting, queue_s)
        if second % SYNC_S == 0:
            ttft_s, ttft_p99_s = tally.ttft_s(batch, queue_s)
            step_s = law.base_s + batch * work / mix.output_tokens
            observed = Observed(
                ready=fleet.ready,
                running=running,
                waiting=waiting + arriving * step_s / 2,  # until its engine's next step begins, every request waits
                ttft_s=ttft_s,
                ttft_p99_s=ttft_p99_s,
                kv_ratio=min(1.0, batch * mix.context_tokens / kv_tokens),
                req_per_s=arriving,
                tokens_per_s=finished * (mix.input_tokens + mix.output_tokens),
                slo_ratio=0.0 if refused else tally.in_time_ratio(batch, queue_s, bounds.ttft_slo_s),
            )
            fleet.sync(scaler, None if second in silent else observed, float(second))
        if second % 60 == 59:
            course.sizes.append(fleet.size)
    tally, course = inside
    total = sum(load.arrivals_per_s[second] for second in within)
    in_time = max(0.0, tally.in_time(bounds.ttft_slo_s) - course.lost * table.reachable_ratio)
    return course.outcome(policy, total, total * table.reachable_ratio, in_time, tally.times(), fleet, engine)
