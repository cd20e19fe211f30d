"""`<env>.edge`: one name for all regions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from infra.stack_config.model import Frozen


class FirewallConfig(Frozen):
    """What is turned away before a gateway sees it."""

    max_requests_per_address_per_5_min: Annotated[int, Field(ge=100, le=2_000_000_000)] = 100_000
    """Above it an address is blocked until it calms down. It stops floods, not customers: this is a fifth of the design load of
    100,000 requests a minute, from one address."""


class RegionSwitchConfig(Frozen):
    """A plan of ARC Region switch that moves traffic, beside our own controls. Off: its plans of two workflows, which this is,
    fail in the provider (terraform-provider-aws#47282, open in November 2026), and an evacuation needs none."""

    rto_minutes: Annotated[int, Field(ge=1, le=10_080)] = 10
    """Told to AWS, who reports whether executions kept it."""
    health_check_ids: dict[str, str] = Field(default_factory=dict)
    """By region, the checks that AWS made for the plan; known after the first `pulumi up` with it."""


class EdgeConfig(Frozen):
    """The stack file of the edge."""

    domain: Annotated[str, Field(pattern=r"^([a-z0-9-]+\.)+[a-z]{2,}$")]
    """Zone that this stack owns; the API answers at `api.<domain>`. Its parent zone must name the servers of this one."""
    firewall: FirewallConfig | Literal["none"] = FirewallConfig()
    """`none` lets everything through to the gateways."""
    region_switch: RegionSwitchConfig | Literal["none"] = "none"
    accelerator: Literal["none", "beside"] = "none"
    """`beside` adds `static.<domain>`: two fixed addresses before all regions, for clients whose firewalls want them. It costs
    $18 a month and more a GB, and follows health but not evacuation; so it is off, and never before `api.<domain>`."""
