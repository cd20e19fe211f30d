"""The machines: what they are started from, what they tell, and how reserved, on-demand and spot nodes are kept apart."""

from __future__ import annotations

from collections.abc import Iterator

from policies.guardrails.estate import Estate
from policies.guardrails.rule import Rulebook
from policies.resources import Declared, at, listed

LAUNCH_TEMPLATE = "aws:ec2/launchTemplate:LaunchTemplate"
NODE_GROUP = "aws:eks/nodeGroup:NodeGroup"
NODE_CLASS = "kubernetes:karpenter.k8s.aws/v1:EC2NodeClass"
NODE_POOL = "kubernetes:karpenter.sh/v1:NodePool"
STORAGE_CLASS = "kubernetes:storage.k8s.io/v1:StorageClass"
GPU_FAMILIES = ("p", "g")
CAPACITY_TYPE = "karpenter.sh/capacity-type"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"

book = Rulebook()


@book.rule("metadata-guarded", LAUNCH_TEMPLATE, NODE_CLASS, remedy="require tokens, and set the hop limit to 1")
def metadata_guarded(template: Declared, _estate: Estate) -> Iterator[str]:
    """A node gives its credentials to no pod: metadata needs a token, and the answer lives for one hop."""
    options = template.at("metadataOptions") or template.at("spec", "metadataOptions")
    if at(options, "httpTokens") != "required":
        yield f"`httpTokens` is {at(options, 'httpTokens')}, must be required"
    if at(options, "httpPutResponseHopLimit") != 1:
        yield f"`httpPutResponseHopLimit` is {at(options, 'httpPutResponseHopLimit')}, must be 1"


@book.rule("disks-encrypted", LAUNCH_TEMPLATE, NODE_CLASS, STORAGE_CLASS, remedy="set encrypted on every volume")
def disks_encrypted(owner: Declared, _estate: Estate) -> Iterator[str]:
    """Every volume of a node or a pod is encrypted."""
    if owner.type == STORAGE_CLASS:
        if str(owner.at("parameters", "encrypted")).lower() != "true":
            yield "makes plain volumes"
        return
    devices = listed(owner.at("blockDeviceMappings") or owner.at("spec", "blockDeviceMappings"))
    if not devices:
        yield "does not say that its root volume is encrypted"
    for device in devices:
        if str(at(device, "ebs", "encrypted")).lower() != "true":
            yield f"volume {at(device, 'deviceName')} is plain"


@book.rule("volumes-retained", STORAGE_CLASS, remedy="set reclaimPolicy to Retain")
def volumes_retained(storage: Declared, _estate: Estate) -> Iterator[str]:
    """A volume outlives its claim: it may hold usage that was acknowledged and has not been shipped."""
    if storage.at("reclaimPolicy") != "Retain":
        yield "volumes go with their claims"


@book.rule("images-of-nodes-pinned", NODE_CLASS, NODE_GROUP, remedy="name a release of the image")
def images_of_nodes_pinned(owner: Declared, estate: Estate) -> Iterator[str]:
    """Nodes start from a named release of their image.

    A floating GPU image has broken deployments overnight (awslabs/data-on-eks#604).
    """
    if owner.type == NODE_CLASS:
        terms = listed(owner.at("spec", "amiSelectorTerms"))
        floating = [at(term, "alias") for term in terms if "@latest" in str(at(term, "alias"))]
        if not terms or floating:
            yield f"starts from {', '.join(map(str, floating)) or 'no named image'}"
    elif not owner.at("releaseVersion") and not _has_own_image(owner, estate):
        yield "starts from whatever image is newest"


@book.rule("instance-store-used", NODE_CLASS, remedy="set instanceStorePolicy to RAID0")
def instance_store_used(node_class: Declared, estate: Estate) -> Iterator[str]:
    """GPU nodes use their NVMe disks.

    Without it Karpenter counts 17 GiB of room on an A100 node, and no image with weights fits (Karpenter 1.14 documentation).
    """
    pools = [
        pool
        for pool in estate.of_type(NODE_POOL)
        if at(pool.inputs, "spec", "template", "spec", "nodeClassRef", "name") == node_class.at("metadata", "name")
    ]
    if any(_is_gpu(pool) for pool in pools) and node_class.at("spec", "instanceStorePolicy") != "RAID0":
        yield "leaves the NVMe disks of its GPU nodes unused"


@book.rule("pool-limited", NODE_POOL, remedy="set spec.limits")
def pool_limited(pool: Declared, _estate: Estate) -> Iterator[str]:
    """A pool that grows by itself has a limit: nobody wants to meet a bug through the bill."""
    if not pool.at("spec", "limits"):
        yield "may grow without limit"


@book.rule("spot-apart", NODE_POOL, remedy="give spot a pool of its own, with a taint")
def spot_apart(pool: Declared, _estate: Estate) -> Iterator[str]:
    """Spot nodes are a pool of their own, and tainted: only pods that may die at two minutes' notice go there."""
    kinds = _values(pool, CAPACITY_TYPE)
    if "spot" not in kinds:
        return
    if len(kinds) > 1:
        yield f"mixes {' and '.join(kinds)}"
    taints = listed(pool.at("spec", "template", "spec", "taints"))
    if not any("spot" in (str(at(taint, "key")), str(at(taint, "value"))) for taint in taints):
        yield "its spot nodes take any pod"


@book.rule("bought-nodes-stay", NODE_POOL, remedy="set disruption.consolidationPolicy to WhenEmpty, and expireAfter to Never")
def bought_nodes_stay(pool: Declared, _estate: Estate) -> Iterator[str]:
    """GPU nodes are not moved about to save a little: a node that is given back may not be had again.

    An idle reserved node was consolidated after 30 s and could not be started again (METR/hawk#93). Budgets do not stop
    `expireAfter` (Karpenter documentation).
    """
    if not _is_gpu(pool):
        return
    if pool.at("spec", "disruption", "consolidationPolicy") != "WhenEmpty":
        yield f"`consolidationPolicy` is {pool.at('spec', 'disruption', 'consolidationPolicy')}, must be WhenEmpty"
    if pool.at("spec", "template", "spec", "expireAfter") != "Never":
        yield f"its nodes are replaced after {pool.at('spec', 'template', 'spec', 'expireAfter') or '720h'}"


@book.rule("reservation-named", NODE_GROUP, remedy="name the reservation in its launch template")
def reservation_named(group: Declared, estate: Estate) -> Iterator[str]:
    """A group of GPU nodes is tied to a reservation: the floor must not depend on what AWS has left that day."""
    types = _instance_types(group, estate)
    if not any(name.startswith(GPU_FAMILIES) for name in types):
        return
    targets = [
        template.at("capacityReservationSpecification", "capacityReservationTarget") for template in _templates(group, estate)
    ]
    if not any(at(target, "capacityReservationId") or at(target, "capacityReservationResourceGroupArn") for target in targets):
        yield "is tied to no reservation"


@book.rule("reserved-nodes-fixed", NODE_GROUP, remedy="set minSize, desiredSize and maxSize alike")
def reserved_nodes_fixed(group: Declared, estate: Estate) -> Iterator[str]:
    """A group on a reservation is as large as the reservation, always: it is paid for whether used or not."""
    if not any(name.startswith(GPU_FAMILIES) for name in _instance_types(group, estate)):
        return
    sizes = {group.at("scalingConfig", key) for key in ("minSize", "desiredSize", "maxSize")}
    if len(sizes) != 1:
        yield "may shrink below what is reserved"


def _values(pool: Declared, key: str) -> list[str]:
    requirements = listed(pool.at("spec", "template", "spec", "requirements"))
    return [str(value) for item in requirements if at(item, "key") == key for value in listed(at(item, "values"))]


def _is_gpu(pool: Declared) -> bool:
    return any(name.startswith(GPU_FAMILIES) for name in _values(pool, INSTANCE_TYPE))


def _templates(group: Declared, estate: Estate) -> list[Declared]:
    return [template for template in estate.of_type(LAUNCH_TEMPLATE) if group.refers_to(template, "launchTemplate")]


def _instance_types(group: Declared, estate: Estate) -> list[str]:
    own = [str(name) for name in listed(group.at("instanceTypes"))]
    return own or [str(template.at("instanceType")) for template in _templates(group, estate)]


def _has_own_image(group: Declared, estate: Estate) -> bool:
    return any(template.at("imageId") for template in _templates(group, estate))
