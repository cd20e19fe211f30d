"""`flotilla cost`: what the program would cost, before anything is bought."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.costs.report import CostReport
from infra.naming import LOCAL
from policies.costs.budgets import judge_budgets
from policies.costs.prices import HOURS_PER_MONTH
from policies.costs.unit_cost import UnitCost
from serving.errors import UserError


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command()(cost)


def cost(
    stack: Annotated[str, typer.Argument(help="A stack, such as prod.serving.us-east-2.")] = "",
    env: Annotated[str, typer.Option("--env", help="Every stack of an environment.")] = "",
    against: Annotated[str, typer.Option(metavar="GIT_REF", help="Compare with this commit's own program.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every stack that runs in a cloud.")] = False,
    gate: Annotated[bool, typer.Option("--gate", help="Exit 1 where a budget of stacks/budgets.yaml is exceeded.")] = False,
    per_token: Annotated[bool, typer.Option("--per-token", help="Show what a million tokens cost by model class.")] = False,
    lines: Annotated[bool, typer.Option("--lines", help="Show every line of the bill.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show what always runs and what autoscaling may add up to, in dollars an hour. Needs no cloud."""
    if [bool(stack), bool(env), everything].count(True) != 1:
        raise UserError("name a stack, an environment by --env, or give --all", "for example `flotilla cost --env prod`")
    from infra.costs.budgets import load_budgets
    from infra.costs.report import cost_of, load_prices
    from infra.costs.unit_costs import unit_costs
    from infra.embedded.against import graphs_at
    from infra.embedded.recorder import environment_stacks, every_stack, record

    environment = env or stack.partition(".")[0]
    if environment == LOCAL:
        raise UserError(f"{LOCAL} runs on this machine and costs nothing", "choose another environment, such as --env staging")
    if per_token and everything:
        raise UserError("--per-token is of one environment", "name it, for example by --env prod")
    wanted = every_stack() if everything else environment_stacks(environment)
    graphs = record(wanted)
    before = graphs_at(against, wanted) if against else None
    report = cost_of(graphs, load_prices(), before, against)
    if stack:
        chosen = tuple(item for item in report.stacks if item.stack == stack)
        if not chosen:
            raise UserError(f"{stack}: no such stack", f"known are {', '.join(wanted)}")
        report = CostReport(chosen, report.book, against)
    verdicts = judge_budgets(report.bills, load_budgets())
    if stack:
        verdicts = tuple(verdict for verdict in verdicts if verdict.scope == stack)
    units = unit_costs(environment, report.book) if per_token else ()
    if as_json:
        document = report.as_json() | {"budgets": [verdict.as_json() for verdict in verdicts]}
        if per_token:
            document["per_token"] = [unit.as_json() for pair in units for unit in pair]
        typer.echo(json.dumps(document, ensure_ascii=False))
    else:
        console = Console(soft_wrap=True, highlight=False)
        console.print(_render(report, lines))
        for verdict in verdicts:
            console.print(Text(f"Budget of {verdict.message}.", style="bold red" if verdict.is_exceeded else "dim"))
        if units:
            console.print(_unit_costs(units))
    exceeded = [verdict for verdict in verdicts if verdict.is_exceeded]
    if gate and exceeded:
        for verdict in exceeded:
            typer.echo(f"over budget: {verdict.message}; see stacks/budgets.yaml", err=True)
        raise typer.Exit(1)


def _render(report: CostReport, lines: bool) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    table.add_column("stack", style="bold", no_wrap=True)
    for name in ("always, $/h", "at most, $/h", "always, $/month", *(("change, $/h",) if report.against else ())):
        table.add_column(name, justify="right")
    for item in report.stacks:
        sums = (item.after.floor_usd_per_h, item.after.ceiling_usd_per_h) if item.after else (0.0, 0.0)
        table.add_row(item.stack, *_cells(*sums, item.delta_usd_per_h if report.against else None))
    delta = sum(item.delta_usd_per_h for item in report.stacks) if report.against else None
    table.add_row("all", *_cells(report.floor_usd_per_h, report.ceiling_usd_per_h, delta), style="bold")
    parts: list[RenderableType] = [table]
    if lines:
        parts.append(_lines(report))
    parts += [Text(""), *_caveats(report)]
    return Group(*parts)


def _cells(floor_usd_per_h: float, ceiling_usd_per_h: float, delta_usd_per_h: float | None) -> list[str]:
    cells = [f"{floor_usd_per_h:,.2f}", f"{ceiling_usd_per_h:,.2f}", f"{floor_usd_per_h * HOURS_PER_MONTH:,.0f}"]
    return cells if delta_usd_per_h is None else [*cells, f"{delta_usd_per_h:+,.2f}"]


def _lines(report: CostReport) -> Table:
    table = Table(box=None, pad_edge=False, title="\nlines", title_justify="left")
    for name in ("stack", "resource", "price", "number", "$/h", ""):
        table.add_column(name, justify="right" if name in ("number", "$/h") else "left")
    for bill in report.bills:
        for line in (*bill.floor, *bill.growth):
            table.add_row(bill.stack, line.name, line.key, f"{line.quantity:g}", f"{line.usd_per_h:,.4f}", line.note)
    return table


def _unit_costs(units: Sequence[tuple[UnitCost, UnitCost]]) -> RenderableType:
    title = "\nGPU dollars of a million tokens, at the operating point of a mean request"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("class", "uncached in", "out", "both", "both, on spot"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for bought, spot in units:
        both = (bought.usd_per_mtok_input, bought.usd_per_mtok_output, bought.usd_per_mtok, spot.usd_per_mtok)
        table.add_row(bought.model_class, *(f"{usd:.3f}" for usd in both))
    caveat = (
        "Modelled (policies/capacity/step_law.py), not measured on A100s. At list prices on demand; idle floors, spares, gateways"
        " and networks come on top: a fleet at half this utilization pays twice as much a token."
    )
    return Group(table, *(Text(bought.arithmetic, style="dim") for bought, _ in units), Text(caveat, style="dim"))


def _caveats(report: CostReport) -> list[Text]:
    """What the sums leave out, said where it is seen."""
    by_use = sorted({kind for bill in report.bills for kind in bill.by_use})
    unpriced = sorted({kind for bill in report.bills for kind in bill.unpriced})
    dates = sorted({price.read for price in report.book.prices.values()})
    said = [
        Text(
            f"List prices of {report.book.region}, read {dates[0]} to {dates[-1]}; {report.unconfirmed_ratio:.0%} of what always"
            f" runs rests on prices not confirmed at their source. Spot is taken at {report.book.spot.discount_ratio:.0%} off.",
            style="dim",
        ),
        Text(f"Billed by use, in no sum: {', '.join(kind.rpartition(':')[2] for kind in by_use) or 'nothing'}.", style="dim"),
    ]
    if unpriced:
        said.append(
            Text(f"Unpriced, in no sum: {', '.join(unpriced)}. Add them to policies/costs/prices.yaml.", style="bold yellow")
        )
    return said
