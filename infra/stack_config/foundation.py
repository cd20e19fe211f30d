"""`<env>.foundation`: what survives a region."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from infra.stack_config.model import Email, Frozen, RoleArn


class BudgetConfig(Frozen):
    """An alarm on the bill of AWS. It stops nothing: it tells people."""

    monthly_usd: Annotated[int, Field(ge=1, le=100_000_000)]
    emails: Annotated[tuple[Email, ...], Field(min_length=1, max_length=10)]
    actual_percent: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = (50, 80, 100)
    """Told when so much of it has been spent."""
    forecast_percent: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = (100,)
    """Told when so much of it is forecast to be spent by the month's end."""


class DutiesConfig(Frozen):
    """Who may take the roles for work besides deploying: roles of this account, `*` allowed in them. One that nobody may take is
    not made."""

    publishers: tuple[RoleArn, ...] = ()
    """Push images, add releases, move aliases."""
    responders: tuple[RoleArn, ...] = ()
    """Evacuate a region and bring it back."""
    auditors: tuple[RoleArn, ...] = ()
    """Read usage."""


class FoundationConfig(Frozen):
    """The stack file of the foundation."""

    archive_retention_days: Annotated[int, Field(ge=1, le=3650)] = 400
    """Usage segments cannot be deleted or overwritten before; a year of bills can be rebuilt."""
    state_mirror_retention_days: Annotated[int, Field(ge=1, le=3650)] = 30
    """What was last deployed cannot be deleted or overwritten before, by mistake or by an intruder."""
    noncurrent_version_days: Annotated[int, Field(ge=1, le=365)] = 30
    """An overwritten or deleted artifact can be had back this long."""
    body_days: Annotated[int, Field(ge=30, le=365)] = 30
    """Conversations, replayed results and batch files are kept this long."""
    kms_deletion_window_days: Annotated[int, Field(ge=7, le=30)] = 30
    images_kept: Annotated[int, Field(ge=10, le=1000)] = 50
    """The newest images of the registry; older ones are removed."""
    duties: DutiesConfig = DutiesConfig()
    budget: BudgetConfig | None = None
    """None sets no alarm."""
