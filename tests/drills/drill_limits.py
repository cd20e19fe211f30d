"""Drills the limits on a real Valkey, through the limiter that gateways use: by `make drill-limits`.

    storm     eight processes reserve and settle at random for the same tenants and keys: nothing is let in beyond a limit
    control   the same by check-then-charge; the same check must fail
    cancels   requests cancelled at random: no reservation is left when their leases have run out
    stopped   four gateways whose cache gets SIGSTOP for ten seconds, under fifty times what the rate lets in
    killed    the same with SIGKILL, and a cache that comes back empty

Prints a table and one line of JSON; exits 1 where something does not hold.
`ARGS="--operations 20000 --cancels 500 --lease 3 --outage 3"` is short.
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import sys
import time

import uvloop

from tests.drills import limits_storm
from tests.drills.drill_frame import Row, report
from tests.drills.limits_cancels import cancels
from tests.drills.limits_outage import outage
from tests.drills.limits_storm import SEATS, limits_of, rounded
from tests.drills.limits_truth import Truth
from tests.drills.local_valkey import Valkey

CONTROL_RATIO = 0.05
MIN_CONTROL = 20_000


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--operations", type=int, default=1_000_000, help="of the storm")
    options.add_argument("--cancels", type=int, default=10_000, help="requests that are cancelled")
    options.add_argument("--lease", type=float, default=60.0, help="seconds that a lease lasts in the part `cancels`")
    options.add_argument("--outage", type=float, default=10.0, help="seconds without the cache, twice")
    options.add_argument("--seed", type=int, default=1)
    return options.parse_args(arguments)


def drill(given: argparse.Namespace) -> list[Row]:
    """All parts, one after another; the end of the leases of `cancels` is waited for beside the outages."""
    with Valkey() as valkey:
        rows = storm(valkey, given.operations, given.seed)
        control = max(MIN_CONTROL, int(given.operations * CONTROL_RATIO))
        truth = limits_storm.storm(valkey.url, control, given.seed, is_control=True)
        over = beyond(truth, control)
        print(f"control: {truth.num_operations} operations, over {over}", flush=True)
        rows.append(Row("control_num_over_admitted", sum(over.values()), "> 0", sum(over.values()) > 0))

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with Valkey() as apart, Valkey() as valkey:

        def cancel() -> None:
            queue.put(uvloop.run(cancels(apart.url, given.cancels, given.seed, lease_s=given.lease)))

        process = context.Process(target=cancel)
        process.start()
        time.sleep(given.cancels / 1000)  # they are over then, and do not take the outages' time
        for label, sign in (("stopped", signal.SIGSTOP), ("killed", signal.SIGKILL)):
            rows += outage(valkey, label, sign, given.outage, given.seed)
            print(f"{label}: done", flush=True)
        rows += queue.get()
        process.join()
    return rows


def storm(valkey: Valkey, num_operations: int, seed: int) -> list[Row]:
    """The storm, and what it let in beyond limits."""
    began_s = time.monotonic()
    truth = limits_storm.storm(valkey.url, num_operations, seed, is_control=False)
    took_s = time.monotonic() - began_s
    over = beyond(truth, num_operations)
    print(f"storm: {truth.num_operations} operations in {took_s:.0f} s, over {over}", flush=True)
    most = truth.most_running.get("seats", 0)
    least = min(len(truth.ran.get(name, [])) for name in limits_of(num_operations))
    return [
        Row("storm_num_operations", truth.num_operations, f">= {num_operations}", truth.num_operations >= num_operations),
        Row("storm_num_over_admitted", sum(over.values()), "0", not any(over.values())),
        Row("storm_num_decided_alone", truth.num_alone, "0", not truth.num_alone),
        Row("storm_most_at_once", most, f"<= {SEATS}", 0 < most <= SEATS),
        Row("storm_num_let_in_by_each_account_at_least", least, "> 0", least > 0),
        Row("storm_operations_per_s", truth.num_operations / took_s, "", holds=True),
    ]


def beyond(truth: Truth, num_operations: int) -> dict[str, int]:
    """What was let in beyond each limit."""
    return truth.over(limits_of(rounded(num_operations)))


def main() -> int:
    """The drill."""
    given, began_s = parse(sys.argv[1:]), time.monotonic()
    rows = drill(given)
    rows.append(Row("took_s", time.monotonic() - began_s, "", holds=True))
    title = f"{given.operations} operations, {given.cancels} cancels, {given.outage:g} s without the cache, seed {given.seed}"
    return report(rows, title, given.seed)


if __name__ == "__main__":
    sys.exit(main())
