"""`flotilla cost`: what the program would cost, before anything is bought."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.costs.report import CostReport
from infra.naming import LOCAL
from policies.costs.prices import HOURS_PER_MONTH
from serving.errors import UserError


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command()(cost)


def cost(
    stack: Annotated[str, typer.Argument(help="A stack, such as prod.serving.us-east-2.")] = "",
    env: Annotated[str, typer.Option("--env", help="Every stack of an environment.")] = "",
    against: Annotated[str, typer.Option(metavar="GIT_REF", help="Compare with this commit's own program.")] = "",
    budget_usd_per_h: Annotated[
        float | None, typer.Option(min=0, help="Exit 1 if what always runs costs more than this.")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Show every line of the bill.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show what always runs and what autoscaling may add up to, in dollars an hour. Needs no cloud."""
    if bool(stack) == bool(env):
        raise UserError("name a stack, or an environment by --env", "for example `flotilla cost --env prod`")
    from infra.costs.report import cost_of, load_prices
    from infra.embedded.against import graphs_at
    from infra.embedded.recorder import environment_stacks, record

    environment = env or stack.partition(".")[0]
    if environment == LOCAL:
        raise UserError(f"{LOCAL} runs on this machine and costs nothing", "choose another environment, such as --env staging")
    wanted = environment_stacks(environment)
    graphs = record(wanted)
    before = graphs_at(against, wanted) if against else None
    report = cost_of(graphs, load_prices(), before, against)
    if stack:
        chosen = tuple(item for item in report.stacks if item.stack == stack)
        if not chosen:
            raise UserError(f"{stack}: no such stack", f"known are {', '.join(wanted)}")
        report = CostReport(chosen, report.book, against)
    if as_json:
        typer.echo(json.dumps(report.as_json(), ensure_ascii=False))
    else:
        Console(soft_wrap=True, highlight=False).print(_render(report, lines))
    if budget_usd_per_h is not None and report.floor_usd_per_h > budget_usd_per_h:
        typer.echo(f"over budget: ${report.floor_usd_per_h:,.2f} an hour, and ${budget_usd_per_h:,.2f} is allowed", err=True)
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
