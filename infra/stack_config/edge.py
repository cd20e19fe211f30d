"""`<env>.edge`: one name for all regions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from infra.stack_config.model import Frozen


class EdgeConfig(Frozen):
    """The stack file of the edge."""

    domain: Annotated[str, Field(pattern=r"^([a-z0-9-]+\.)+[a-z]{2,}$")]
    """Zone that this stack owns; the API answers at `api.<domain>`."""
