"""Measures what is left of a class that is asked for five times what it can do: by `make drill-overload`.

Real gateway processes on an emulated AWS and a real Valkey, before twins that keep the time of A100s at half speed. First the
peak is measured, by a closed loop that keeps all slots busy; then a quiet load; then five times the peak, open loop, of which the
`interactive` band asks for 0.3 of a peak and `standard` and `batch` the rest; then the quiet load again. Prints a table and one
line of JSON; exits 1 where something does not hold. `ARGS="--seconds 20"` is short.

Whether a Retry-After was true is told by who came next: the next request of the same tenant that was let in at that gateway took
the place that the refused one would have had. So the time from the refusal until that one went out (it says how long it waited)
is what the refused one would have waited. Refusals that nobody follows are not judged, and counted.
"""

from __future__ import annotations

import asyncio
import random
import sys
from bisect import bisect
from statistics import median

from tests.drills.drill_frame import Row, run
from tests.drills.engine_fleet import Process, Site, metric
from tests.drills.queue_load import Came, Planned, capacity_per_s, make_tenants, open_gateways, percentile, play, poisson

NUM_ENGINES = 4
NUM_GATEWAYS = 2
SPEED = 0.25
"""Of an A100: so slow that what is measured are queues, and not how fast this machine refuses."""
TIMES = 5.0
INTERACTIVE_RATIO = 0.3
"""Of the capacity: the top band is what must be served, so it is never more than there is."""
QUIET_RATIO = 0.3
QUIET_S = 5.0
MAX_WAITING = 200
MAX_WAIT_S = 4.0
TENANTS = {"top": "interactive", "middle": "standard", "low": "batch"}

MIN_GOODPUT_RATIO = 0.90
MIN_TOP_RATIO = 0.999
BACK_WITHIN_S = 10.0
RETRY_AFTER_RATIO = 0.25


async def watch_queue(gateways: list[Process], seen: list[float]) -> None:
    """How many wait in the fullest gateway, once a second until cancelled."""
    while True:
        found = [await asyncio.to_thread(metric, gateway, "flotilla_queue_waiting") for gateway in gateways]
        seen.append(max(found))
        await asyncio.sleep(1.0)


def retry_errors(came: list[Came]) -> tuple[list[float], int]:
    """(told - true) / true of refusals that somebody follows, and how many nobody does."""
    found, alone = list[float](), 0
    for own in grouped(came).values():
        out = sorted(
            (one.reply.asked_s, (one.header("x-flotilla-queue-ms") or 0.0) / 1e3) for one in own if one.reply.is_complete
        )
        for one in own:
            told_ms = one.header("retry-after-ms") if one.reply.status == 503 else None
            if told_ms is None:
                continue
            place = bisect(out, (one.reply.ended_s, 0.0))
            if place == len(out):
                alone += 1
                continue
            true_s = max(sum(out[place]) - one.reply.ended_s, 1e-3)
            found.append((told_ms / 1e3 - true_s) / true_s)
    return found, alone


def grouped(came: list[Came]) -> dict[tuple[str, str], list[Came]]:
    """By tenant and gateway."""
    groups: dict[tuple[str, str], list[Came]] = {}
    for one in came:
        groups.setdefault((one.planned.tenant, one.gateway), []).append(one)
    return groups


async def drill(site: Site, lasts_s: float, seed: int) -> list[Row]:
    """Peak, quiet, overload, quiet."""
    site.serve_by(site.start_twins(NUM_ENGINES, "--speed", str(SPEED)))
    gateways = open_gateways(site, NUM_GATEWAYS, "engine-small", max_waiting=MAX_WAITING, max_wait_s=MAX_WAIT_S)
    keys = make_tenants(gateways[0], TENANTS)
    peak_per_s = await capacity_per_s(gateways[0], keys["middle"], NUM_ENGINES, seed)
    print(f"{NUM_ENGINES} engines serve {peak_per_s:.1f} requests/s", flush=True)
    rng = random.Random(seed)
    quiet = poisson(rng, "top", QUIET_RATIO * peak_per_s, QUIET_S)
    rest_per_s = (TIMES - INTERACTIVE_RATIO) * peak_per_s / 2
    ends_s = QUIET_S + lasts_s
    plan: list[Planned] = [*quiet, *poisson(rng, "top", INTERACTIVE_RATIO * peak_per_s, lasts_s, QUIET_S)]
    plan += [one for tenant in ("middle", "low") for one in poisson(rng, tenant, rest_per_s, lasts_s, QUIET_S)]
    plan += poisson(rng, "top", QUIET_RATIO * peak_per_s, BACK_WITHIN_S + QUIET_S, ends_s)
    seen: list[float] = []
    watching = asyncio.create_task(watch_queue(gateways, seen))
    came = await play(gateways, keys, plan, seed)
    watching.cancel()
    before = [one for one in came if one.planned.at_s < QUIET_S]
    during = [one for one in came if QUIET_S <= one.planned.at_s < ends_s]
    after = [one for one in came if one.planned.at_s >= ends_s + BACK_WITHIN_S]
    return judge(peak_per_s, lasts_s, before, during, after, came, max(seen, default=0.0))


def judge(
    peak_per_s: float,
    lasts_s: float,
    before: list[Came],
    during: list[Came],
    after: list[Came],
    came: list[Came],
    most_waiting: float,
) -> list[Row]:
    """The figures, and whether they hold."""
    began_s = min(one.reply.asked_s for one in during)
    ended = [one for one in came if one.reply.is_complete and began_s <= one.reply.ended_s < began_s + lasts_s]
    goodput_ratio = len(ended) / lasts_s / peak_per_s
    top = [one for one in during if one.planned.tenant == "top"]
    top_ratio = sum(one.reply.is_complete for one in top) / len(top)
    silent = sum(not one.reply.is_complete and one.reply.code != "overloaded" for one in came)
    base_s, back_s = (percentile([one.ttft_s for one in some if one.reply.is_complete], 0.5) for some in (before, after))
    errors, alone = retry_errors(during)
    error = median(map(abs, errors)) if errors else 1.0
    low = sum(one.reply.is_complete for one in during if one.planned.tenant == "low")
    return [
        Row("peak_per_s", peak_per_s, "", holds=True),
        Row("asked_per_s", len(during) / lasts_s, "", holds=True),
        Row("goodput_ratio_of_peak", goodput_ratio, f">= {MIN_GOODPUT_RATIO}", goodput_ratio >= MIN_GOODPUT_RATIO),
        Row("top_band_served_ratio", top_ratio, f">= {MIN_TOP_RATIO}", top_ratio >= MIN_TOP_RATIO),
        Row("lowest_band_served", low, "> 0", low > 0),
        Row("most_waiting_at_a_gateway", most_waiting, f"<= {MAX_WAITING}", most_waiting <= MAX_WAITING),
        Row("ended_without_stated_refusal", silent, "0", not silent),
        Row("ttft_p50_before_ms", base_s * 1e3, "", holds=True),
        Row("ttft_p50_from_10_s_after_ms", back_s * 1e3, "<= 1.2 x before", back_s <= 1.2 * base_s),
        Row("retry_after_error_ratio_median", error, f"<= {RETRY_AFTER_RATIO}", error <= RETRY_AFTER_RATIO),
        Row("retry_after_bias_ratio_median", median(errors) if errors else 1.0, "", holds=True),
        Row("retry_after_judged", len(errors), "> 0", bool(errors)),
        Row("retry_after_not_judged", alone, "", holds=True),
    ]


def main() -> int:
    """The drill."""
    title = f"{TIMES:g} times the peak, {NUM_ENGINES} twins, {NUM_GATEWAYS} gateways"
    return run(__doc__, drill, title, seconds=300.0, seconds_help="of overload")


if __name__ == "__main__":
    sys.exit(main())
