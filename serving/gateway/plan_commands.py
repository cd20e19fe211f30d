"""`flotilla plans`: terms that many tenants share."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from serving.errors import UserError
from serving.gateway import admin_client
from serving.gateway.commands import Env, Json
from serving.gateway.term_options import TITLES, shown_terms, takes_terms
from serving.target import LOCAL, load_target

PlanName = Annotated[str, typer.Argument(metavar="PLAN", help="The plan's id: lower-case letters, digits and dashes.")]

plans_app = typer.Typer(
    help="Terms that many tenants share: limits, budgets, models. A change of a plan reaches its tenants within seconds.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.add_typer(plans_app, name="plans")


@plans_app.command("create")
@takes_terms
def create_plan(plan: PlanName, terms: dict[str, Any], as_json: Json = False, env: Env = LOCAL) -> None:
    """Make a plan. What is left out is unlimited, and every model is allowed.

    Put tenants on it with `flotilla tenants set acme --plan gold`.

    Example: `flotilla plans create gold --requests-per-min 600 --budget-month-usd 500 --auto-ceiling medium`
    """
    _show([admin_client.create_plan(load_target(env), plan, **terms)], as_json, single=True)


@plans_app.command("list")
def list_plans(as_json: Json = False, env: Env = LOCAL) -> None:
    """Show all plans, and how many tenants are on each."""
    _show(admin_client.list_plans(load_target(env)), as_json)


@plans_app.command("show")
def show_plan(plan: PlanName, as_json: Json = False, env: Env = LOCAL) -> None:
    """Show one plan."""
    _show([admin_client.show_plan(load_target(env), plan)], as_json, single=True)


@plans_app.command("set")
@takes_terms
def set_plan(plan: PlanName, terms: dict[str, Any], as_json: Json = False, env: Env = LOCAL) -> None:
    """Change a plan, and so all tenants on it but for what they set themselves; what is left out stays.

    Example: `flotilla plans set gold --tokens-per-min unlimited`
    """
    if not terms:
        raise UserError("nothing to change was given", "see `flotilla plans set --help`")
    _show([admin_client.set_plan(load_target(env), plan, **terms)], as_json, single=True)


@plans_app.command("delete")
def delete_plan(plan: PlanName, as_json: Json = False, env: Env = LOCAL) -> None:
    """Delete a plan that no tenant is on."""
    gone = admin_client.delete_plan(load_target(env), plan)
    typer.echo(json.dumps(gone, indent=2) if as_json else f"plan {gone['id']} is deleted")


def _show(plans: Sequence[dict[str, Any]], as_json: bool, *, single: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps(plans[0] if single else plans, indent=2))
        return
    table = Table("plan", "tenants", *TITLES, box=None)
    for plan in plans:
        table.add_row(plan["id"], str(plan["num_tenants"]), *shown_terms(plan))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
