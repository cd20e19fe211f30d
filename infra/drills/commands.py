"""`flotilla drill`: losses on two local regions of their own, with figures and a picture of what follows."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from serving.target import state_dir

if TYPE_CHECKING:
    from infra.drills.figures import Part

drill = typer.Typer(no_args_is_help=True, help="Lose something on purpose, here, on twins: region-loss.")


@drill.callback()
def _group() -> None:
    """Keeps the subcommand's name where there is one alone."""


def register(app: typer.Typer) -> None:
    """Adds the group to the command line."""
    app.add_typer(drill, name="drill")


@drill.command("region-loss")
def region_loss(
    per_s: Annotated[
        float | None, typer.Option(min=1, help="Requests a second. [default: 60 % of what one region bears]")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=10, help="Times the usual lengths of its phases.")] = 1.0,
    kills: Annotated[
        bool, typer.Option("--kills", help="Then lose it again, and kill `failover run` within and after every step.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the load.")] = 1,
    report: Annotated[
        Path | None, typer.Option(help="Folder of the report. [default: drills/region-loss beside the state]")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the regions' folder, with the logs of every process.")] = False,
) -> None:
    """Two regions of twins under load; one loses power and AWS, is left by the runbook, and comes back. About three minutes.

    They run in a folder and on ports of their own, beside whatever you have up. Prints a table and one line of JSON; exit code 1
    where a promise does not hold.
    """
    from infra.drills.live import LiveView
    from infra.drills.region_loss import Size, drill, judged
    from infra.drills.two_regions import two_regions

    console = Console(soft_wrap=True)
    with LiveView(console) as view:
        view.say("two regions of twins start")
        with two_regions(keep=keep) as regions:
            if keep:
                view.say(f"they are in {regions.root}")
            story = drill(regions, Size(seconds, per_s, seed, kills), view)
    parts = judged(story)
    folder = (report or state_dir().parent / "drills" / "region-loss").absolute()
    _write(folder, story, parts)
    from infra.drills.figures import table_of

    Console(width=None if console.is_terminal else 180).print(table_of(parts))
    console.print(f"report: {folder / 'report.md'}, {folder / 'timeline.svg'}", highlight=False)
    holds = all(part.holds for part in parts)
    figures: dict[str, Any] = {name: value for part in parts for name, value in part.figures.items()}
    typer.echo(json.dumps({"drill": "region-loss", "seed": seed, **_machine(), **figures, "holds": holds}))
    if not holds:
        raise typer.Exit(1)


def _write(folder: Path, story: Any, parts: list[Part]) -> None:
    from infra.drills.region_loss import begun, marks
    from infra.drills.timeline import timeline

    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{what.strip()}: {shown}" for part in parts for what, shown, holds in part.rows if holds is not None]
    title = "region-loss: us-east-2 loses power and AWS under load"
    (folder / "timeline.svg").write_text(timeline(title, begun(story), marks(story), lines))
    table = ["| part | what | shown | holds |", "|---|---|---|---|"]
    for part in parts:
        for what, shown, holds in part.rows:
            table.append(f"| {part.name} | {what.strip()} | {shown} | {'' if holds is None else 'yes' if holds else 'NO'} |")
    machine = ", ".join(f"{name} {value}" for name, value in _machine().items())
    told = [f"- {mark.at_s:+.1f} s: {mark.what}" for mark in marks(story)]
    text = ["# Drill: a region is lost", "", "![timeline](timeline.svg)", "", *told, "", *table, "", f"Machine: {machine}.", ""]
    (folder / "report.md").write_text("\n".join(text))


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
