"""What the models of all stack files share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Base of every model here: immutable, and a key it does not know is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


PoolName = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$")]
"""Name of a node pool; part of logical names, so it carries no region."""
GpuInstanceType = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*\.[a-z0-9]+$")]
"""A type of `infra.instances.INSTANCE_SHAPES`."""
RoleArn = Annotated[str, Field(pattern=r"^arn:aws:iam::\d{12}:role/.+$")]
Email = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
