"""`flotilla release`: publish a model as a release, and list what has been published."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, get_args

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, ProgressColumn, TaskID, TextColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar
from rich.progress import Task as BarTask
from rich.table import Table
from rich.text import Text

from serving.errors import UserError
from serving.models.convert import SOURCES
from serving.models.files import Progress
from serving.models.publish import Report, ensure_published
from serving.models.registry import AliasNotFoundError, list_releases, resolve
from serving.settings import ModelClass
from serving.target import LOCAL, load_target
from serving.twin import release as twin_release

ALL_SOURCES = (*sorted(SOURCES), twin_release.SOURCE)
"""What can be published; a twin has no weights, and is a release all the same."""
group = typer.Typer(name="release", help="Publish models as releases, and list them.", no_args_is_help=True)

Environment = Annotated[str, typer.Option("--env", help="Which Flotilla to speak to.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON for a machine to read.")]


def register(app: typer.Typer) -> None:
    """Adds the group to the command line."""
    app.add_typer(group)


@group.command()
def publish(
    model: Annotated[str, typer.Option(help="Model class to publish it as.")] = "small",
    source: Annotated[str, typer.Option(help=f"Where the weights come from: {', '.join(ALL_SOURCES)}.")] = "smollm2",
    region: Annotated[str | None, typer.Option(help="Region to publish to first; the home region if left out.")] = None,
    env: Environment = LOCAL,
    json: Json = False,
) -> None:
    """Convert a model, upload it as an immutable release, and point the model class at it."""
    _one_of("--model", model, get_args(ModelClass))
    _one_of("--source", source, ALL_SOURCES)
    target = load_target(env)
    name, _ = target.region(region)
    with progress_bars() as report:
        ref = ensure_published(target, name, model, source=source, on_progress=report)
    if json:
        sys.stdout.write(msgspec.json.encode(ref).decode() + "\n")
        return
    sent = f"{ref.uploaded_bytes / 1e6:.0f} MB sent" if ref.uploaded_bytes else "nothing to send, it was there already"
    Console(soft_wrap=True, highlight=False).print(
        f"{model} is release {ref.release_id[:12]} ({ref.size_bytes / 1e6:.0f} MB) in {', '.join(ref.regions)}: {sent}."
    )


@group.command(name="list")
def list_(env: Environment = LOCAL, json: Json = False) -> None:
    """Every release of every model class, and which one each class stands for."""
    target = load_target(env)
    name, region = target.region()
    dynamodb = target.aws_client("dynamodb", name)
    rows = []
    for model_class in get_args(ModelClass):
        try:
            weights = {one.release_id: one.weight for one in resolve(dynamodb, region.tables["registry"], model_class).releases}
        except AliasNotFoundError:
            weights = {}
        for record in list_releases(dynamodb, region.tables["registry"], model_class):
            rows.append({**msgspec.structs.asdict(record), "weight": weights.get(record.release_id, 0)})
    if json:
        sys.stdout.write(msgspec.json.encode({"releases": rows}).decode() + "\n")
        return
    table = Table(box=None)
    for heading in ("class", "release", "weight", "size", "window", "published", "model", "source"):
        table.add_column(heading, no_wrap=heading not in ("model", "source"))
    for row in rows:
        weight = f"{row['weight']} %" if row["weight"] else "-"
        size, window = f"{row['size_bytes'] / 1e6:.0f} MB", str(row["context_window_tokens"])
        published = datetime.fromtimestamp(row["created_at_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%MZ")
        cells = (row["model_class"], row["release_id"][:12], weight, size, window, published, row["model_name"], row["source"])
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 160).print(
        table if rows else "No release has been published: `flotilla release publish`."
    )


@contextmanager
def progress_bars() -> Iterator[Report]:
    """A bar a stage, with its rate, on stderr; only where a person looks at it."""
    columns = (TextColumn("{task.description:<34}"), BarColumn(), _AmountColumn(), _RateColumn())
    with ProgressBar(*columns, console=Console(stderr=True)) as bars:
        shown: dict[str, TaskID] = {}

        def report(progress: Progress) -> None:
            description = f"{progress.stage} {progress.detail}".strip()
            if description not in shown:
                shown[description] = bars.add_task(description, unit=progress.unit)
            bars.update(shown[description], completed=progress.done, total=progress.total or None)

        yield report


class _AmountColumn(ProgressColumn):
    """Bytes as bytes, steps as steps."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes, self._steps = DownloadColumn(), MofNCompleteColumn()

    def render(self, task: BarTask) -> Text:
        return (self._bytes if task.fields["unit"] == "bytes" else self._steps).render(task)


class _RateColumn(ProgressColumn):
    """Bytes a second; steps have no rate worth reading."""

    def __init__(self) -> None:
        super().__init__()
        self._speed = TransferSpeedColumn()

    def render(self, task: BarTask) -> Text:
        return self._speed.render(task) if task.fields["unit"] == "bytes" else Text("")


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{option} is {value!r}; must be one of {', '.join(allowed)}")
