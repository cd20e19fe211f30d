"""One policy, four consumers: the same load for the simulated policy, for the real KEDA and HPA, and for `flotilla up`'s scaler.

Run by `make drill-scaling`; needs what `make kube-assets` builds. A series (ramp, spike, silence, recovery, scale-in) runs
fifteen times as fast as in production: the leader looks and the HPA syncs each second in place of each fifteen, and every window
of the policy is a fifteenth. Prints a picture, a table and one line of JSON; exits 1 where at any moment a trajectory lies
further than one replica beyond what the simulated one was within one sync before and after. One sync is what it took, measured
by when the HPA asks: it waits its period after it is done, and what it does takes as long as in production.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from policies.autoscaling.policy import Limits, ScalingPolicy
from tests.bench.bench_report import machine
from tests.drills.scaling_realisers import realised
from tests.drills.scaling_series import LOOK_S, Agreement, Phase, Series, agreements, changes, picture, simulated

from kube_assets.build import AssetsError, locate  # isort: skip (beside the control plane, found by scaling_realisers)

SPEED = 15.0
TARGET = 32
START = 4
# Stale after two and a half looks in place of three, which a clock's last digit would decide.
POLICY = ScalingPolicy(target_in_flight=TARGET, stale_after_s=37.5).shortened(SPEED)
LIMITS = Limits(floor=2, max_base=30)
SERIES = Series(
    (
        Phase("ramp", 24, 3 * TARGET, 12 * TARGET),
        Phase("spike", 16, 24 * TARGET),
        Phase("silence", 20, None),
        Phase("recovery", 20, 16 * TARGET),
        Phase("scale-in", 130, 2 * TARGET),
    )
)


def main() -> int:
    """The drill."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--short", action="store_true", help="no more than a taste of each phase")
    given = options.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    series = Series(tuple(Phase(it.name, it.lasts_s / 3, it.begin, it.end) for it in SERIES.phases)) if given.short else SERIES
    try:
        assets = locate()
    except AssetsError as error:
        print(error, file=sys.stderr)
        return 2

    sync_s = LOOK_S / SPEED
    console.print(f"{series.lasts_s:.0f} s of load under KEDA and the local scaler, {SPEED:g} times as fast; {machine()}")
    expected = simulated(series, POLICY, LIMITS, START, sync_s)
    with tempfile.TemporaryDirectory(prefix="drill-scaling-") as folder:
        try:
            found, took_s = realised(series, POLICY, LIMITS, START, sync_s, assets, Path(folder))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
    for line in picture(series, [expected, *found]):
        console.print(line)

    compared = {one.name: agreements(series, one, expected, took_s) for one in found}
    console.print(_table(compared, took_s))
    reversals = {one.name: changes(one) for one in (expected, *found)}
    holds = all(each.max_apart <= 1 for all_ in compared.values() for each in all_)
    print(
        json.dumps(
            {
                "drill": "scaling",
                "speed": SPEED,
                "sync_s": sync_s,
                "sync_measured_s": round(took_s, 2),
                "series_s": series.lasts_s,
                "agreements": {name: [asdict(each) for each in all_] for name, all_ in compared.items()},
                "turns": reversals,
                "machine": machine(),
                "holds": holds,
            }
        )
    )
    return 0 if holds else 1


def _table(compared: dict[str, list[Agreement]], sync_s: float) -> Table:
    title = f"against the simulated policy, within one sync ({sync_s:.2f} s)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("scaler", "phase", "replicas apart, most", "time more than one apart", "lag for one replica, s"):
        table.add_column(name, justify="left" if name in ("scaler", "phase") else "right")
    for name, all_ in compared.items():
        for each in all_:
            table.add_row(
                name,
                each.phase,
                str(each.max_apart),
                f"{each.apart_ratio:.1%}",
                "more than ten syncs" if each.lag_s is None else f"{each.lag_s:.2f}",
            )
    return table


if __name__ == "__main__":
    sys.exit(main())
