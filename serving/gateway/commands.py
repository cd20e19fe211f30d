"""`flotilla chat`, `flotilla tenants`, `flotilla keys` and `flotilla audit`."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from serving.errors import UserError
from serving.gateway import admin_client
from serving.gateway.admin_client import ChatEnd
from serving.gateway.tenants import TRUST_GROUP
from serving.gateway.term_options import NO_BOUND, TITLES, shown_terms, takes_terms, term_of
from serving.target import LOCAL, load_target

Env = Annotated[str, typer.Option("--env", help="Environment to speak to.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's id: lower-case letters, digits and dashes.")]
TrustGroup = Annotated[
    str | None, typer.Option(metavar="NAME|none", help="Tenants of one group share prefix caches; with nobody if left out.")
]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id, as `flotilla keys list` shows it.")]

NO_PLAN = "none"
_SPAN = re.compile(r"(\d{1,6})([smhd])")
_SPAN_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

tenants_app = typer.Typer(help="Who may use the API, and how much of it.", no_args_is_help=True)
keys_app = typer.Typer(help="API keys of tenants. A key's secret is shown once, when it is made.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command("chat")(chat)
    app.add_typer(tenants_app, name="tenants")
    app.add_typer(keys_app, name="keys")
    app.command("audit")(audit)


def chat(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    model: Annotated[str, typer.Option(help="Model class.")] = "small",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 answers alike each time; higher varies.")] = 0.0,
    region: Annotated[str | None, typer.Option(help="Region to ask; the home region if left out.")] = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Ask a model and watch the answer come.

    The answer goes to stdout; tokens and times to stderr.

    Example: `flotilla chat "What is the capital of France?" --system "Answer in one word."`
    """
    pieces: list[str] = []
    for piece in admin_client.chat(load_target(env), prompt, model=model, system=system, temperature=temperature, region=region):
        if isinstance(piece, ChatEnd):
            _end_chat("".join(pieces), piece, as_json)
            return
        pieces.append(piece)
        if not as_json:
            sys.stdout.write(piece)
            sys.stdout.flush()


@tenants_app.command("create")
@takes_terms
def create_tenant(
    tenant: TenantName,
    terms: dict[str, Any],
    plan: Annotated[str | None, typer.Option(metavar="PLAN", help="Terms that it shares; those given here are its own.")] = None,
    trust_group: TrustGroup = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Make a tenant. What neither its plan nor this says is unlimited, and every model is allowed.

    Example: `flotilla tenants create acme --plan gold --requests-per-min 600`
    """
    fields = {**terms, **_trust_fields(trust_group)}
    if plan is not None:
        fields["plan"] = plan
    _show_tenants([admin_client.create_tenant(load_target(env), tenant, **fields)], as_json, single=True)


@tenants_app.command("list")
def list_tenants(as_json: Json = False, env: Env = LOCAL) -> None:
    """Show all tenants."""
    _show_tenants(admin_client.list_tenants(load_target(env)), as_json)


@tenants_app.command("show")
def show_tenant(tenant: TenantName, as_json: Json = False, env: Env = LOCAL) -> None:
    """Show one tenant."""
    _show_tenants([admin_client.show_tenant(load_target(env), tenant)], as_json, single=True)


@tenants_app.command("set")
@takes_terms
def set_tenant(
    tenant: TenantName,
    terms: dict[str, Any],
    plan: Annotated[
        str | None, typer.Option(metavar="PLAN|none", help="Terms that it shares from now on. With none it keeps what it has.")
    ] = None,
    inherit: Annotated[
        str | None, typer.Option(metavar="A,B", help="Its own terms to be its plan's again, such as requests-per-min,models.")
    ] = None,
    trust_group: TrustGroup = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Change a tenant; what is left out stays. It holds within seconds.

    On a plan, what is given here is the tenant's own from now on, and no change of the plan reaches it.

    Example: `flotilla tenants set acme --tokens-per-min unlimited --band interactive`
    """
    fields = {**terms, **_trust_fields(trust_group)}
    if plan is not None:
        fields["plan"] = None if plan == NO_PLAN else plan
    if inherit is not None:
        fields["inherit"] = [term_of(name.strip()) for name in inherit.split(",")]
    if not fields:
        raise UserError("nothing to change was given", "see `flotilla tenants set --help`")
    _show_tenants([admin_client.set_tenant(load_target(env), tenant, **fields)], as_json, single=True)


@tenants_app.command("policy")
def policy(
    tenant: TenantName,
    file: Annotated[
        Path | None, typer.Option("--set", metavar="FILE", help="JSON to set it to; what the file leaves out is the default.")
    ] = None,
    env: Env = LOCAL,
) -> None:
    """Show how a tenant's requests may be changed on their way, as one JSON document, or set it.

    What this prints is what `--set` takes: change it, and set it again.

    Example: `flotilla tenants policy acme > acme.json; flotilla tenants policy acme --set acme.json`
    """
    if file is None:
        _print_json(admin_client.show_policy(load_target(env), tenant))
        return
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}", "give a file with what `flotilla tenants policy TENANT` prints") from error
    _print_json(admin_client.set_policy(load_target(env), tenant, document))


@keys_app.command("create")
def create_key(
    tenant: TenantName,
    name: Annotated[str, typer.Option(help="A name to tell it by.")] = "",
    expires_in: Annotated[
        str | None, typer.Option(metavar="90d|12h|30m", help="For how long it works; for ever if left out.")
    ] = None,
    models: Annotated[
        str | None, typer.Option(metavar="A,B", help="Model classes it may ask for, of its tenant's; all of these if left out.")
    ] = None,
    budget_share: Annotated[
        int | None, typer.Option(min=1, max=100, metavar="PERCENT", help="Of each of its tenant's budgets; all if left out.")
    ] = None,
    requests_per_min: Annotated[int | None, typer.Option(min=1, help="A limit of its own, beside its tenant's.")] = None,
    tokens_per_min: Annotated[int | None, typer.Option(min=1, help="The same of tokens of prompts and answers.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="The same of requests at once.")] = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Make a key. Keep what it prints: only its HMAC is stored.

    Example: `flotilla keys create acme --name ci --expires-in 90d --models small`
    """
    scopes: dict[str, Any] = {}
    if expires_in is not None:
        scopes["expires_in_s"] = seconds("--expires-in", expires_in)
    if models is not None:
        scopes["models"] = [one.strip() for one in models.split(",")]
    if budget_share is not None:
        scopes["budget_share_percent"] = budget_share
    own = {"requests_per_min": requests_per_min, "tokens_per_min": tokens_per_min, "concurrency": concurrency}
    scopes |= {name: limit for name, limit in own.items() if limit is not None}
    _show_new_key(admin_client.create_key_record(load_target(env), tenant, name=name, **scopes), as_json)


@keys_app.command("rotate")
def rotate_key(
    key_id: KeyId,
    overlap: Annotated[str, typer.Option(metavar="24h|30m|0s", help="For how long the old key still works.")] = "24h",
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Make a key in place of another, with the same name and scopes; the old one dies when the overlap is over.

    Give the new one to whoever uses the old one, before then. `flotilla keys list TENANT` shows until when both work.

    Example: `flotilla keys rotate 0123456789 --overlap 7d`
    """
    _show_new_key(admin_client.rotate_key(load_target(env), key_id, overlap_s=seconds("--overlap", overlap)), as_json)


@keys_app.command("list")
def list_keys(tenant: TenantName, as_json: Json = False, env: Env = LOCAL) -> None:
    """Show a tenant's keys, without their secrets."""
    found = admin_client.list_keys(load_target(env), tenant)
    if as_json:
        _print_json(found)
        return
    table = Table("key id", "name", "created", "expires", "revoked", "models", "budget", "limits", "replaces", box=None)
    for key in found:
        times = [_time(key[name]) for name in ("created_at_ms", "expires_at_ms", "revoked_at_ms")]
        share = key["budget_share_percent"]
        scopes = [", ".join(key["models"] or ["all"]), "all" if share is None else f"{share} %", _own_limits(key)]
        table.add_row(key["key_id"], key["name"] or "–", *times, *scopes, key["replaces"] or "–")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _own_limits(key: dict[str, Any]) -> str:
    names = {"requests_per_min": "requests/min", "tokens_per_min": "tokens/min", "concurrency": "at once"}
    return ", ".join(f"{key[name]} {unit}" for name, unit in names.items() if key[name] is not None) or "–"


@keys_app.command("revoke")
def revoke_key(
    key_id: KeyId,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Revoke a key. Within 5 seconds it is refused everywhere; streams that have begun end."""
    key = admin_client.revoke_key(load_target(env), key_id)
    if as_json:
        _print_json(key)
    else:
        typer.echo(f"key {key['key_id']} of {key['tenant']} is revoked")


def audit(
    day: Annotated[str | None, typer.Option(metavar="DAY", help="UTC day such as 2026-11-24; today if left out.")] = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Show who changed which tenant or key on a day. An entry is written with its change, or neither is.

    Names are as whoever made the change gave them: the admin key does not tell people apart.

    Example: `flotilla audit --day 2026-11-24 --json`
    """
    entries = admin_client.audit(load_target(env), day or f"{datetime.now(UTC):%Y-%m-%d}")
    if as_json:
        _print_json(entries)
        return
    table = Table("when", "by", "what", "of", "now", box=None)
    for entry in entries:
        table.add_row(_time(entry["at_ms"]), entry["by"], entry["action"].replace("_", " "), entry["subject"], entry["detail"])
    Console(width=None if sys.stdout.isatty() else 300, highlight=False).print(table)


def seconds(option: str, text: str) -> int:
    """The seconds of a span such as `90d`, `12h`, `30m` or `0s`.

    Raises:
        UserError: it is none; `option` is where it was given.
    """
    match = _SPAN.fullmatch(text)
    if match is None:
        raise UserError(f"{option} {text!r} is no span of time", "write 90d, 12h, 30m or 0s")
    return int(match[1]) * _SPAN_S[match[2]]


def _show_new_key(key: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(key)
        return
    typer.echo(key["key"])
    said = f"key {key['key_id']} of {key['tenant']}; it cannot be shown again"
    Console(stderr=True).print(said, style="dim", highlight=False)


def _end_chat(answer: str, end: ChatEnd, as_json: bool) -> None:
    if as_json:
        _print_json({"answer": answer, **dataclasses.asdict(end)})
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    line = f"{end.prompt_tokens} in ({end.cached_tokens} cached), {end.output_tokens} out · first token {end.ttft_ms:.0f} ms"
    rate = end.output_tokens / max(1e-9, (end.duration_ms - end.ttft_ms) / 1e3)
    Console(stderr=True).print(f"{line} · {rate:.1f} tokens/s", style="dim", highlight=False)


def _trust_fields(group: str | None) -> dict[str, Any]:
    if group is None:
        return {}
    if not TRUST_GROUP.fullmatch(group):
        raise UserError(f"--trust-group is {group!r}; must be lower-case letters, digits and hyphens, or `{NO_BOUND}`")
    return {"trust_group": None if group == NO_BOUND else group}


def _show_tenants(tenants: Sequence[dict[str, Any]], as_json: bool, *, single: bool = False) -> None:
    if as_json:
        _print_json(tenants[0] if single else tenants)
        return
    table = Table("tenant", "plan", *TITLES, "trust group", box=None)
    for tenant in tenants:
        own = tenant.get("overrides") or ()
        plan = tenant.get("plan") or "–"
        table.add_row(
            tenant["id"], f"{plan} + {len(own)} own" if own else plan, *shown_terms(tenant), tenant.get("trust_group") or "–"
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _time(time_ms: int | None) -> str:
    return "–" if time_ms is None else datetime.fromtimestamp(time_ms / 1e3, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
