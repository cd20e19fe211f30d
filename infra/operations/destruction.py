"""What destroying an environment, or one region of it, would take: which stacks, in which order, and what refuses to go.

It destroys nothing. The order is that of deployment backwards: serving before its cluster, so that Karpenter still runs when its
node pools go and takes its nodes with it, and the load balancer's controller when its target groups do. What holds data is
protected in the program; the engine refuses a stack that has any, and a person must say so for each stack.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.embedded.recorder import environment_stacks, record
from infra.naming import REGIONAL, parse_stack
from serving.errors import UserError


@dataclass(frozen=True)
class Step:
    """One stack, in the order of destruction."""

    stack: str
    protected: tuple[str, ...]
    """Type and name of what the engine refuses to delete."""

    @property
    def commands(self) -> tuple[str, ...]:
        """What a person runs."""
        unprotect = (f"pulumi state unprotect --all --stack {self.stack}",) if self.protected else ()
        return (*unprotect, f"pulumi destroy --stack {self.stack}")


def steps_of(environment: str, region: str = "") -> list[Step]:
    """The steps for a region, or with `""` for the whole environment.

    Raises:
        UserError: there is no such environment or region, or its stack files are wrong.
    """
    stacks = [parse_stack(name) for name in environment_stacks(environment)]
    if region:
        stacks = [stack for stack in stacks if stack.layer in REGIONAL and stack.region == region]
        if not stacks:
            raise UserError(f"{environment} has no region {region!r}", "name one of `environments` in stacks/catalog.yaml")
    graphs = record([str(stack) for stack in stacks])
    return [
        Step(
            str(stack),
            tuple(f"{item.type} {item.name}" for item in graphs[str(stack)].resources if item.options.protect),
        )
        for stack in reversed(stacks)
    ]


def check_confirmation(account_id: str, typed: str) -> None:
    """Raises UserError unless `typed` is the account that would lose its resources."""
    if typed != account_id:
        raise UserError(f"--account is {typed!r}, and this environment is in {account_id}", "type the account you mean to empty")
