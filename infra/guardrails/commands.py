"""`flotilla guardrails`: what the rules say of the program, before anything is deployed."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from serving.errors import UserError


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command()(guardrails)


def guardrails(
    stack: Annotated[str, typer.Argument(help="A stack, such as prod.foundation.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every stack of every environment.")] = False,
    rules: Annotated[
        bool, typer.Option("--rules", help="List the rules, as Markdown: docs/guardrails.md is made by this.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Ask the guardrails of what the program declares. Needs no cloud. Exits 1 if a mandatory one is broken, unwaived."""
    if rules:
        from infra.guardrails.handbook import handbook

        typer.echo(handbook(), nl=False)
        return
    if bool(stack) == everything:
        raise UserError("name a stack, or give --all", "for example `flotilla guardrails prod.foundation`")
    from infra import config
    from infra.embedded.recorder import every_stack, record
    from infra.guardrails.graphs import judge_graphs, load_waivers

    wanted = every_stack() if everything else [stack]
    waivers = load_waivers()
    graphs = record(wanted)
    chosen = {name: graphs[name] for name in wanted}
    judgement = judge_graphs(chosen, config.load_catalog(), waivers, config.today())
    if as_json:
        typer.echo(json.dumps(judgement.as_json(), ensure_ascii=False))
    else:
        Console(soft_wrap=True, highlight=False).print(_render(judgement, everything))
    if judgement.is_refused:
        raise typer.Exit(1)


def _render(judgement: object, everything: bool) -> RenderableType:
    from infra.guardrails.graphs import Judgement
    from policies.guardrails.rule import Severity
    from policies.guardrails.rules import RULES

    assert isinstance(judgement, Judgement)
    parts: list[RenderableType] = []
    for verdict in judgement.verdicts:
        for finding in verdict.findings:
            line = Text(f"{finding.severity:9} ", style="bold red" if finding.severity is Severity.MANDATORY else "yellow")
            line.append(f"{finding.rule}  ", style="bold")
            line.append(f"{verdict.stack} {finding.name}: {finding.message}")
            parts += [line, Text(f"          → {finding.remedy}", style="dim")]
    if everything:
        parts += [
            Text(f"unused    waiver of {waiver.rule} for {waiver.resource} ({waiver.owner}): remove it", style="yellow")
            for waiver in judgement.unused
        ]
    found = sum(len(verdict.findings) for verdict in judgement.verdicts)
    waived = sum(len(verdict.waived) for verdict in judgement.verdicts)
    checks = sum(verdict.num_checks for verdict in judgement.verdicts)
    num_stacks = len(judgement.verdicts)
    parts.append(
        Text(f"{len(RULES)} rules, {checks} checks in {num_stacks} stacks: {found} findings, {waived} waived.", style="bold")
    )
    return Group(*parts)
