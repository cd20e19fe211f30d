"""What would stop a stack from being deployed, asked of AWS beforehand: `flotilla preflight STACK`.

A `pulumi up` finds out too: after twenty minutes, half done. The questions are those whose answers the program cannot know: is
this the right account, do its quotas suffice, does each zone offer the instance types, do the reservations exist as the stack
file says, how long is the Kubernetes version supported, does AWS still have the pinned add-ons and node images, is an image
pinned and in the registry.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from infra import config, versions
from infra.catalog import Region
from infra.naming import StackName, parse_stack
from infra.operations.account import account_finding, refuse_local
from infra.operations.findings import Clients, Finding, Severity, asked
from infra.operations.needs import QuotaNeed, instance_types, quota_needs
from infra.stack_config import ClusterConfig, LayerT, ServingConfig
from infra.stack_config.cluster import ReservedPool
from infra.stack_config.serving import UNPINNED
from infra.versions import NodeImage

NODE_IMAGES: tuple[NodeImage, ...] = get_args(NodeImage)
BLOCK_ENDS_WITHIN = timedelta(days=14)
"""A Capacity Block that ends so soon is told of."""


def preflight(stack_name: str, clients: Clients, now: datetime, stacks_dir: Path = config.STACKS_DIR) -> list[Finding]:
    """Every finding for a stack, in the order in which they matter. With credentials of another account, that alone.

    Raises:
        UserError: the stack's name or its files are wrong, it is `local`, or there are no credentials.
    """
    stack = parse_stack(stack_name)
    refuse_local(stack.environment)
    catalog = config.load_catalog(stacks_dir)
    environment = config.environment_of(catalog, stack.environment)
    account = account_finding(stack.environment, environment, clients)
    if account.severity is Severity.BLOCKED or not stack.region:
        return [account]
    cluster = _config(StackName(stack.environment, "cluster", stack.region), ClusterConfig, stacks_dir)
    serving = _config(StackName(stack.environment, "serving", stack.region), ServingConfig, stacks_dir)
    region = catalog.regions[stack.region]
    findings = [account]
    for need in quota_needs(region, cluster, serving):
        findings += _quota(need, clients, stack.region)
    findings += _offerings(region, cluster, serving, clients, stack.region)
    if stack.layer == "cluster":
        for name, pool in cluster.reserved_pools.items():
            findings += _reservation(name, pool, clients, stack.region, now)
        findings += _version(cluster.kubernetes_version, clients, stack.region, now)
        for addon in versions.ADDONS:
            findings += _addon(addon, cluster.kubernetes_version, clients, stack.region)
        for variant in NODE_IMAGES:
            findings += _node_image(variant, cluster.kubernetes_version, clients, stack.region)
    else:
        findings += _images(serving)
    return findings


def _config(stack: StackName, model: type[LayerT], stacks_dir: Path) -> LayerT:
    return config.load(stack, model, config.read_stack_file(stack, stacks_dir), stacks_dir).config


def _quota(need: QuotaNeed, clients: Clients, region: str) -> list[Finding]:
    quota = need.quota

    def question() -> Iterator[Finding]:
        answer = clients("service-quotas", region).get_service_quota(ServiceCode=quota.service, QuotaCode=quota.code)
        value = answer["Quota"]["Value"]
        if value >= need.amount:
            yield Finding("quota", quota.name, Severity.OK, f"{value:g}, needs {need.amount} ({need.why})")
            return
        yield Finding(
            "quota",
            quota.name,
            Severity.BLOCKED,
            f"{value:g} in {region}, needs {need.amount} ({need.why})",
            f"aws service-quotas request-service-quota-increase --region {region} --service-code {quota.service}"
            f" --quota-code {quota.code} --desired-value {need.amount}",
        )

    return asked("quota", quota.name, question)


def _offerings(
    region: Region, cluster: ClusterConfig, serving: ServingConfig, clients: Clients, region_name: str
) -> list[Finding]:
    wanted = instance_types(region, cluster, serving)

    def question() -> Iterator[Finding]:
        offered: dict[str, set[str]] = {instance_type: set() for instance_type in wanted}
        pages = (
            clients("ec2", region_name)
            .get_paginator("describe_instance_type_offerings")
            .paginate(LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": sorted(wanted)}])
        )
        for page in pages:
            for offering in page["InstanceTypeOfferings"]:
                offered[offering["InstanceType"]].add(offering["Location"])
        for instance_type, zones in wanted.items():
            missing = sorted(set(zones) - offered[instance_type])
            if not missing:
                yield Finding("offering", instance_type, Severity.OK, f"offered in {', '.join(zones)}")
                continue
            elsewhere = ", ".join(sorted(offered[instance_type])) or "no zone"
            yield Finding(
                "offering",
                instance_type,
                Severity.BLOCKED,
                f"not offered in {', '.join(missing)}; this account has it in {elsewhere}",
                f"correct `regions.{region_name}.gpu_zones` of stacks/catalog.yaml, and the pools that name those zones",
            )

    return asked("offering", region_name, question)


def _reservation(name: str, pool: ReservedPool, clients: Clients, region: str, now: datetime) -> list[Finding]:
    wanted_id = pool.reservation.id

    def question() -> Iterator[Finding]:
        found = clients("ec2", region).describe_capacity_reservations(
            Filters=[{"Name": "capacity-reservation-id", "Values": [wanted_id]}]
        )["CapacityReservations"]
        reservation = next((item for item in found if item["CapacityReservationId"] == wanted_id), None)
        if reservation is None:
            message = f"{wanted_id} does not exist in {region}"
            remedy = f"buy {pool.nodes} × {pool.instance_type} in {pool.zone}, and give its id in `reserved_pools.{name}`"
            yield Finding("reservation", name, Severity.BLOCKED, message, remedy)
            return
        yield from _differences(name, pool, reservation, now)

    return asked("reservation", name, question)


def _differences(name: str, pool: ReservedPool, reservation: dict[str, Any], now: datetime) -> Iterator[Finding]:
    """Where a reservation is not what the stack file says."""
    count = reservation["TotalInstanceCount"]
    faults = [
        f"{what} is {found}, must be {wanted}"
        for what, found, wanted in (
            ("state", reservation["State"], "active"),
            ("instance type", reservation["InstanceType"], pool.instance_type),
            ("zone", reservation["AvailabilityZone"], pool.zone),
        )
        if found != wanted
    ]
    if count < pool.nodes:
        faults.append(f"count is {count}, must be at least {pool.nodes}")
    message = f"{pool.reservation.id}: {'; '.join(faults) or f'{count} × {pool.instance_type} in {pool.zone}, active'}"
    if faults:
        yield Finding("reservation", name, Severity.BLOCKED, message, f"correct `reserved_pools.{name}`, or the reservation")
        return
    end = reservation.get("EndDate")
    if end is not None and end - now < BLOCK_ENDS_WITHIN:
        message += f", until {end:%Y-%m-%d %H:%M} UTC"
        yield Finding("reservation", name, Severity.WARNING, message, "buy the next one, or move the floor to another pool")
        return
    yield Finding("reservation", name, Severity.OK, message)


def _version(version: str, clients: Clients, region: str, now: datetime) -> list[Finding]:
    subject = f"Kubernetes {version}"

    def question() -> Iterator[Finding]:
        found = clients("eks", region).describe_cluster_versions(clusterVersions=[version])["clusterVersions"]
        if not found:
            yield Finding("version", subject, Severity.BLOCKED, "EKS does not offer it", "take a version that EKS offers")
            return
        ends = found[0]["endOfStandardSupportDate"].astimezone(UTC)
        days = (ends - now).days
        message = f"in standard support until {ends:%-d %B %Y}: {days} days"
        if days >= versions.SUPPORT_MARGIN_DAYS:
            yield Finding("version", subject, Severity.OK, message)
        else:
            remedy = "upgrade: docs/operations.md, Upgrade EKS; afterwards it costs six times as much"
            yield Finding("version", subject, Severity.WARNING if days > 0 else Severity.BLOCKED, message, remedy)

    return asked("version", subject, question)


def _addon(addon: str, version: str, clients: Clients, region: str) -> list[Finding]:
    pinned = versions.ADDONS[addon][version]

    def question() -> Iterator[Finding]:
        found = clients("eks", region).describe_addon_versions(addonName=addon, kubernetesVersion=version)["addons"]
        offered = [item["addonVersion"] for info in found for item in info["addonVersions"]]
        if pinned in offered:
            yield Finding("addon", addon, Severity.OK, pinned)
            return
        message = (
            f"{pinned} is not offered for Kubernetes {version} in {region}; the newest is {offered[0] if offered else 'none'}"
        )
        yield Finding("addon", addon, Severity.BLOCKED, message, "pin another in `ADDONS` of infra/versions.py")

    return asked("addon", addon, question)


def _node_image(variant: NodeImage, version: str, clients: Clients, region: str) -> list[Finding]:
    parameter = versions.node_image_parameter(version, variant)

    def question() -> Iterator[Finding]:
        found = clients("ssm", region).get_parameters(Names=[parameter])["Parameters"]
        if found:
            yield Finding("node image", variant, Severity.OK, f"{versions.NODE_AMIS[version]} is {found[0]['Value']}")
            return
        message = f"{region} has no release {versions.NODE_AMIS[version]} of it"
        yield Finding("node image", variant, Severity.BLOCKED, message, "pin another in `NODE_AMIS` of infra/versions.py")

    return asked("node image", variant, question)


def _images(serving: ServingConfig) -> Iterator[Finding]:
    for role, image in (("gateway", serving.images.gateway), ("engine", serving.images.engine)):
        if image == UNPINNED:
            remedy = "build and push one, then `flotilla image pin`: docs/operations.md, Deploy"
            yield Finding("image", role, Severity.BLOCKED, "no image is pinned", remedy)
        else:
            yield Finding("image", role, Severity.OK, image)
