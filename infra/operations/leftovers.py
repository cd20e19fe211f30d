"""What still carries an environment's tags in AWS: after a destruction that is what goes on costing money.

The tags are those that every resource of ours has (`infra.tags`), Karpenter's nodes and the controller's load balancers too, so
this finds what no Pulumi state knows. The Resource Groups Tagging API lists what is gone for a while after it went; ask again.
It knows what lies in a region, and what is global (IAM apart, which it does not list) in us-east-1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from infra.naming import PROJECT
from infra.operations.findings import Clients, Finding, Severity, asked

GLOBAL_REGION = "us-east-1"
"""Where the API lists what belongs to no region: Route 53, CloudFront, Global Accelerator."""


@dataclass(frozen=True)
class Scope:
    """Whose leftovers: an environment's, or one stack's of it."""

    environment: str
    regions: Sequence[str]
    stack: str = ""

    @property
    def tags(self) -> dict[str, str]:
        """The tags that they carry."""
        return {"project": PROJECT, "environment": self.environment, **({"stack": self.stack} if self.stack else {})}


def leftovers(scope: Scope, clients: Clients) -> list[Finding]:
    """A finding for every resource that is still there, by region; one that is OK for a region with none.

    Raises:
        UserError: there are no credentials.
    """
    findings: list[Finding] = []
    seen: set[str] = set()
    for region in dict.fromkeys((*scope.regions, GLOBAL_REGION)):
        findings += asked("leftover", region, partial(_in_region, scope, region, clients, seen))
    return findings


def _in_region(scope: Scope, region: str, clients: Clients, seen: set[str]) -> Iterator[Finding]:
    """Findings of a region, but for what is in `seen`, to which it adds: some resources are listed in more than one."""
    filters = [{"Key": key, "Values": [value]} for key, value in scope.tags.items()]
    pages = clients("resourcegroupstaggingapi", region).get_paginator("get_resources").paginate(TagFilters=filters)
    arns = sorted(
        (item["ResourceARN"], next((tag["Value"] for tag in item["Tags"] if tag["Key"] == "stack"), "?"))
        for page in pages
        for item in page["ResourceTagMappingList"]
        if item["ResourceARN"] not in seen
    )
    seen.update(arn for arn, _ in arns)
    if not arns:
        yield Finding("leftover", region, Severity.OK, "nothing carries the tags")
    for arn, stack in arns:
        remedy = f"destroy {stack}, or delete it by hand if no state knows it"
        yield Finding("leftover", region, Severity.BLOCKED, f"{arn} (stack {stack})", remedy)
