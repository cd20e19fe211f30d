"""An ARC Region switch plan: a console and a record for taking a region out and bringing it back.

It adds a switch and takes none away: `flotilla failover` needs it as little as it needs this stack. Region switch makes a health
check for each region itself and says which only once the plan is there, so it takes two updates: one that makes the plan, and one
after their ids are in the stack file (`aws arc-region-switch list-route53-health-checks`), from which on they count in the
calculated checks. It moves traffic and scales nothing: KEDA would undo what a plan sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.naming import StackName

STEP_TIMEOUT_MINUTES = 10


@dataclass(frozen=True)
class RegionSwitchArgs:
    """`record` is the name that has one record a region, whose set identifier is the region's name."""

    plan: str
    regions: Sequence[str]
    record: str
    rto_minutes: int
    zone: aws.route53.Zone
    boundary_arn: pulumi.Input[str]


class RegionSwitch(Component):
    """The plan, with a workflow to deactivate a region and one to activate it, and the role that it runs as."""

    def __init__(self, name: str, args: RegionSwitchArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("traffic:RegionSwitch", name, stack, opts)
        role = aws.iam.Role(
            self.part("role"),
            name=args.plan,
            assume_role_policy=iam.trust("arc-region-switch.amazonaws.com"),
            permissions_boundary=args.boundary_arn,
            tags=self.tags(),
            opts=self.child(),
        )
        aws.iam.RolePolicy(
            self.part("policy"),
            role=role.name,
            policy=iam.document(iam.allow("ReadRecords", ["route53:ListResourceRecordSets"], [args.zone.arn])),
            opts=self.child(),
        )
        aws.arcregionswitch.Plan(
            self.part("plan"),
            name=args.plan,
            description="Takes a region out of the API's name, and brings it back",
            recovery_approach="activeActive",
            regions=sorted(args.regions),
            recovery_time_objective_minutes=args.rto_minutes,
            execution_role=role.arn,
            workflows=[
                {"workflow_target_action": action, "steps": [_records_step(args)]} for action in ("activate", "deactivate")
            ],
            tags=self.tags(),
            opts=self.child(),
        )
        self.register_outputs({})


def _records_step(args: RegionSwitchArgs) -> aws.arcregionswitch.PlanWorkflowStepArgsDict:
    return {
        "name": "records",
        "execution_block_type": "Route53HealthCheck",
        "route53_health_check_configs": [
            {
                "hosted_zone_id": args.zone.zone_id,
                "record_name": args.record,
                "record_sets": [{"region": region, "record_set_identifier": region} for region in sorted(args.regions)],
                "timeout_minutes": STEP_TIMEOUT_MINUTES,
            }
        ],
    }
