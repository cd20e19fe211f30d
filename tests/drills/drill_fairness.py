"""Measures what one tenant that floods takes from 199 others: by `make drill-fairness`.

Real gateway processes, one and then four, on an emulated AWS and a real Valkey, before twins that keep the time of A100s. Of 200
tenants 199 ask at random at 0.85 of their share of the capacity, first alone; then the same again beside one that asks 50 times
its share in bursts (gamma gaps, coefficient of variation 13). A share is the measured capacity over 200. Prints a table and one
line of JSON; exits 1 where something does not hold. `ARGS="--seconds 15"` is short.

Jain's index is of what each tenant got over what it was entitled to: what it asked for, but no more than its share.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter

from tests.drills.drill_frame import Row, run
from tests.drills.engine_fleet import Site
from tests.drills.queue_load import Came, capacity_per_s, make_tenants, open_gateways, percentile, play, poisson, renewals

NUM_TENANTS = 200
NUM_ENGINES = 4
SPEED = 0.35
"""Of an A100: what is measured is then further from what this machine adds."""
LOAD_RATIO = 0.85
TIMES_ITS_SHARE = 50
VARIATION = 13.0
FLOOD = "flood"

MAX_P99_RATIO = 1.20
MIN_JAIN = 0.95
MAX_TTFT_S = 2.0


def jain(values: list[float]) -> float:
    """1 where all are equal, 1/n where one has everything.

    (sum x)^2 / (n sum x^2), Jain, Chiu and Hawe 1984.
    """
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


def judge(label: str, alone: list[Came], beside: list[Came], share: float) -> list[Row]:
    """What the others got beside the flood, against alone."""
    others = [one for one in beside if one.planned.tenant != FLOOD]
    p99_s = [percentile([one.ttft_s for one in group if one.reply.is_complete], 0.99) for group in (alone, others)]
    asked = Counter(one.planned.tenant for one in beside)
    had = Counter(one.planned.tenant for one in beside if one.reply.is_complete)
    entitled = {tenant: min(float(num), share) for tenant, num in asked.items()}
    fairness = jain([min(had[tenant], due) / due for tenant, due in entitled.items()])
    worst_s = max((one.ttft_s for one in others if one.reply.is_complete), default=0.0)
    lost = sum(not one.reply.is_complete for one in others)
    ratio = p99_s[1] / p99_s[0]
    return [
        Row(f"{label}_others_ttft_p99_alone_ms", p99_s[0] * 1e3, "", holds=True),
        Row(f"{label}_others_ttft_p99_ms", p99_s[1] * 1e3, "", holds=True),
        Row(f"{label}_others_ttft_p99_ratio", ratio, f"<= {MAX_P99_RATIO}", ratio <= MAX_P99_RATIO),
        Row(f"{label}_jain_index", fairness, f">= {MIN_JAIN}", fairness >= MIN_JAIN),
        Row(f"{label}_others_ttft_max_s", worst_s, f"<= {MAX_TTFT_S}", worst_s <= MAX_TTFT_S),
        Row(f"{label}_others_not_served", lost, "0", not lost),
        Row(f"{label}_flood_asked", asked[FLOOD], "> 0", asked[FLOOD] > 0),
        Row(f"{label}_flood_served_ratio", had[FLOOD] / max(asked[FLOOD], 1), "", holds=True),
    ]


async def drill(site: Site, lasts_s: float, seed: int) -> list[Row]:
    """Alone and beside the flood, at one gateway and at four."""
    site.serve_by(site.start_twins(NUM_ENGINES, "--speed", str(SPEED)))
    others = [f"t{number}" for number in range(1, NUM_TENANTS)]
    one = open_gateways(site, 1, "engine-small")
    keys = make_tenants(one[0], dict.fromkeys([*others, FLOOD], "standard"))
    per_s = await capacity_per_s(one[0], keys[FLOOD], NUM_ENGINES, seed)
    share_per_s = per_s / NUM_TENANTS
    print(f"{NUM_ENGINES} engines serve {per_s:.1f} requests/s", flush=True)

    rows = [Row("capacity_per_s", per_s, "", holds=True)]
    for gateways in (one, [*one, *open_gateways(site, 3, "engine-small")]):
        rng = random.Random(seed)
        label = f"gateways_{len(gateways)}"
        plan = [each for tenant in others for each in poisson(rng, tenant, LOAD_RATIO * share_per_s, lasts_s)]
        flood = renewals(rng, FLOOD, TIMES_ITS_SHARE * share_per_s, lasts_s, VARIATION)
        alone = await play(gateways, keys, plan, seed)
        print(f"{label}: {len(plan)} requests of {len(others)} tenants alone", flush=True)
        await asyncio.sleep(2.0)
        beside = await play(gateways, keys, [*plan, *flood], seed + 1)
        print(f"{label}: beside {len(flood)} of one tenant", flush=True)
        await asyncio.sleep(2.0)
        rows += judge(label, alone, beside, share_per_s * lasts_s)
    return rows


def main() -> int:
    """The drill."""
    title = f"{NUM_TENANTS} tenants, {NUM_ENGINES} twins"
    return run(__doc__, drill, title, seconds=60.0, seconds_help="of load, four times")


if __name__ == "__main__":
    sys.exit(main())
