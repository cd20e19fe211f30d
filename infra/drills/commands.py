"""`flotilla drill`: losses on two local regions of their own, with figures and a picture of what follows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from serving.target import state_dir

if TYPE_CHECKING:
    from infra.drills.figures import Part
    from infra.drills.scene import Scene
    from infra.drills.timeline import Mark

drill = typer.Typer(
    no_args_is_help=True,
    help=(
        "Lose something on purpose, here, on two regions of twins, and see what clients and bills make of it. Each runs in a "
        "folder and on ports of its own, prints a table and one line of JSON, writes a report, and exits 1 where a promise does "
        "not hold."
    ),
)

PerSOption = Annotated[float, typer.Option(min=1, help="Requests a second, through the edge.")]
SecondsOption = Annotated[float, typer.Option(min=0.1, max=10, help="Times the usual lengths of its phases.")]
SeedOption = Annotated[int, typer.Option(help="Of the load.")]
ReportOption = Annotated[Path | None, typer.Option(help="Folder of the report. [default: drills/<drill> beside the state]")]
KeepOption = Annotated[bool, typer.Option("--keep", help="Keep the regions' folder, with the logs of every process.")]


def register(app: typer.Typer) -> None:
    """Adds the group to the command line."""
    app.add_typer(drill, name="drill")


@drill.command("region-loss")
def region_loss(
    per_s: Annotated[
        float | None, typer.Option(min=1, help="Requests a second. [default: 60 % of what one region bears]")
    ] = None,
    seconds: SecondsOption = 1.0,
    kills: Annotated[
        bool, typer.Option("--kills", help="Then lose it again, and kill `failover run` within and after every step.")
    ] = False,
    seed: SeedOption = 1,
    report: ReportOption = None,
    keep: KeepOption = False,
) -> None:
    """Two regions of twins under load; one loses power and AWS, is left by the runbook, and comes back. About three minutes.

    They run in a folder and on ports of their own, beside whatever you have up. Prints a table and one line of JSON; exit code 1
    where a promise does not hold.
    """
    from infra.drills.live import LiveView
    from infra.drills.region_loss import Size, begun, drill, judged, marks
    from infra.drills.two_regions import two_regions

    console = Console(soft_wrap=True)
    with LiveView(console) as view:
        view.say("two regions of twins start")
        with two_regions(keep=keep) as regions:
            if keep:
                view.say(f"they are in {regions.root}")
            story = drill(regions, Size(seconds, per_s, seed, kills), view)
    title = "region-loss: us-east-2 loses power and AWS under load"
    _finish("region-loss", "a region is lost", title, begun(story), marks(story), judged(story), seed, report, console)


@drill.command("partition")
def partition(
    per_s: PerSOption = 30.0,
    seconds: Annotated[float, typer.Option(min=20, max=1800, help="How long nothing passes between the regions.")] = 300.0,
    seed: SeedOption = 1,
    report: ReportOption = None,
    keep: KeepOption = False,
) -> None:
    """Nothing passes between the regions within AWS; both serve and write, and two operators act. About seven minutes.

    Cut are calls to the other region's AWS, and the replication of tables and buckets.
    """
    from infra.drills.live import LiveView
    from infra.drills.partition import Size, drill
    from infra.drills.partition_figures import begun, judged, marks
    from infra.drills.two_regions import two_regions

    console = Console(soft_wrap=True)
    with LiveView(console) as view:
        view.say("two regions of twins start")
        with two_regions(keep=keep) as regions:
            if keep:
                view.say(f"they are in {regions.root}")
            story = drill(regions, Size(seconds, per_s, seed), view)
    title = "partition: nothing passes between us-east-2 and us-west-2, under load"
    parts, heading = judged(story), "two regions are cut off from each other"
    _finish("partition", heading, title, begun(story), marks(story), parts, seed, report, console)


SCENES = {
    "cache-loss": "A region's cache is killed, stays away and comes back empty: limits and budgets hold. 80 seconds.",
    "slow-region": "A region's engines turn slow: health checks keep sending to it, `failover run` ends that. Two minutes.",
    "az-loss": "A third of a region's gateways and engines is killed at once: what a zone is, on one machine. 100 seconds.",
}
"""Drills that harm a region in part, with what their help says."""


def _scene(name: str) -> Callable[..., None]:
    """The command that plays the scene `name`."""

    def command(
        per_s: PerSOption = 25.0,
        seconds: SecondsOption = 1.0,
        seed: SeedOption = 1,
        report: ReportOption = None,
        keep: KeepOption = False,
    ) -> None:
        from infra.drills.scenes import SCENES as MAKERS

        _play(MAKERS[name], seconds, per_s, seed, report, keep)

    return command


for _name, _help in SCENES.items():
    drill.command(_name, help=_help)(_scene(_name))


def _play(make: Callable[[], Scene], seconds: float, per_s: float, seed: int, report: Path | None, keep: bool) -> None:
    from infra.drills.live import LiveView
    from infra.drills.scene import Size, judged, play_scene
    from infra.drills.two_regions import two_regions

    console, scene = Console(soft_wrap=True), make()
    with LiveView(console) as view:
        view.say("two regions of twins start")
        with two_regions(keep=keep) as regions:
            if keep:
                view.say(f"they are in {regions.root}")
            play = play_scene(scene, regions, Size(seconds, per_s, seed), view)
    parts = judged(scene, play)
    _finish(scene.name, scene.heading, scene.title, play.begun(), play.timeline(), parts, seed, report, console)


def _finish(
    name: str,
    heading: str,
    title: str,
    begun: Sequence[tuple[float, bool]],
    marks: Sequence[Mark],
    parts: list[Part],
    seed: int,
    report: Path | None,
    console: Console,
) -> None:
    """Table, report and one line of JSON; exit code 1 where a promise does not hold."""
    from infra.drills.figures import table_of
    from infra.drills.report import machine, write

    folder = (report or state_dir().parent / "drills" / name).absolute()
    write(folder, heading, title, begun, marks, parts)
    Console(width=None if console.is_terminal else 180).print(table_of(parts))
    console.print(f"report: {folder / 'report.md'}, {folder / 'timeline.svg'}", highlight=False)
    holds = all(part.holds for part in parts)
    figures: dict[str, Any] = {name: value for part in parts for name, value in part.figures.items()}
    typer.echo(json.dumps({"drill": name, "seed": seed, **machine(), **figures, "holds": holds}))
    if not holds:
        raise typer.Exit(1)
