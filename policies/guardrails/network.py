"""What can be reached from where, and what crosses it unencrypted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from policies.guardrails.estate import Estate
from policies.guardrails.rule import Rulebook, Severity
from policies.resources import Declared, at, listed

CLUSTER = "aws:eks/cluster:Cluster"
ANYWHERE = frozenset({"0.0.0.0/0", "::/0"})
PUBLIC_PORTS = frozenset({80, 443})
"""Of a load balancer: 80 only ever refuses or redirects (rule `listener-encrypted`)."""
MIN_ZONES = 3
LISTENER = "aws:lb/listener:Listener"
NOTHING_SERVED = ("redirect", "fixed-response")

book = Rulebook()


@book.rule(
    "ingress-named",
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule",
    remedy="name a security group or a range of ours",
)
def ingress_named(rule: Declared, _estate: Estate) -> Iterator[str]:
    """Nothing but a load balancer's own ports is open to the Internet."""
    source = rule.at("cidrIpv4") or rule.at("cidrIpv6")
    if source in ANYWHERE and not _is_public(rule.at("fromPort"), rule.at("toPort")):
        yield f"ports {rule.at('fromPort')}–{rule.at('toPort')} are open to {source}"


@book.rule(
    "group-without-inline-rules", "aws:ec2/securityGroup:SecurityGroup", remedy="declare each rule as a resource of its own"
)
def group_without_inline_rules(group: Declared, _estate: Estate) -> Iterator[str]:
    """A security group's own rules open nothing to the Internet but a load balancer's ports."""
    for rule in listed(group.at("ingress")):
        sources = {*listed(at(rule, "cidrBlocks")), *listed(at(rule, "ipv6CidrBlocks"))}
        if sources & ANYWHERE and not _is_public(at(rule, "fromPort"), at(rule, "toPort")):
            yield f"ports {at(rule, 'fromPort')}–{at(rule, 'toPort')} are open to the Internet"


@book.rule("cluster-api-closed", CLUSTER, remedy="turn the public endpoint off, or list the ranges that may")
def cluster_api_closed(cluster: Declared, _estate: Estate) -> Iterator[str]:
    """The Kubernetes API is reached privately, and from outside by listed addresses at most."""
    access = cluster.at("vpcConfig")
    if at(access, "endpointPrivateAccess") is not True:
        yield "nodes reach its API over the Internet"
    if at(access, "endpointPublicAccess"):
        ranges = set(listed(at(access, "publicAccessCidrs")))
        if not ranges or ranges & ANYWHERE:
            yield "its API is open to the Internet"


@book.rule("cluster-secrets-encrypted", CLUSTER, remedy="set encryptionConfig for secrets with a key of ours")
def cluster_secrets_encrypted(cluster: Declared, _estate: Estate) -> Iterator[str]:
    """Kubernetes secrets are encrypted with a key of ours."""
    config = cluster.at("encryptionConfig")
    if "secrets" not in listed(at(config, "resources")) or not at(config, "provider", "keyArn"):
        yield "its secrets are not encrypted with a key of ours"


@book.rule("cluster-audited", CLUSTER, remedy="add audit and authenticator to enabledClusterLogTypes")
def cluster_audited(cluster: Declared, _estate: Estate) -> Iterator[str]:
    """Who did what in the cluster is written down."""
    missing = {"audit", "authenticator"} - set(listed(cluster.at("enabledClusterLogTypes")))
    if missing:
        yield f"does not log {' and '.join(sorted(missing))}"


@book.rule("cluster-access-by-entries", CLUSTER, remedy="set accessConfig: API, and no rights for the creator")
def cluster_access_by_entries(cluster: Declared, _estate: Estate) -> Iterator[str]:
    """Access to the cluster is a matter of access entries alone.

    The creator's hidden administrator outlives the role that nobody remembers, and a config map can lock everybody out.
    """
    if cluster.at("accessConfig", "authenticationMode") != "API":
        yield "a config map decides who gets in"
    if cluster.at("accessConfig", "bootstrapClusterCreatorAdminPermissions") is not False:
        yield "whoever creates it stays its administrator"


@book.rule("cluster-kept", CLUSTER, remedy="set deletionProtection")
def cluster_kept(cluster: Declared, estate: Estate) -> Iterator[str]:
    """A cluster cannot be deleted in one step."""
    if cluster.at("deletionProtection") is not True:
        yield "can be deleted in one step"


@book.rule("cluster-supported", CLUSTER, remedy="set upgradePolicy.supportType to STANDARD")
def cluster_supported(cluster: Declared, _estate: Estate) -> Iterator[str]:
    """A cluster does not slip into extended support, which costs six times as much an hour."""
    if cluster.at("upgradePolicy", "supportType") != "STANDARD":
        yield "may slip into extended support"


@book.rule("three-zones", "aws:ec2/vpc:Vpc", remedy="give it subnets of each kind in three zones")
def three_zones(vpc: Declared, estate: Estate) -> Iterator[str]:
    """A network lies in three zones, inside and out, so that one can be lost."""
    subnets = estate.companions(vpc, "aws:ec2/subnet:Subnet", "vpcId")
    for kind, role in (("private", "kubernetes.io/role/internal-elb"), ("public", "kubernetes.io/role/elb")):
        zones = {str(subnet.at("availabilityZone")) for subnet in subnets if subnet.at("tags", role)}
        if len(zones) < MIN_ZONES:
            yield f"has {kind} subnets in {len(zones)} zones, must be {MIN_ZONES}"


@book.rule("listener-encrypted", LISTENER, remedy="use HTTPS with a TLS 1.3 policy; let port 80 refuse or redirect")
def listener_encrypted(listener: Declared, _estate: Estate) -> Iterator[str]:
    """A load balancer speaks TLS 1.2 or later, and answers plain HTTP with a redirect or a refusal at most."""
    if listener.at("protocol") == "HTTPS":
        if "TLS13" not in str(listener.at("sslPolicy")):
            yield f"its TLS policy is {listener.at('sslPolicy')}"
    elif any(at(action, "type") not in NOTHING_SERVED for action in listed(listener.at("defaultActions"))):
        yield f"serves over plain {listener.at('protocol')}"


@book.rule("load-balancer-strict", "aws:lb/loadBalancer:LoadBalancer", remedy="set dropInvalidHeaderFields")
def load_balancer_strict(balancer: Declared, _estate: Estate) -> Iterator[str]:
    """A load balancer drops malformed headers: two parsers that read one request differently are how requests are smuggled."""
    if balancer.at("loadBalancerType") in (None, "application") and balancer.at("dropInvalidHeaderFields") is not True:
        yield "passes malformed headers on"


@book.rule(
    "load-balancer-kept", "aws:lb/loadBalancer:LoadBalancer", remedy="set enableDeletionProtection", severity=Severity.ADVISORY
)
def load_balancer_kept(balancer: Declared, estate: Estate) -> Iterator[str]:
    """The front door of a region cannot be deleted in one step."""
    if balancer.at("enableDeletionProtection") is not True and estate.is_multi_region and not estate.scope.is_on_this_machine:
        yield "can be deleted in one step"


@book.rule("logs-end", "aws:cloudwatch/logGroup:LogGroup", remedy="set retentionInDays")
def logs_end(group: Declared, _estate: Estate) -> Iterator[str]:
    """Logs are kept for a stated time: not for ever, and not unstated."""
    if not group.at("retentionInDays"):
        yield "keeps logs for ever"


def _is_public(first: Any, last: Any) -> bool:
    return first == last and first in PUBLIC_PORTS
