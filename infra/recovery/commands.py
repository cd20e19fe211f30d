"""`flotilla failover`: a region is lost, or must be left. Reads and writes in the surviving regions alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.naming import LOCAL
from infra.recovery.operations import Plan, Recovery
from infra.recovery.record import Kind, RunRecord, State, StepRecord
from infra.recovery.step import Step
from policies.failover.capacity import SHED_ORDER

failover = typer.Typer(
    no_args_is_help=True,
    help=(
        "Leave a region, and come back to it: plan, run, status, abort, failback. It needs nothing of that region, no Pulumi "
        "and no control plane. Each command may be killed and run again. docs/runbook.md has it step by step."
    ),
)

LostArgument = Annotated[str, typer.Argument(metavar="REGION", help="The region that is lost, or that you mean to leave.")]
EnvOption = Annotated[str, typer.Option("--env", help="Which environment.")]
FromOption = Annotated[
    str | None, typer.Option("--from", help="The surviving region to write to. [default: the first that answers]")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Kept in the record and in the region's control.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Look at everything, write nothing; the record has the same shape.")]
StepOption = Annotated[
    bool, typer.Option("--step", help="Ask before each step; after a no, the same command goes on from there.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]

STYLES: Mapping[State, str] = {
    State.RUNNING: "cyan",
    State.DONE: "green",
    State.UNVERIFIED: "yellow",
    State.FAILED: "bold red",
    State.PLANNED: "blue",
    State.UNDONE: "magenta",
    State.ABORTED: "magenta",
}


def register(app: typer.Typer) -> None:
    """Adds the group to the command line."""
    app.add_typer(failover, name="failover")


@failover.command()
def plan(region: LostArgument, env: EnvOption = LOCAL, seat: FromOption = None, as_json: JsonOption = False) -> None:
    """Show what the region carries, what the others would carry of it, and who would be shed. Changes nothing."""
    found = _recovery(env, seat).plan(region)
    if as_json:
        typer.echo(
            json.dumps({"lost": region, "committed": list(found.committed), "classes": [asdict(one) for one in found.classes]})
        )
    else:
        _print_plan(found)


@failover.command()
def run(
    region: LostArgument,
    env: EnvOption = LOCAL,
    seat: FromOption = None,
    reason: ReasonOption = "lost",
    accept_shedding: Annotated[bool, typer.Option(help="Go on although the survivors cannot carry everything.")] = False,
    dry_run: DryOption = False,
    step: StepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take traffic out of the region, step by step. Run it again to go on where it stopped."""
    recovery = _recovery(env, seat, accept_shedding=accept_shedding, show=not as_json)
    recovery.confirm = _ask if step else recovery.confirm
    _print(recovery.failover(region, reason, is_dry_run=dry_run), as_json)


@failover.command()
def status(region: LostArgument, env: EnvOption = LOCAL, seat: FromOption = None, as_json: JsonOption = False) -> None:
    """Show the newest run for the region: its steps, their reasons and timings."""
    record = _recovery(env, seat).status(region)
    if record is not None:
        if not as_json:
            _print_steps(record)
        _print(record, as_json)
    else:
        typer.echo("null" if as_json else f"{region} has never been failed over")


@failover.command()
def abort(region: LostArgument, env: EnvOption = LOCAL, seat: FromOption = None, as_json: JsonOption = False) -> None:
    """Take back what an unfinished failover has done, the last step first."""
    _print(_recovery(env, seat, show=not as_json).abort(region), as_json)


@failover.command()
def failback(
    region: LostArgument,
    env: EnvOption = LOCAL,
    seat: FromOption = None,
    reason: ReasonOption = "it is well again",
    dry_run: DryOption = False,
    step: StepOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the region back once it is well: usage reconciled, traffic, floors, deploys."""
    recovery = _recovery(env, seat, show=not as_json)
    recovery.confirm = _ask if step else recovery.confirm
    _print(recovery.failback(region, reason, is_dry_run=dry_run), as_json)


def _recovery(env: str, seat: str | None, *, accept_shedding: bool = False, show: bool = False) -> Recovery:
    from infra.recovery.estate import load_estate
    from infra.recovery.step import Options

    options = Options(accept_shedding=accept_shedding, api_key=os.environ.get("FLOTILLA_API_KEY") or _local_key(env))
    recovery = Recovery(load_estate(env), options, seat)
    if show:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        recovery.on_step = lambda step: _print_step(console, step)
    return recovery


def _ask(step: Step) -> None:
    typer.confirm(f"{step.name}: {step.does} Go on?", default=True, abort=True, err=True)


def _local_key(env: str) -> str:
    """The demo tenant's key, where the region is on this machine."""
    if env != LOCAL:
        return ""
    path = Path(os.environ.get("FLOTILLA_STATE") or Path(".flotilla") / LOCAL) / "access.json"
    try:
        return str(json.loads(path.read_text())["api_key"])
    except (OSError, ValueError, KeyError):
        return ""


def _print_step(console: Console, step: StepRecord) -> None:
    line = Text(f"{step.state.upper():10} ", style=STYLES.get(step.state, "dim"))
    line.append(f"{step.name:16}", style="bold")
    if step.state is State.RUNNING:
        line.append(f" {step.seen}", style="dim")
    else:
        line.append(f" {step.took_s:5.1f} s ", style="dim")
        line.append(step.seen or step.reason, style="default")
    console.print(line)


def _print_steps(record: RunRecord) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for step in record.steps:
        _print_step(console, step)


def _print(record: RunRecord, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record.as_values()))
        return
    took_s = record.ended_at_s - record.started_at_s if record.ended_at_s else 0.0
    took = f", {took_s:.0f} s" if took_s else ""
    what = "failover" if record.kind is Kind.FAILOVER else "failback"
    typer.echo(f"{what} of {record.lost}: {record.state} (run {record.run_id}, recorded in {record.seat}, by {record.by}{took})")


def _print_plan(found: Plan) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    table = Table(title=f"Without {found.lost}: requests in flight", title_justify="left")
    for title in ("class", "wanted", "places now", "places at most", "floors", "shed until engines are ready", "shed for good"):
        table.add_column(title, overflow="fold")
    for one in found.classes:
        floors = ", ".join(f"{region} {count}" for region, count in one.engines.items()) or "–"
        cells: list[Any] = [
            one.model_class,
            one.wanted,
            one.places_now,
            one.places_most,
            floors,
            _bands(one.shed_now),
            _bands(one.shed_most),
        ]
        table.add_row(*map(str, cells))
    console.print(table)
    for line in found.committed:
        console.print(f"  {line}")
    console.print(f"  shed in this order: {', '.join(SHED_ORDER)}")


def _bands(shed: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {band}" for band, count in shed.items() if count) or "nobody"
