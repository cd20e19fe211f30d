"""`flotilla chat`, `flotilla tenants`, `flotilla keys` and `flotilla audit`."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from serving.errors import UserError
from serving.gateway import admin_client
from serving.gateway.admin_client import ChatEnd
from serving.gateway.tenants import TRUST_GROUP
from serving.target import LOCAL, load_target

Env = Annotated[str, typer.Option("--env", help="Environment to speak to.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's id: lower-case letters, digits and dashes.")]
Band = Annotated[str | None, typer.Option(help="Priority: interactive, standard or batch.")]
Weight = Annotated[int | None, typer.Option(help="Share within the band, 1 to 1000.")]
RequestsPerMin = Annotated[str | None, typer.Option(metavar="N|unlimited", help="Requests a minute.")]
TokensPerMin = Annotated[str | None, typer.Option(metavar="N|unlimited", help="Tokens a minute, prompt and answer together.")]
Concurrency = Annotated[str | None, typer.Option(metavar="N|unlimited", help="Requests at once.")]
InputTokensPerMin = Annotated[str | None, typer.Option(metavar="N|unlimited", help="Tokens of prompts a minute.")]
OutputTokensPerMin = Annotated[str | None, typer.Option(metavar="N|unlimited", help="Tokens of answers a minute.")]
BudgetDay = Annotated[
    str | None, typer.Option("--budget-day-usd", metavar="USD|unlimited", help="Dollars a day, by UTC; 12.50, for one.")
]
BudgetMonth = Annotated[str | None, typer.Option("--budget-month-usd", metavar="USD|unlimited", help="Dollars a month, by UTC.")]
ModelNames = Annotated[str | None, typer.Option("--models", metavar="A,B|all", help="Model classes the tenant may use.")]
AutoFloor = Annotated[
    str | None, typer.Option(metavar="CLASS|none", help="The smallest model class that answers the tenant's requests for `auto`.")
]
AutoCeiling = Annotated[str | None, typer.Option(metavar="CLASS|none", help="The largest.")]
TrustGroup = Annotated[
    str | None, typer.Option(metavar="NAME|none", help="Tenants of one group share prefix caches; with nobody if left out.")
]

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id, as `flotilla keys list` shows it.")]

UNLIMITED = "unlimited"
_LIMIT_TITLES = {
    "requests_per_min": "requests/min",
    "tokens_per_min": "tokens/min",
    "input_tokens_per_min": "input/min",
    "output_tokens_per_min": "output/min",
    "concurrency": "at once",
    "budget_day_micro_usd": "a day",
    "budget_month_micro_usd": "a month",
}
ALL_MODELS = "all"
NO_BOUND = "none"
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
def create_tenant(
    tenant: TenantName,
    band: Band = None,
    weight: Weight = None,
    requests_per_min: RequestsPerMin = None,
    tokens_per_min: TokensPerMin = None,
    concurrency: Concurrency = None,
    input_tokens_per_min: InputTokensPerMin = None,
    output_tokens_per_min: OutputTokensPerMin = None,
    budget_day: BudgetDay = None,
    budget_month: BudgetMonth = None,
    models: ModelNames = None,
    auto_floor: AutoFloor = None,
    auto_ceiling: AutoCeiling = None,
    trust_group: TrustGroup = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Make a tenant. What is left out is unlimited, and every model is allowed.

    Example: `flotilla tenants create acme --requests-per-min 600 --models small`
    """
    limits = {
        "requests_per_min": requests_per_min,
        "tokens_per_min": tokens_per_min,
        "concurrency": concurrency,
        "input_tokens_per_min": input_tokens_per_min,
        "output_tokens_per_min": output_tokens_per_min,
    }
    fields = _fields(band, weight, limits, {"day": budget_day, "month": budget_month}, models)
    fields |= _auto_fields(auto_floor, auto_ceiling) | _trust_fields(trust_group)
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
def set_tenant(
    tenant: TenantName,
    band: Band = None,
    weight: Weight = None,
    requests_per_min: RequestsPerMin = None,
    tokens_per_min: TokensPerMin = None,
    concurrency: Concurrency = None,
    input_tokens_per_min: InputTokensPerMin = None,
    output_tokens_per_min: OutputTokensPerMin = None,
    budget_day: BudgetDay = None,
    budget_month: BudgetMonth = None,
    models: ModelNames = None,
    auto_floor: AutoFloor = None,
    auto_ceiling: AutoCeiling = None,
    trust_group: TrustGroup = None,
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Change a tenant; what is left out stays. It holds within seconds.

    Example: `flotilla tenants set acme --tokens-per-min unlimited --band interactive`
    """
    limits = {
        "requests_per_min": requests_per_min,
        "tokens_per_min": tokens_per_min,
        "concurrency": concurrency,
        "input_tokens_per_min": input_tokens_per_min,
        "output_tokens_per_min": output_tokens_per_min,
    }
    fields = _fields(band, weight, limits, {"day": budget_day, "month": budget_month}, models)
    fields |= _auto_fields(auto_floor, auto_ceiling) | _trust_fields(trust_group)
    if not fields:
        raise UserError("nothing to change was given", "see `flotilla tenants set --help`")
    _show_tenants([admin_client.set_tenant(load_target(env), tenant, **fields)], as_json, single=True)


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
    as_json: Json = False,
    env: Env = LOCAL,
) -> None:
    """Make a key. Keep what it prints: only its HMAC is stored.

    Example: `flotilla keys create acme --name ci --expires-in 90d --models small`
    """
    scopes: dict[str, Any] = {}
    if expires_in is not None:
        scopes["expires_in_s"] = _seconds("--expires-in", expires_in)
    if models is not None:
        scopes["models"] = [one.strip() for one in models.split(",")]
    if budget_share is not None:
        scopes["budget_share_percent"] = budget_share
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
    _show_new_key(admin_client.rotate_key(load_target(env), key_id, overlap_s=_seconds("--overlap", overlap)), as_json)


@keys_app.command("list")
def list_keys(tenant: TenantName, as_json: Json = False, env: Env = LOCAL) -> None:
    """Show a tenant's keys, without their secrets."""
    found = admin_client.list_keys(load_target(env), tenant)
    if as_json:
        _print_json(found)
        return
    table = Table("key id", "name", "created", "expires", "revoked", "models", "budget", "replaces", box=None)
    for key in found:
        times = [_time(key[name]) for name in ("created_at_ms", "expires_at_ms", "revoked_at_ms")]
        share = key["budget_share_percent"]
        scopes = [", ".join(key["models"] or ["all"]), "all" if share is None else f"{share} %"]
        table.add_row(key["key_id"], key["name"] or "–", *times, *scopes, key["replaces"] or "–")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


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


def _seconds(option: str, text: str) -> int:
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


def _fields(
    band: str | None,
    weight: int | None,
    limits: Mapping[str, str | None],
    budgets: Mapping[str, str | None],
    models: str | None,
) -> dict[str, Any]:
    """The fields that were given, as the admin API takes them."""
    fields: dict[str, Any] = {}
    if band is not None:
        fields["band"] = band
    if weight is not None:
        fields["weight"] = weight
    fields |= {name: _limit(name, text) for name, text in limits.items() if text is not None}
    fields |= {f"budget_{span}_micro_usd": _budget(span, text) for span, text in budgets.items() if text is not None}
    if models is not None:
        fields["models"] = None if models == ALL_MODELS else [name.strip() for name in models.split(",")]
    return fields


def _auto_fields(floor: str | None, ceiling: str | None) -> dict[str, Any]:
    given = {"auto_floor": floor, "auto_ceiling": ceiling}
    return {name: None if text == NO_BOUND else text for name, text in given.items() if text is not None}


def _trust_fields(group: str | None) -> dict[str, Any]:
    if group is None:
        return {}
    if not TRUST_GROUP.fullmatch(group):
        raise UserError(f"--trust-group is {group!r}; must be lower-case letters, digits and hyphens, or `{NO_BOUND}`")
    return {"trust_group": None if group == NO_BOUND else group}


def _limit(name: str, text: str) -> int | None:
    if text == UNLIMITED:
        return None
    if not text.isdecimal():
        raise UserError(f"--{name.replace('_', '-')} is {text!r}; must be a number or `{UNLIMITED}`")
    return int(text)


def _budget(span: str, text: str) -> int | None:
    if text == UNLIMITED:
        return None
    match = re.fullmatch(r"(\d{1,7})(?:\.(\d{1,6}))?", text, re.ASCII)
    if match is None:
        raise UserError(f"--budget-{span}-usd is {text!r}; must be dollars, such as 12.50, or `{UNLIMITED}`")
    return int(match[1]) * 1_000_000 + int((match[2] or "").ljust(6, "0"))


def _show_tenants(tenants: Sequence[dict[str, Any]], as_json: bool, *, single: bool = False) -> None:
    if as_json:
        _print_json(tenants[0] if single else tenants)
        return
    table = Table("tenant", "band", "weight", *_LIMIT_TITLES.values(), "models", "auto", "trust group", box=None)
    for tenant in tenants:
        shown = [_shown(name, tenant.get(name)) for name in _LIMIT_TITLES]
        models = ALL_MODELS if tenant["models"] is None else ", ".join(tenant["models"])
        auto = f"{tenant.get('auto_floor') or ''}…{tenant.get('auto_ceiling') or ''}"
        table.add_row(tenant["id"], tenant["band"], str(tenant["weight"]), *shown, models, auto, tenant.get("trust_group") or "")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _shown(name: str, limit: int | None) -> str:
    if limit is None:
        return UNLIMITED
    return f"${limit / 1e6:,.2f}" if name.endswith("_micro_usd") else f"{limit:,}"


def _time(time_ms: int | None) -> str:
    return "–" if time_ms is None else datetime.fromtimestamp(time_ms / 1e3, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
