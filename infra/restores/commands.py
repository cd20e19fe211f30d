"""`flotilla restore`: backups, proved by restoring them beside what they back up."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from infra.drills.figures import Part, table_of
from serving.errors import UserError
from serving.target import LOCAL, aws_client, load_target

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from infra.restores.state import StateBucket

restore = typer.Typer(
    no_args_is_help=True,
    help=(
        "Restore the ledger, the registry or Pulumi's state from its backup, and prove the result. Nothing that is whole is ever "
        "overwritten, so each is its own drill: run it on a good day with --drop. docs/operations.md has when to use which."
    ),
)

EnvOption = Annotated[str, typer.Option("--env", help="Environment to speak to.")]
RegionOption = Annotated[str | None, typer.Option("--region", help="Whose replicas to read; the home region's if left out.")]
ToOption = Annotated[
    str | None, typer.Option("--to", metavar="TABLE", help="Table to restore into. [default: a new one, named by the time]")
]
DropOption = Annotated[bool, typer.Option("--drop", help="Delete the new table afterwards: a drill. Not with --to.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Read everything, write nothing; the answer has the same shape.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON alone, for machines.")]


def register(app: typer.Typer) -> None:
    """Adds the group to the command line."""
    app.add_typer(restore, name="restore")


@restore.command()
def ledger(
    to: ToOption = None,
    drop: DropOption = False,
    region: RegionOption = None,
    dry_run: DryOption = False,
    as_json: JsonOption = False,
    env: EnvOption = LOCAL,
) -> None:
    """Rebuild the usage ledger from the archive into an empty table, and prove it by hash, seals and arithmetic.

    Where the ledger's own table is gone, make it again (`pulumi up`) and name it with --to: it is empty. Where some rows are
    gone, `flotilla ledger replay HOUR` puts them back. Exit code 1 where the proof fails.
    """
    from infra.restores.ledger import restore_ledger
    from serving.metering.books import Books

    books = Books.of(load_target(env), region)
    table = _table(to, books.table, drop)
    part = restore_ledger(books, table, dry_run=dry_run)
    _finish(books.dynamodb, part, table, drop=drop and not dry_run)
    _answer("ledger", part, {"env": env, "table": table, "dry_run": dry_run}, as_json)


@restore.command()
def registry(
    at: Annotated[
        datetime | None,
        typer.Option("--at", formats=["%Y-%m-%dT%H:%M:%S"], help="UTC time to go back to. [default: the newest point]"),
    ] = None,
    to: ToOption = None,
    drop: DropOption = False,
    region: RegionOption = None,
    dry_run: DryOption = False,
    as_json: JsonOption = False,
    env: EnvOption = LOCAL,
) -> None:
    """Restore the registry as of a point in time into a new table, and compare it with the live one and with the artifacts.

    Somebody pointed an alias at the wrong release: `flotilla release` points it back. Items are gone or garbled: restore to
    before, look at what differs, and put back what was right. Exit code 1 where the restored registry does not hold.
    """
    from infra.restores.registry import Registry, restore_registry

    target = load_target(env)
    name, its = target.region(region)
    dynamodb = target.aws_client("dynamodb", name)
    found = Registry(dynamodb, target.aws_client("s3", name), its.tables["registry"], its.artifact_bucket)
    table = _table(to, found.table, drop)
    part = restore_registry(found, table, at.replace(tzinfo=UTC) if at else None, dry_run=dry_run)
    _finish(dynamodb, part, table, drop=drop and not dry_run)
    _answer("registry", part, {"env": env, "table": table, "dry_run": dry_run}, as_json)


@restore.command()
def state(
    env: Annotated[str, typer.Option("--env", help="Environment whose stacks it is; not local, which keeps none in AWS.")],
    source: Annotated[
        str | None, typer.Option("--from", metavar="REGION", help="Region of the copy. [default: the second]")
    ] = None,
    unlock: Annotated[bool, typer.Option("--unlock", help="Delete locks that were left behind, and those alone.")] = False,
    dry_run: DryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Hold Pulumi's state against its copy in the other region; restore checkpoints that are missing or damaged.

    While the home region is lost, its bucket cannot be read: the copy is verified, and `login` is what to give `pulumi login`. A
    stack that says it is locked: --unlock deletes locks whose update has certainly ended. `pulumi cancel` deletes the others,
    once you know that nobody is at work. Exit code 1 where a checkpoint is not whole in the end.
    """
    from infra.restores.state import restore_state

    home, copy = _state_buckets(env, source)
    part = restore_state(home, copy, dry_run=dry_run, unlock=unlock, now=datetime.now(UTC))
    _answer("state", part, {"env": env, "to": home.bucket, "from": copy.bucket, "dry_run": dry_run}, as_json)


def _state_buckets(env: str, source: str | None) -> tuple[StateBucket, StateBucket]:
    """The bucket to restore into, and its copy, by the names that `infra/bootstrap` gives them.

    Raises:
        UserError: the environment has no copy, or not in that region.
    """
    from infra import config
    from infra.naming import Names
    from infra.restores.state import StateBucket

    if env == LOCAL:
        raise UserError(f"{LOCAL} keeps no state of Pulumi's in AWS", "name another environment, such as prod")
    catalog = config.load_catalog()
    regions = config.environment_of(catalog, env).regions[:2]
    if len(regions) < 2:
        raise UserError(f"{env} has one region, and its state no copy", "S3 keeps earlier versions of each object there")
    copy = source or regions[1]
    if copy not in regions:
        raise UserError(f"{copy} has no bucket of {env}'s state", f"{' and '.join(regions)} have")
    home = next(region for region in regions if region != copy)
    names = Names(catalog.name_prefix, env)
    to, source_ = (
        StateBucket(cast("S3Client", aws_client("s3", region)), region, names.globally(f"state-{region}"))
        for region in (home, copy)
    )
    return to, source_


def _table(to: str | None, table: str, drop: bool) -> str:
    """The table to restore into.

    Raises:
        UserError: one was named, and would be deleted.
    """
    if to and drop:
        raise UserError("--drop deletes only a table that the command has named itself", "leave out --to or --drop")
    return to or f"{table}-restored-{datetime.now(UTC):%Y%m%d%H%M%S}"


def _finish(dynamodb: Any, part: Part, table: str, *, drop: bool) -> None:
    if drop:
        dynamodb.delete_table(TableName=table)
    part.show("the new table was deleted again", "is_dropped", drop)


def _answer(what: str, part: Part, named: dict[str, Any], as_json: bool) -> None:
    console = Console(soft_wrap=True)
    if not as_json:
        Console(width=None if console.is_terminal else 180).print(table_of([part]))
    typer.echo(json.dumps({"restore": what, **named, **part.figures, "holds": part.holds}))
    if not part.holds:
        raise typer.Exit(1)
