"""The commands that bring a local region up and look after it."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from serving.errors import UserError
from serving.target import state_dir

StateOption = Annotated[Path | None, typer.Option("--state", help="State folder; FLOTILLA_STATE sets it for every command.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]


class Engine(StrEnum):
    """What `up` starts as engines."""

    VLLM = "vllm"
    TWIN = "twin"


class PreviewFormat(StrEnum):
    """For whom a preview is written."""

    TEXT = "text"
    MARKDOWN = "markdown"


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command()(logs)
    app.command()(preview)


def up(
    region: Annotated[
        list[str] | None, typer.Option("--region", help="Region to bring up; repeat it for more. [default: the home region]")
    ] = None,
    state: StateOption = None,
    port_offset: Annotated[
        int | None, typer.Option(help="Added to every port of 127.0.0.1. [default: as last time, at first 0]")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=1, help="Give up waiting after this long.")] = 900,
    engine: Annotated[
        Engine, typer.Option(help="`vllm` serves the catalog's models; `twin` serves a vLLM double in place of each.")
    ] = Engine.VLLM,
    as_json: JsonOption = False,
) -> None:
    """Start regions here: real gateways, a real engine, an emulated AWS. Regions not named keep running as they are."""
    _require_linux()
    from infra.embedded.progress import Steps
    from infra.embedded.report import print_up
    from infra.embedded.state import State
    from infra.embedded.up import UpOptions
    from infra.embedded.up import up as bring_up

    root = (state or state_dir()).absolute()
    with Steps(Console(stderr=as_json)) as steps:
        report = bring_up(UpOptions(State(root), tuple(region or ()), port_offset, timeout_s, engine is Engine.TWIN), steps)
    if as_json:
        typer.echo(json.dumps(report.as_json()))
    else:
        print_up(Console(), report, "" if root == state_dir() else f"FLOTILLA_STATE={root} ")


def down(
    purge: Annotated[bool, typer.Option("--purge", help="Forget the data too: tables, buckets, journals, keys.")] = False,
    state: StateOption = None,
) -> None:
    """Stop everything on this machine in good order. The data stays, and the next `up` goes on with it."""
    _require_linux()
    from infra.embedded.down import down as take_down
    from infra.embedded.progress import Steps
    from infra.embedded.state import State

    console = Console()
    with Steps(console) as steps:
        was_up = take_down(State(state or state_dir()), purge=purge, steps=steps)
    console.print("Everything has stopped." if was_up else "Nothing was up.", "The data is gone." if purge else "")


def status(state: StateOption = None, as_json: JsonOption = False) -> None:
    """Show pods, services and where to reach them."""
    _require_linux()
    from infra.embedded.report import render_status, status_json
    from infra.embedded.state import State

    folder = State(state or state_dir())
    now = folder.status() if folder.agent_pid() else None
    if as_json:
        typer.echo(json.dumps(status_json(now)))
    else:
        Console(width=None if sys.stdout.isatty() else 200).print(render_status(now))


def logs(
    workload: Annotated[str, typer.Argument(help="A workload, pod or container, such as gateway. [default: all]")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 50,
    state: StateOption = None,
) -> None:
    """Show what containers have written."""
    _require_linux()
    from infra.embedded import logs as container_logs
    from infra.embedded.state import State

    files = container_logs.log_files(State(state or state_dir()), workload)
    for label, path in files.items():
        for line in container_logs.tail(path, lines):
            typer.echo(f"{label} | {line}")
    if follow:
        for label, line in container_logs.follow(files):
            typer.echo(f"{label} | {line}")


def preview(
    stack: Annotated[str, typer.Argument(help="A stack, such as local.serving.us-east-2.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every stack of every environment.")] = False,
    against: Annotated[
        str,
        typer.Option(metavar="GIT_REF", help="Compare with this commit's program; A..B compares two. [default: the last `up`]"),
    ] = "",
    refuse_replacements: Annotated[
        bool, typer.Option("--refuse-replacements", help="Exit 1 if anything would be replaced, or a protected thing deleted.")
    ] = False,
    output: Annotated[
        PreviewFormat, typer.Option("--format", help="markdown is a pull request's comment, with costs and guardrails.")
    ] = PreviewFormat.TEXT,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the program declares, what would change and what would be replaced. Needs no cloud and changes nothing."""
    if bool(stack) == everything:
        raise UserError("name a stack, or give --all", "for example `flotilla preview local.foundation`")
    if output is PreviewFormat.MARKDOWN:
        if not (everything and against):
            raise UserError("--format markdown compares every stack of two commits", "give --all and --against too")
        from infra.reviews.comment import comment
        from infra.reviews.review import review

        typer.echo(comment(review(against)), nl=False)
        return
    from infra.embedded.preview import preview as make_preview
    from infra.embedded.preview import preview_against, render

    report = preview_against(stack, against) if against else make_preview(stack, (state or state_dir()).absolute())
    if as_json:
        typer.echo(json.dumps(report.as_json(), ensure_ascii=False))
    else:
        Console(width=None if sys.stdout.isatty() else 160, soft_wrap=True, highlight=False).print(render(report))
    if refuse_replacements and report.has_replacements:
        raise typer.Exit(1)


def _require_linux() -> None:
    if sys.platform != "linux":
        raise UserError(
            f"a local region runs on Linux only, and this is {sys.platform}", "use a Linux machine, or WSL 2 on Windows"
        )
