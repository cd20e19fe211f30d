"""What a stack tells later stacks: a typed contract, checked where it is exported and where it is read.

A contract carries names, identifiers and addresses, never a secret. The exporter must give every field and no other; the reader
refuses a stack that lacks one, and ignores what it does not know, so that an exporter may be upgraded first. Nothing else in
`infra/` makes a StackReference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import pulumi
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.naming import StackName
from serving.settings import Secrets, Tables


class ContractError(Exception):
    """A stack's outputs are not what its contract says; the message names the stack, the field and the way out."""


class _Contract(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RegionData(_Contract):
    """What the foundation keeps in one region."""

    artifact_bucket: str
    archive_bucket: str
    body_bucket: str
    """Conversations, replayed results and batch files; items in tables point to them."""
    state_mirror_bucket: str
    """What was last deployed, for a survivor who can reach neither Pulumi nor its backend."""
    kms_key_arn: str
    image_repository: str
    """Address of the registry's repository in this region, without tag or digest."""


class AllTables(Tables):
    """Names of every global table: the gateways' and those of features that keep state of their own."""

    conversations: str
    batches: str


class FoundationOutputs(_Contract):
    """What survives a region."""

    tables: AllTables
    secrets: Secrets
    regions: dict[str, RegionData]
    permissions_boundary_arn: str
    """Every role that later stacks make carries it."""


class KarpenterData(_Contract):
    """What Karpenter's chart and its node classes need to know of AWS."""

    instance_profile_name: str
    """For `spec.instanceProfile` of node classes. Karpenter makes none itself: it may change nothing in IAM, and launches nodes
    while IAM's control plane is down."""
    interruption_queue: str
    """Name of the queue that tells of spot notices, reclaims and failing hardware."""


class ClusterOutputs(_Contract):
    """Where workloads of a region run."""

    cluster_name: str
    cluster_endpoint: str
    kubeconfig: str
    """Addresses and a command that fetches a token; no credential."""
    kubernetes_version: str
    vpc_id: str
    vpc_cidr: str
    private_subnet_ids: list[str]
    public_subnet_ids: list[str]
    cluster_security_group_id: str
    karpenter: KarpenterData


class ServingOutputs(_Contract):
    """How a region is reached."""

    gateway_service: str
    gateway_port: int
    gateway_health_path: str
    """Whether one gateway wants traffic: the load balancer's question."""
    region_health_path: str
    """Whether the region should receive traffic: the edge's question."""
    control_path: str
    """Below it, a gateway says whether another region has been evacuated: 200 on `<path>/<region>` while it is, 404 while not."""
    load_balancer_arn: str
    """Without a listener for TLS: that is the edge's, who has the certificate."""
    load_balancer_dns_name: str
    load_balancer_zone_id: str
    target_group_arn: str


class EdgeOutputs(_Contract):
    """What clients are told."""

    api_domain: str
    further_domains: list[str]
    """Names besides it that also reach every region."""
    regional_domains: dict[str, str]
    """Where each region answers whatever its health."""


ContractT = TypeVar("ContractT", bound=_Contract)


def export(contract: type[ContractT], values: Mapping[str, Any]) -> None:
    """Exports `values`, whose leaves may be Outputs, as the stack's outputs.

    Raises:
        ContractError: a field is missing or unknown; a value of the wrong type is refused as soon as it is known.
    """
    fields = contract.model_fields.keys()
    if values.keys() != fields:
        wrong = ", ".join(sorted(values.keys() ^ fields))
        raise ContractError(f"{pulumi.get_stack()}: exports and {contract.__name__} differ in {wrong}")
    checked = pulumi.Output.from_input(dict(values)).apply(
        lambda known: decode(contract, known, pulumi.get_stack()).model_dump(mode="json")
    )
    for name in fields:
        pulumi.export(name, checked[name])


def read(stack: StackName, contract: type[ContractT]) -> pulumi.Output[ContractT]:
    """What `stack` exports. It is refused, with ContractError, where it lacks a field."""
    reference = pulumi.StackReference(stack.layer if not stack.region else f"{stack.layer}.{stack.region}", stack.reference)
    return reference.outputs.apply(lambda outputs: decode(contract, outputs, str(stack)))


def decode(contract: type[ContractT], outputs: Mapping[str, Any], stack: str) -> ContractT:
    """`outputs` of `stack` as its contract.

    Raises:
        ContractError: they do not fit.
    """
    try:
        return contract.model_validate(outputs)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False))
        raise ContractError(
            f"stack {stack} does not export what {contract.__name__} needs ({faults}). Update it first."
        ) from error
