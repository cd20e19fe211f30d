"""`flotilla image`: which serving image an environment runs."""

from __future__ import annotations

from typing import Annotated, cast, get_args

import typer
from rich.console import Console

from infra.images.pin import Role
from serving.errors import UserError

group = typer.Typer(name="image", help="Say which serving image an environment runs.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds the group to the command line."""
    app.add_typer(group)


@group.command()
def pin(
    digest: Annotated[str, typer.Argument(help="sha256:…, as `make image` prints it.")],
    env: Annotated[str, typer.Option("--env", help="Environment whose stack files are written.")],
    role: Annotated[list[str] | None, typer.Option(help="gateway or engine; repeat it for both. [default: both]")] = None,
) -> None:
    """Write an image's digest into every region's stack file, once every region's registry has it."""
    from infra.images.pin import pin as pin_image
    from serving.target import aws_client

    roles = tuple(dict.fromkeys(role or get_args(Role)))
    for name in roles:
        if name not in get_args(Role):
            raise UserError(f"--role {name}: must be one of {', '.join(get_args(Role))}", "a shipper runs its gateway's image")
    console = Console(soft_wrap=True, highlight=False)
    for pinned in pin_image(env, digest, cast(tuple[Role, ...], roles), lambda region: aws_client("ecr", region)):  # type: ignore[arg-type,return-value]
        console.print(f"{pinned.file}: {pinned.role} {'is now' if pinned.has_changed else 'was already'} {pinned.after}")
