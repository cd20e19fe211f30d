"""`flotilla fault`: takes a local region's power, its way to AWS, or its neighbours, and gives them back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.embedded import faults
from infra.embedded.commands import StateOption
from infra.embedded.faults import Cut, Mode, RegionFaults
from infra.embedded.state import State
from serving.errors import UserError
from serving.target import state_dir

fault = typer.Typer(no_args_is_help=True, help="Harm a region on this machine, to see what follows: kill, cut, partition, heal.")
RegionArgument = Annotated[str, typer.Argument(metavar="REGION", help="A region that is up here.")]


def register(app: typer.Typer) -> None:
    """Adds the group to the command line."""
    app.add_typer(fault, name="fault")


@fault.command()
def kill(region: RegionArgument, state: StateOption = None) -> None:
    """Take the region's power: SIGKILL to every process of it, and none starts until `heal`. Its volumes stay."""
    folder = _folder(state, region)
    before = faults.read(faults.path_of(folder, region))
    faults.plant(folder, region, RegionFaults(cuts=before.cuts, is_killed=True))
    typer.echo(f"{region} has no power")


@fault.command()
def cut(
    region: RegionArgument,
    of: Annotated[str, typer.Option("--of", help="Whose AWS it cannot reach. [default: every region's]")] = "",
    service: Annotated[str, typer.Option(help="One service, such as dynamodb or s3. [default: all]")] = "",
    mode: Annotated[Mode, typer.Option(help="How.")] = Mode.RESET,
    state: StateOption = None,
) -> None:
    """Cut the region's way to AWS, beside what is cut already."""
    folder = _folder(state, region)
    before = faults.read(faults.path_of(folder, region))
    cuts = tuple(dict.fromkeys((*before.cuts, Cut(region=of, service=service, mode=mode))))
    faults.plant(folder, region, RegionFaults(cuts=cuts, is_killed=before.is_killed))
    typer.echo(f"{region} cannot reach {service or 'AWS'}{f' of {of}' if of else ''} ({mode})")


@fault.command()
def partition(region: RegionArgument, state: StateOption = None) -> None:
    """Let nothing pass between the region and the others within AWS: neither calls nor replication. All go on serving."""
    folder = _folder(state, region)
    others = sorted(_up(folder) - {region})
    if not others:
        raise UserError(f"{region} is up alone here", "start another with `flotilla up --region us-east-2 --region us-west-2`")
    faults.partition(folder, region, others)
    typer.echo(f"nothing passes between {region} and {', '.join(others)}; `flotilla fault heal` each of them to end it")


@fault.command()
def heal(region: RegionArgument, state: StateOption = None) -> None:
    """End every fault of the region: it has power and its way to AWS again."""
    faults.heal(_folder(state, region), [region])
    typer.echo(f"{region} has no fault")


def _folder(state: Path | None, region: str) -> State:
    """The folder of what is up.

    Raises:
        UserError: nothing is up, or not this region.
    """
    folder = State(state or state_dir())
    known = _up(folder)
    if region not in known:
        up = ", ".join(sorted(known)) or "nothing"
        raise UserError(f"{region} is not up here ({up} is)", f"start it with `flotilla up --region {region}`")
    return folder


def _up(folder: State) -> set[str]:
    return {workload.region for workload in folder.desired().workloads} - {""} if folder.agent_pid() else set()
