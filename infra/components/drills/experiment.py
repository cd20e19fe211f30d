"""A drill in AWS: an experiment template of AWS FIS, the alarm that stops it, its role and its log.

What is harmed is the drill's own (`plans.py`); what bounds it is the same for all. AWS ends an experiment at once when its alarm
rings, and refuses to start one while it does. Nobody starts one by having the template: that takes `fis:StartExperiment`, which
of our roles only those that deploy have. In production a template says by a tag that it is meant to be there; the guardrail
`experiments-meant` refuses one that does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import iam
from infra.components.component import Component
from infra.components.drills.plans import Plan, Stop
from infra.components.roles import RoleArgs, create_role
from infra.naming import StackName

LOG_DAYS = 90
MEANT_TAG = "drills-in-production"
"""`true` on a template of production that its stack file asks for by name."""


@dataclass(frozen=True)
class ExperimentArgs:
    """`drill_name` names template, role, log and alarm."""

    drill_name: str
    plan: Plan
    account_id: str
    region: str
    load_balancer: pulumi.Input[str]
    """As CloudWatch calls it: the end of its ARN."""
    target_group: pulumi.Input[str]
    permissions_boundary_arn: pulumi.Input[str]
    is_meant_for_production: bool = False


class Experiment(Component):
    """Template, alarm, role and log of one drill."""

    def __init__(self, name: str, args: ExperimentArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("drills:Experiment", name, stack, opts)
        plan = args.plan
        log = aws.cloudwatch.LogGroup(
            self.part("log"), name=args.drill_name, retention_in_days=LOG_DAYS, tags=self.tags(), opts=self.child()
        )
        role = create_role(self, "role", RoleArgs(args.drill_name, _trust(args), args.permissions_boundary_arn))
        document = iam.plain_document(*plan.statements, *_log_statements(args.region))
        policy = aws.iam.RolePolicy(self.part("policy"), role=role.name, policy=document, opts=self.child())
        alarm = self._create_no_gateway(args) if plan.stop is Stop.NO_GATEWAY else self._create_told_to_stop(args, stack)
        meant = {MEANT_TAG: "true"} if args.is_meant_for_production else {}
        aws.fis.ExperimentTemplate(
            self.part("template"),
            description=plan.description,
            role_arn=role.arn,
            targets=plan.targets,
            actions=plan.actions,
            stop_conditions=[{"source": "aws:cloudwatch:alarm", "value": alarm.arn}],
            experiment_options={"account_targeting": "single-account", "empty_target_resolution_mode": "fail"},
            log_configuration={
                "log_schema_version": 2,
                "cloudwatch_logs_configuration": {"log_group_arn": pulumi.Output.concat(log.arn, ":*")},
            },
            tags=self.tags(Name=args.drill_name, **meant),
            opts=self.child(depends_on=[policy]),
        )
        self.register_outputs({})

    def _create_no_gateway(self, args: ExperimentArgs) -> aws.cloudwatch.MetricAlarm:
        """Rings when no gateway of the region is healthy; a region without any answer counts as one that rings."""
        return aws.cloudwatch.MetricAlarm(
            self.part("no-gateway"),
            name=args.drill_name,
            alarm_description="No gateway of the region is healthy: a drill ends here",
            namespace="AWS/ApplicationELB",
            metric_name="HealthyHostCount",
            dimensions={"LoadBalancer": args.load_balancer, "TargetGroup": args.target_group},
            statistic="Maximum",
            comparison_operator="LessThanThreshold",
            threshold=1,
            period=60,
            evaluation_periods=1,
            treat_missing_data="breaching",
            tags=self.tags(),
            opts=self.child(),
        )

    def _create_told_to_stop(self, args: ExperimentArgs, stack: StackName) -> aws.cloudwatch.MetricAlarm:
        """Rings when somebody says so: the region is meant to have no gateway, and an alarm of a survivor is in another region,
        where FIS does not look."""
        return aws.cloudwatch.MetricAlarm(
            self.part("told-to-stop"),
            name=args.drill_name,
            alarm_description="Somebody put 1 into this metric: a drill ends here",
            namespace=f"flotilla/{stack.environment}",
            metric_name="StopDrill",
            statistic="Maximum",
            comparison_operator="GreaterThanOrEqualToThreshold",
            threshold=1,
            period=60,
            evaluation_periods=1,
            treat_missing_data="notBreaching",
            tags=self.tags(),
            opts=self.child(),
        )


def _trust(args: ExperimentArgs) -> str:
    """Trust in experiments of this account and region, and in nothing else that FIS does."""
    experiments = f"arn:aws:fis:{args.region}:{args.account_id}:experiment/*"
    condition = {"StringEquals": {"aws:SourceAccount": args.account_id}, "ArnLike": {"aws:SourceArn": experiments}}
    return iam.trust("fis.amazonaws.com", condition=condition)


def _log_statements(region: str) -> list[iam.Statement]:
    logs = ["logs:CreateLogDelivery", "logs:DescribeLogGroups", "logs:DescribeResourcePolicies", "logs:PutResourcePolicy"]
    # Deliveries have no ARN before they are made.
    return [iam.allow("Log", logs, ["*"], {"StringEquals": {"aws:RequestedRegion": region}})]
