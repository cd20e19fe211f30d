"""What is turned away before a gateway sees it: addresses of bad repute, floods from one address, well-known attacks.

A prompt is text, and may be about an attack: rules that read the body only count. For the same reason AWS's common rule set is
not here: it refuses bodies above 8 KB, and whatever in them looks like a script. Limits that are fair to tenants are the
gateway's, which knows them by key; an address may stand for a whole company.
"""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.naming import StackName
from infra.stack_config.edge import FirewallConfig

WINDOW_S = 300
BODY_RULES = ("JavaDeserializationRCE_BODY", "Log4JRCE_BODY", "ReactJSRCE_BODY")
"""Those of AWS's known bad inputs that read the body (AWS documentation, read November 2026)."""


class Firewall(Component):
    """A web ACL in one region, and the load balancer it stands before."""

    def __init__(
        self,
        name: str,
        acl: str,
        config: FirewallConfig,
        load_balancer_arn: pulumi.Input[str],
        stack: StackName,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("traffic:Firewall", name, stack, opts)
        web_acl = aws.wafv2.WebAcl(
            self.part("acl"),
            name=acl,
            scope="REGIONAL",
            default_action={"allow": {}},
            rules=[
                _managed(1, "AWSManagedRulesAmazonIpReputationList", ()),
                _managed(2, "AWSManagedRulesKnownBadInputsRuleSet", BODY_RULES),
                {
                    "name": "flood-from-one-address",
                    "priority": 3,
                    "action": {"block": {}},
                    "statement": {
                        "rate_based_statement": {
                            "aggregate_key_type": "IP",
                            "evaluation_window_sec": WINDOW_S,
                            "limit": config.max_requests_per_address_per_5_min,
                        }
                    },
                    "visibility_config": _visibility("flood-from-one-address"),
                },
            ],
            visibility_config=_visibility(acl),
            tags=self.tags(),
            opts=self.child(),
        )
        aws.wafv2.WebAclAssociation(
            self.part("association"), resource_arn=load_balancer_arn, web_acl_arn=web_acl.arn, opts=self.child()
        )
        self.register_outputs({})


def _managed(priority: int, rule_group: str, counted: Sequence[str]) -> aws.wafv2.WebAclRuleArgsDict:
    """A rule group of AWS, whose rules act as AWS says but for `counted`, which only count."""
    return {
        "name": rule_group,
        "priority": priority,
        "override_action": {"none": {}},
        "statement": {
            "managed_rule_group_statement": {
                "vendor_name": "AWS",
                "name": rule_group,
                "rule_action_overrides": [{"name": rule, "action_to_use": {"count": {}}} for rule in counted],
            }
        },
        "visibility_config": _visibility(rule_group),
    }


def _visibility(metric: str) -> aws.wafv2.WebAclVisibilityConfigArgsDict:
    """Metrics, and no samples: a sample holds headers, and among them a key."""
    return {"cloudwatch_metrics_enabled": True, "metric_name": metric, "sampled_requests_enabled": False}
