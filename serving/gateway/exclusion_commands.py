"""`flotilla drain` and `flotilla quarantine`: what gets no requests in a region, and why."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from serving.gateway import admin_client
from serving.gateway.commands import Env, Json, seconds
from serving.target import LOCAL, load_target

Region = Annotated[str | None, typer.Option(help="Region to ask; the home region if left out.")]
Note = Annotated[str, typer.Option(help="Why, for whoever finds it.")]
For = Annotated[
    str | None, typer.Option("--for", metavar="2h|30m", help="Over by itself after so long; when it is ended if left out.")
]
Replica = Annotated[str, typer.Argument(metavar="NAME", help="The pod's name, such as gateway-0.")]
Suspect = Annotated[
    str, typer.Argument(metavar="NAME", help="The engine's pod, or the request's fingerprint, as its refusal has it.")
]

drain_app = typer.Typer(
    help="Engines and gateways that get no new requests, while those that they have finish. Obeyed within 3 seconds.",
    no_args_is_help=True,
)
quarantine_app = typer.Typer(
    help="Engines that are suspected, and requests that engines die of. Gateways add such requests themselves, for a day.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.add_typer(drain_app, name="drain")
    app.add_typer(quarantine_app, name="quarantine")


@drain_app.command("engine")
def drain_engine(
    name: Replica, note: Note = "", lasts: For = None, region: Region = None, as_json: Json = False, env: Env = LOCAL
) -> None:
    """Give an engine no new requests. What it has finishes; then its pod can go.

    Example: `flotilla drain engine engine-small-7d4f-x2x9k --note "XID errors on its node"`
    """
    _begin("drains", "engine", name, note, lasts, region, as_json, env)


@drain_app.command("gateway")
def drain_gateway(
    name: Replica, note: Note = "", lasts: For = None, region: Region = None, as_json: Json = False, env: Env = LOCAL
) -> None:
    """Take a gateway out of service: not ready at once, and from 45 seconds on it refuses what still comes.

    It stays drained over restarts, until `flotilla drain end gateway NAME`. With all gateways of a region drained the edge sends
    its traffic elsewhere.

    Example: `flotilla drain gateway gateway-0 --for 30m`
    """
    _begin("drains", "gateway", name, note, lasts, region, as_json, env)


@drain_app.command("list")
def list_drains(region: Region = None, as_json: Json = False, env: Env = LOCAL) -> None:
    """Show what is drained in a region, by whom and why."""
    _list("drains", region, as_json, env)


@drain_app.command("end")
def end_drain(
    kind: Annotated[str, typer.Argument(metavar="engine|gateway")],
    name: Replica,
    region: Region = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Let an engine or a gateway have requests again."""
    _end("drains", kind, name, region, as_json, env)


@quarantine_app.command("engine")
def quarantine_engine(
    name: Suspect, note: Note = "", lasts: For = None, region: Region = None, as_json: Json = False, env: Env = LOCAL
) -> None:
    """Give a suspect engine no new requests, and ask elsewhere what can leave it; it is left running, to be looked at.

    Example: `flotilla quarantine engine engine-small-7d4f-x2x9k --note "answers nonsense"`
    """
    _begin("quarantine", "engine", name, note, lasts, region, as_json, env)


@quarantine_app.command("request")
def quarantine_request(
    name: Suspect, note: Note = "", lasts: For = None, region: Region = None, as_json: Json = False, env: Env = LOCAL
) -> None:
    """Refuse a request that engines die of, wherever it is sent in the region: 400 `request_quarantined`.

    Example: `flotilla quarantine request 5f1e0c6c8f0b4d2e9a7b3c1d2e4f6a8b --for 24h`
    """
    _begin("quarantine", "request", name, note, lasts, region, as_json, env)


@quarantine_app.command("list")
def list_quarantine(region: Region = None, as_json: Json = False, env: Env = LOCAL) -> None:
    """Show what is in quarantine in a region, by whom and why."""
    _list("quarantine", region, as_json, env)


@quarantine_app.command("clear")
def clear_quarantine(
    kind: Annotated[str, typer.Argument(metavar="engine|request")],
    name: Suspect,
    region: Region = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Let an engine have requests, or a request engines, again."""
    _end("quarantine", kind, name, region, as_json, env)


def _begin(group: str, kind: str, name: str, note: str, lasts: str | None, region: str | None, as_json: bool, env: str) -> None:
    for_s = None if lasts is None else seconds("--for", lasts)
    made = admin_client.exclude(load_target(env), group, kind, name, note=note, for_s=for_s, region=region)
    typer.echo(json.dumps(made, indent=2) if as_json else f"{kind} {name}: {_WORDS[group]}, at every gateway within 3 seconds")


def _end(group: str, kind: str, name: str, region: str | None, as_json: bool, env: str) -> None:
    ended = admin_client.end_exclusion(load_target(env), group, kind, name, region=region)
    typer.echo(json.dumps(ended, indent=2) if as_json else f"{kind} {name}: no longer {_WORDS[group]}")


_WORDS = {"drains": "drained", "quarantine": "in quarantine"}


def _list(group: str, region: str | None, as_json: bool, env: str) -> None:
    found = admin_client.list_exclusions(load_target(env), group, region=region)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table("kind", "name", "since", "until", "by", "why", box=None)
    for each in found:
        table.add_row(
            each["kind"], each["name"], _time(each["since_ms"]), _time(each["until_ms"]), each["by"], each["note"] or "–"
        )
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


def _time(time_ms: Any) -> str:
    return "ended by hand" if time_ms is None else datetime.fromtimestamp(time_ms / 1e3, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
