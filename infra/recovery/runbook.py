"""`docs/runbook.md`, from the steps that run: `python -m infra.recovery.runbook > docs/runbook.md`. A test compares them."""

from __future__ import annotations

from collections.abc import Sequence

from infra.recovery import failback, failover
from infra.recovery.failover import DRAIN_S, MAX_CLOCK_ERROR_S
from infra.recovery.guard import ALLOWED
from infra.recovery.record import LEASE_S
from infra.recovery.step import Step
from policies.failover.capacity import SHED_ORDER
from policies.failover.reports import FRESH_S

SHORT = """\
# Runbook: a region is lost

Written from `infra/recovery/`, whose steps are what runs; `python -m infra.recovery.runbook` writes it anew.

## Short version

```console
$ export AWS_PROFILE=responder FLOTILLA_API_KEY=…       # a key that may use every class
$ flotilla failover plan us-east-2 --env prod           # what the others carry of it, who would be shed; changes nothing
$ flotilla failover run us-east-2 --env prod --reason "no power"
$ flotilla failover status us-east-2 --env prod
$ flotilla failover failback us-east-2 --env prod       # hours later, when it is well
```

You need this repository, a Python environment (`make setup`) and the responder's role. You need nothing of the lost region, no Pulumi, no
Kubernetes and no control plane of AWS. Every command may be interrupted, killed and run again; a second operator is told who runs it. With `--step`,
`run` and `failback` ask before each step.

## What you see, and what you do

| you see | you do |
|---|---|
| a region does not answer, health checks have taken it out | nothing at once: clients are served by the others. `plan`, then `run`: it makes room, freezes deploys and accounts for usage |
| a region answers, and answers nonsense, slowly, or in part | `run`: health checks do not see this. Its streams may end by themselves |
| one class of one region has no engines | not this: the class answers 503 there. See `flotilla status`, the releases, the node pools |
| `run` says that the survivors cannot carry it | `plan` shows who would be shed ({shed}, in this order); `--accept-shedding` if that is better than what you have |
| `run` stopped at a step | read its line, mend it, run the same command again: it goes on from there |
| it was a mistake, and the run is not over | `flotilla failover abort REGION` |
| it was a mistake, and the run is over | `flotilla failover failback REGION` |
| two regions look bad | one at a time. The second evacuation has no effect while the first holds: somebody must serve |
| two regions were failed over at once, as neither could see the other | nothing is lost: health checks send to both until they see each other, then the first is out. `failback` of the second, then of the first |
| `credentials have expired`, `clock is wrong` | what it says; then the same command again |

## What it writes

Items in the `failover` table of one surviving region, and nothing else, anywhere. It may call {calls}, and gateways of surviving regions;
anything else is refused as it is tried, with the step's name.

| item | who obeys |
|---|---|
| `control <region>` | gateways of survivors tell it to health checks at `/controls/<region>`, within 2 s |
| `floor <region>#<class>` | the scaling policy's leader in that region, at its next look |
| `takeover <region>` | shippers of the region that is named in it, within 5 s |
| `freeze deploys` | `flotilla deploy` and the deploy workflows |
| `run <region>` | nobody: it is the record. Its lease is {lease:.0f} s |

A report of a region counts for {fresh:.0f} s; this machine's clock may be wrong by {clock:.0f} s.
"""

DRILLS = """\
## How to drill

```console
$ flotilla drill region-loss                                          # two regions of twins of their own, under load; about three minutes
$ flotilla drill region-loss --kills                                  # and `run` is killed within and after every step; about two more
$ flotilla drill partition                                            # nothing passes between the two for five minutes; both are failed over
$ flotilla drill slow-region                                          # a region that answers, slowly: health checks stay, `run` ends it
$ flotilla drill cache-loss                                           # less than a region: nothing to be done; likewise az-loss
```

The first takes one region's power and its AWS, runs this runbook as a process of its own, gives the region back and holds every bill against
what clients and twins saw. In a partition two operators, one on each side, leave each other's region. Each prints a table, writes a report with
a timeline, and exits 1 where a promise does not hold. What AWS adds to health checks, names and replication is on a simulated clock, and marked
so. Step by step, on regions that you have up:

```console
$ flotilla up --region us-east-2 --region us-west-2 --engine twin     # two regions on this machine
$ flotilla failover plan us-east-2
$ flotilla failover run us-east-2 --dry-run                           # looks at everything, writes nothing; the record has the same shape
$ flotilla failover run us-east-2 --reason drill
$ flotilla failover failback us-east-2
```

`flotilla fault kill us-east-2`, `flotilla fault cut us-west-2 --of us-east-2` and `flotilla fault partition us-west-2` harm one of them,
`flotilla fault heal` ends it. The emulated AWS is one process for both regions: a cut stands for its loss. In production, drill by `run` and
`failback` of a region that is well, at a quiet hour: it drains, for {drain:.0f} s at most, and nothing is cut. Backups are drilled by `flotilla restore ledger|registry --drop` and
`flotilla restore state --dry-run` ([when to use which](operations.md#restore-from-a-backup)). The unit tests lose a region, kill the run after every write, and plant forbidden
calls (`tests/infra/recovery/`).
"""


def text() -> str:
    """The whole document."""
    calls = ", ".join(f"{service}:{name}" for service, names in ALLOWED.items() for name in sorted(names))
    short = SHORT.format(shed=", ".join(SHED_ORDER), calls=calls, lease=LEASE_S, fresh=FRESH_S, clock=MAX_CLOCK_ERROR_S)
    parts = [
        short,
        _steps("Failover, step by step", "flotilla failover run REGION", failover.STEPS),
        _steps("Failback, step by step", "flotilla failover failback REGION", failback.STEPS),
        DRILLS.format(drain=DRAIN_S),
    ]
    return "\n".join(parts)


def _steps(title: str, command: str, steps: Sequence[Step]) -> str:
    lines = [f"## {title}", "", f"All of them by `{command}`.", ""]
    for number, step in enumerate(steps, 1):
        lines += [
            f"### {number}. {step.name}",
            "",
            f"{step.does} {step.why}",
            "",
            "| | |",
            "|---|---|",
            f"| takes | {step.takes} |",
            f"| you see | {step.expect} |",
            f"| if not seen | {_limit(step)} |",
            f"| when it fails | {step.if_it_fails} |",
            f"| to undo it | {step.to_undo} |",
            "",
        ]
    return "\n".join(lines)


def _limit(step: Step) -> str:
    return f"within {step.timeout_s:.0f} s, the run {'stops here' if step.is_essential else 'goes on, and the report says so'}"


if __name__ == "__main__":
    print(text(), end="")  # noqa: T201 (it is what this module is for)
