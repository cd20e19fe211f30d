"""The commands around a deployment: ask AWS beforehand, run the engine in order, and look for what a destruction has left."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from infra.operations.findings import Finding, Severity, is_clear

JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]
STYLES = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.BLOCKED: "bold red", Severity.UNSURE: "bold magenta"}


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command()(preflight)
    app.command(name="destroy-check")(destroy_check)
    app.command()(leftovers)
    app.command()(deploy)
    app.command()(destroy)
    app.command(name="preview-engine")(preview_engine)


def preflight(
    stack: Annotated[str, typer.Argument(help="A stack, such as prod.cluster.us-east-2.")], as_json: JsonOption = False
) -> None:
    """Ask AWS what would stop a stack: account, quotas, offerings, reservations, versions, images. Exit 1 if anything would."""
    from infra.operations.preflight import preflight as run
    from serving.target import aws_client

    _report(run(stack, aws_client, datetime.now(UTC)), as_json)


def destroy_check(
    environment: Annotated[str, typer.Argument(help="An environment, such as staging.")],
    account: Annotated[str, typer.Option(help="Its AWS account, typed out: the one that you mean to empty.")],
    region: Annotated[str, typer.Option(help="This region alone. [default: the whole environment]")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what destroying would take: stacks in order, and what is protected. Refuses the wrong account; destroys nothing."""
    from infra import config
    from infra.operations.account import require_account
    from infra.operations.destruction import check_confirmation, steps_of
    from serving.target import aws_client

    known = config.environment_of(config.load_catalog(), environment)
    check_confirmation(known.account_id, account)
    identity = require_account(environment, known, aws_client)
    steps = steps_of(environment, region)
    if as_json:
        found = [{"stack": step.stack, "protected": step.protected, "commands": step.commands} for step in steps]
        typer.echo(json.dumps({"account": account, "steps": found}))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(identity.message)
    for step in steps:
        console.print(Text(step.stack, style="bold"), Text(f"{len(step.protected)} protected", style="dim"))
        for line in step.protected:
            console.print(f"    {line}", markup=False)
        for command in step.commands:
            console.print(f"  $ {command}", markup=False)


def leftovers(
    environment: Annotated[str, typer.Argument(help="An environment, such as staging.")],
    region: Annotated[list[str] | None, typer.Option(help="This region; repeat it. [default: all of the environment]")] = None,
    stack: Annotated[str, typer.Option(help="What this stack has left.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List what still carries an environment's tags, known to Pulumi or not. Exit 1 if anything does."""
    from infra import config
    from infra.operations.account import require_account
    from infra.operations.leftovers import Scope
    from infra.operations.leftovers import leftovers as find
    from serving.target import aws_client

    known = config.environment_of(config.load_catalog(), environment)
    require_account(environment, known, aws_client)
    _report(find(Scope(environment, region or known.regions, stack), aws_client), as_json)


def deploy(
    environment: Annotated[str, typer.Argument(help="An environment, such as staging.")],
    region: Annotated[str, typer.Argument(help="One of its regions, such as us-east-2.")],
) -> None:
    """Run preflight and `pulumi up` of a region: its cluster, then its serving. Pulumi asks before it changes anything."""
    from infra.operations import engine
    from infra.operations.account import refuse_local
    from infra.operations.preflight import preflight as run_preflight
    from infra.recovery.estate import load_estate
    from infra.recovery.freeze import refuse_frozen
    from serving.target import aws_client

    engine.require_installed()
    refuse_local(environment)
    refuse_frozen(load_estate(environment))
    engine.deploy(environment, region, lambda stack: _report(run_preflight(stack, aws_client, datetime.now(UTC)), as_json=False))


def destroy(
    environment: Annotated[str, typer.Argument(help="An environment, such as staging.")],
    region: Annotated[str, typer.Argument(help="One of its regions, such as us-east-2.")],
    account: Annotated[str, typer.Option(help="Its AWS account, typed out: the one that you mean to empty.")],
) -> None:
    """Run `pulumi destroy` of a region: its serving, then its cluster; then list what is left of each."""
    from infra.operations import engine
    from infra.operations.leftovers import Scope
    from infra.operations.leftovers import leftovers as find
    from serving.target import aws_client

    engine.require_installed()
    destroy_check(environment, account, region)
    for stack in engine.destroy(environment, region):
        _report(find(Scope(environment, (region,), stack), aws_client), as_json=False)


def preview_engine() -> None:
    """Preview every stack of `local` through the real Pulumi engine, with throw-away state and an emulated AWS."""
    from infra.operations import engine

    if not engine.is_installed():
        typer.echo("skipped: pulumi is not on the PATH. `flotilla preview --all` shows the same graph without it.")
        return
    faults = engine.preview_local()
    for fault in faults:
        typer.echo(fault, err=True)
    if faults:
        raise typer.Exit(1)


def _report(findings: list[Finding], as_json: bool) -> None:
    """Prints findings, and exits 1 unless all is clear."""
    if as_json:
        typer.echo(json.dumps({"is_clear": is_clear(findings), "findings": [finding.as_json() for finding in findings]}))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for finding in findings:
            line = Text(f"{finding.severity.upper():8}", style=STYLES[finding.severity])
            console.print(line.append(f" {finding.check} {finding.subject}: {finding.message}", style="default"))
            if finding.remedy:
                console.print(f"         → {finding.remedy}", markup=False)
    if not is_clear(findings):
        raise typer.Exit(1)
