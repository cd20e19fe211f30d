"""Measures what is left of a class that is asked for five times what it can do: by `make drill-overload`.

Real gateway processes on an emulated AWS and a real Valkey, before twins that keep the time of A100s at half speed. First the
peak is measured, by a closed loop that keeps all slots busy; then a quiet load; then five times the peak, open loop, of which the
`interactive` band asks for 0.3 of a peak and `standard` and `batch` the rest; then the quiet load again. Prints a table and one
line of JSON; exits 1 where something does not hold. `ARGS="--seconds 20"` is short.

Whether a Retry-After was true is told by who was let in: a request of the same band and tenant that came at nearly the same time
and was served says how long the wait really was. Refusals without such a neighbour within 0.25 s are not judged, and counted.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import sys
import tempfile
from pathlib import Path
from statistics import median

import uvloop

from tests.drills.drill_fairness import NUM_ENGINES, SPEED, Row, report
from tests.drills.engine_fleet import Process, Site, metric, running_site
from tests.drills.queue_load import Came, Planned, capacity_per_s, make_tenants, open_gateways, percentile, play, poisson

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
NEAR_S = 0.25


async def watch_queue(gateways: list[Process], seen: list[float]) -> None:
    """How many wait in the fullest gateway, once a second until cancelled."""
    while True:
        found = [await asyncio.to_thread(metric, gateway, "flotilla_queue_waiting") for gateway in gateways]
        seen.append(max(found))
        await asyncio.sleep(1.0)


def retry_errors(came: list[Came]) -> tuple[list[float], int]:
    """|told - true| / true of refusals that have a neighbour, and how many have none."""
    found, alone = list[float](), 0
    for tenant in TENANTS:
        own = sorted((one for one in came if one.planned.tenant == tenant), key=lambda one: one.reply.asked_s)
        waits = [(one.reply.asked_s, one.header("x-flotilla-queue-ms")) for one in own if one.reply.is_complete]
        for one in own:
            told_ms = one.header("retry-after-ms") if one.reply.status == 503 else None
            if told_ms is None:
                continue
            at_s, true_ms = min(waits, key=lambda each: abs(each[0] - one.reply.asked_s), default=(0.0, None))
            if true_ms and abs(at_s - one.reply.asked_s) <= NEAR_S:
                found.append(abs(told_ms - true_ms) / true_ms)
            else:
                alone += 1
    return found, alone


async def drill(site: Site, lasts_s: float, seed: int) -> list[Row]:
    """Peak, quiet, overload, quiet."""
    site.serve_by(site.start_twins(NUM_ENGINES, "--speed", str(SPEED)))
    gateways = open_gateways(site, 2, "engine-small", max_waiting=MAX_WAITING, max_wait_s=MAX_WAIT_S)
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
    error = median(errors) if errors else 1.0
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
        Row("retry_after_judged", len(errors), "> 0", bool(errors)),
        Row("retry_after_not_judged", alone, "", holds=True),
    ]


def main() -> int:
    """The drill."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=300.0, help="of overload")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with tempfile.TemporaryDirectory() as folder, running_site(Path(folder)) as site:
        rows = uvloop.run(drill(site, given.seconds, given.seed))
    title = f"{TIMES:g} times the peak for {given.seconds:g} s, {NUM_ENGINES} twins, 2 gateways, seed {given.seed}"
    return report(rows, title, given.seed)


if __name__ == "__main__":
    sys.exit(main())
