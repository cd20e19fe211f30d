"""What runs in Kubernetes: images, rights, probes, budgets, and who may talk to whom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from policies.guardrails.estate import Estate
from policies.guardrails.rule import Rulebook
from policies.resources import Declared, at, listed

DEPLOYMENT = "kubernetes:apps/v1:Deployment"
STATEFUL_SET = "kubernetes:apps/v1:StatefulSet"
WORKLOADS = (DEPLOYMENT, STATEFUL_SET, "kubernetes:apps/v1:DaemonSet", "kubernetes:batch/v1:Job", "kubernetes:batch/v1:CronJob")
SERVED = (DEPLOYMENT, STATEFUL_SET)
NAMESPACE = "kubernetes:core/v1:Namespace"
NETWORK_POLICY = "kubernetes:networking.k8s.io/v1:NetworkPolicy"
SCALED_OBJECT = "kubernetes:keda.sh/v1alpha1:ScaledObject"
BUDGET = "kubernetes:policy/v1:PodDisruptionBudget"
RESTRICTED = "pod-security.kubernetes.io/enforce"
METADATA_ADDRESS = "169.254.169.254"
SPOT_GRACE_S = 110
"""A spot node is gone two minutes after its notice; ten seconds go by until its pods are told."""
_DIGEST = re.compile(r"(@sha256:[0-9a-f]{64}|^sha256:[0-9a-f]{64})$")

book = Rulebook()


@book.rule("image-by-digest", *WORKLOADS, remedy="name the image by its digest")
def image_by_digest(workload: Declared, estate: Estate) -> Iterator[str]:
    """Every container's image is named by its digest: a tag can be moved, and then two pods of one release differ."""
    if estate.scope.is_on_this_machine:
        return
    for container in _containers(workload):
        if not _DIGEST.search(str(at(container, "image"))):
            yield f"container {at(container, 'name')} runs {at(container, 'image')}"


@book.rule("pods-restricted", *WORKLOADS, remedy="run as a user, without rights, on a read-only root")
def pods_restricted(workload: Declared, _estate: Estate) -> Iterator[str]:
    """A container has no rights that it does not need (Kubernetes' Pod Security `restricted`, and a read-only root besides)."""
    outer = at(_pod(workload), "securityContext")
    if at(outer, "runAsNonRoot") is not True:
        yield "may run as root"
    if at(outer, "seccompProfile", "type") not in ("RuntimeDefault", "Localhost"):
        yield "may make any system call"
    for container in _containers(workload):
        name, inner = at(container, "name"), at(container, "securityContext")
        if at(inner, "privileged"):
            yield f"container {name} is privileged"
        if at(inner, "allowPrivilegeEscalation") is not False:
            yield f"container {name} may gain rights"
        if "ALL" not in listed(at(inner, "capabilities", "drop")):
            yield f"container {name} keeps capabilities"
        if at(inner, "readOnlyRootFilesystem") is not True:
            yield f"container {name} may change its own files"


@book.rule("pods-apart-from-nodes", *WORKLOADS, remedy="leave host namespaces and hostPath out")
def pods_apart_from_nodes(workload: Declared, _estate: Estate) -> Iterator[str]:
    """A pod sees nothing of its node: no host network, processes or files."""
    pod = _pod(workload)
    for switch in ("hostNetwork", "hostPID", "hostIPC"):
        if at(pod, switch):
            yield f"uses `{switch}`"
    for volume in listed(at(pod, "volumes")):
        if at(volume, "hostPath"):
            yield f"volume {at(volume, 'name')} is a folder of the node"


@book.rule("namespace-restricted", NAMESPACE, remedy="set the label pod-security.kubernetes.io/enforce: restricted")
def namespace_restricted(namespace: Declared, _estate: Estate) -> Iterator[str]:
    """A namespace that we make enforces a Pod Security level, `restricted` unless its agents need the node."""
    level = namespace.at("metadata", "labels", RESTRICTED)
    if level not in ("restricted", "baseline", "privileged"):
        yield f"enforces {level or 'no Pod Security level'}"


@book.rule("serving-namespace-restricted", NAMESPACE, remedy="enforce restricted where our own pods run")
def serving_namespace_restricted(namespace: Declared, estate: Estate) -> Iterator[str]:
    """Where our own workloads run, the level is `restricted`."""
    name = namespace.at("metadata", "name")
    ours = any(workload.at("metadata", "namespace") == name for kind in WORKLOADS for workload in estate.of_type(kind))
    if ours and namespace.at("metadata", "labels", RESTRICTED) != "restricted":
        yield f"enforces {namespace.at('metadata', 'labels', RESTRICTED)}, and our pods run in it"


@book.rule("no-token", *WORKLOADS, remedy="set automountServiceAccountToken to false")
def no_token(workload: Declared, _estate: Estate) -> Iterator[str]:
    """A pod that does not talk to the Kubernetes API has no token for it."""
    if at(_pod(workload), "automountServiceAccountToken") is not False:
        yield "carries a token of the Kubernetes API"


@book.rule("probed", *SERVED, remedy="give each container startup, readiness and liveness probes")
def probed(workload: Declared, _estate: Estate) -> Iterator[str]:
    """A container says when it is up, ready and alive."""
    for container in _containers(workload):
        missing = [probe for probe in ("startupProbe", "readinessProbe", "livenessProbe") if not at(container, probe)]
        if missing:
            yield f"container {at(container, 'name')} has no {', '.join(missing)}"


@book.rule("memory-bounded", *WORKLOADS, remedy="request and limit memory alike")
def memory_bounded(workload: Declared, _estate: Estate) -> Iterator[str]:
    """A container's memory is requested and limited alike, so that no pod lives on another's; CPU is requested."""
    for container in _containers(workload):
        asked, limit = at(container, "resources", "requests"), at(container, "resources", "limits")
        if not at(asked, "memory") or at(asked, "memory") != at(limit, "memory"):
            yield f"container {at(container, 'name')} asks for {at(asked, 'memory')} of memory and may take {at(limit, 'memory')}"
        if not at(asked, "cpu"):
            yield f"container {at(container, 'name')} asks for no CPU"


@book.rule("budgeted", *SERVED, remedy="declare a PodDisruptionBudget for its pods")
def budgeted(workload: Declared, estate: Estate) -> Iterator[str]:
    """A drain takes pods of a workload a few at a time, and gets through.

    A budget that allows none blocks every upgrade of a node.
    """
    budgets = [budget for budget in estate.of_type(BUDGET) if _selects(budget.at("spec", "selector"), workload)]
    if not budgets:
        yield "a drain may take all its pods at once"
    for budget in budgets:
        if budget.at("spec", "maxUnavailable") in (0, "0", "0%") or budget.at("spec", "minAvailable") == "100%":
            yield f"budget {budget.name} lets no drain through"


@book.rule("stops-in-time", *SERVED, remedy="set terminationGracePeriodSeconds; on spot at most 110")
def stops_in_time(workload: Declared, _estate: Estate) -> Iterator[str]:
    """A pod states how long it may take to stop: longer than its preStop, and on spot less than the node's notice."""
    pod = _pod(workload)
    grace_s = at(pod, "terminationGracePeriodSeconds")
    if not isinstance(grace_s, int | float):
        yield "does not say how long it may take to stop"
        return
    if _tolerates_spot(pod) and grace_s > SPOT_GRACE_S:
        yield f"may take {grace_s:g} s to stop, and a spot node is gone in {SPOT_GRACE_S}"
    for container in _containers(workload):
        sleep_s = at(container, "lifecycle", "preStop", "sleep", "seconds")
        if sleep_s is not None and sleep_s >= grace_s:
            yield f"container {at(container, 'name')} is killed after {grace_s:g} s, within its preStop of {sleep_s:g} s"


@book.rule("base-off-spot", *SERVED, remedy="let overflow and batch fleets alone tolerate spot")
def base_off_spot(workload: Declared, _estate: Estate) -> Iterator[str]:
    """What is promised never runs on spot.

    A notice comes two minutes before the end, a cold start takes longer: a base fleet on spot is an outage with a date.
    """
    fleet = workload.at("spec", "template", "metadata", "labels", "flotilla.dev/fleet") or "base"
    if _tolerates_spot(_pod(workload)) and fleet not in ("overflow", "batch"):
        yield f"its fleet is {fleet}, and it may run on spot"


@book.rule("denied-by-default", NAMESPACE, remedy="declare a NetworkPolicy that selects all pods and allows nothing")
def denied_by_default(namespace: Declared, estate: Estate) -> Iterator[str]:
    """Where our workloads run, nothing talks to anything unless a policy says so, in both directions."""
    name = namespace.at("metadata", "name")
    if not any(workload.at("metadata", "namespace") == name for kind in WORKLOADS for workload in estate.of_type(kind)):
        return
    policies = [policy for policy in estate.of_type(NETWORK_POLICY) if policy.at("metadata", "namespace") == name]
    denied = {
        direction
        for policy in policies
        if not policy.at("spec", "podSelector") and not policy.at("spec", "ingress") and not policy.at("spec", "egress")
        for direction in listed(policy.at("spec", "policyTypes"))
    }
    missing = {"Ingress", "Egress"} - denied
    if missing:
        yield f"{' and '.join(sorted(missing))} is open by default"


@book.rule("metadata-unreachable", NETWORK_POLICY, remedy="except 169.254.0.0/16 from wide ranges")
def metadata_unreachable(policy: Declared, _estate: Estate) -> Iterator[str]:
    """No pod is let out to the node's metadata service."""
    for rule in listed(policy.at("spec", "egress")):
        for peer in listed(at(rule, "to")):
            block = at(peer, "ipBlock")
            covers = at(block, "cidr") in ("0.0.0.0/0", "169.254.0.0/16", f"{METADATA_ADDRESS}/32")
            if covers and not any(str(item).startswith("169.254.") for item in listed(at(block, "except"))):
                yield f"lets pods out to {METADATA_ADDRESS}"


@book.rule("policy-names-peers", NETWORK_POLICY, remedy="say from whom and to whom")
def policy_names_peers(policy: Declared, _estate: Estate) -> Iterator[str]:
    """A network policy says who may come in and where pods may go: an empty list of peers means everybody."""
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for rule in listed(policy.at("spec", direction)):
            if not listed(at(rule, peers)):
                yield f"its {direction} rule names nobody, which means everybody"


@book.rule("silence-shrinks-nothing", SCALED_OBJECT, remedy='set ignoreNullValues: "false", a fallback, and at least one replica')
def silence_shrinks_nothing(scaled: Declared, _estate: Estate) -> Iterator[str]:
    """When metrics are silent, nothing is scaled in.

    KEDA takes an empty answer for 0 by default (kedacore/keda#3065), so that an outage of monitoring becomes one of serving.
    """
    if not scaled.at("spec", "fallback", "replicas"):
        yield "has no fallback"
    for trigger in listed(scaled.at("spec", "triggers")):
        if at(trigger, "type") == "prometheus" and at(trigger, "metadata", "ignoreNullValues") != "false":
            yield f"trigger {at(trigger, 'name')} takes silence for no load"


@book.rule("scaled-by-one", *SERVED, remedy="leave replicas out of what KEDA scales")
def scaled_by_one(workload: Declared, estate: Estate) -> Iterator[str]:
    """How many there are is decided in one place: what KEDA scales states no number, or each deployment resets it."""
    name = workload.at("metadata", "name")
    scaled = any(item.at("spec", "scaleTargetRef", "name") == name for item in estate.of_type(SCALED_OBJECT))
    if scaled and workload.at("spec", "replicas") is not None:
        yield f"states {workload.at('spec', 'replicas')} replicas, and KEDA scales it"


def _pod(workload: Declared) -> Any:
    return workload.at("spec", "template", "spec") or workload.at("spec", "jobTemplate", "spec", "template", "spec")


def _containers(workload: Declared) -> list[Any]:
    pod = _pod(workload)
    return [*listed(at(pod, "initContainers")), *listed(at(pod, "containers"))]


def _selects(selector: Any, workload: Declared) -> bool:
    wanted = at(selector, "matchLabels")
    labels = workload.at("spec", "template", "metadata", "labels")
    return isinstance(wanted, Mapping) and isinstance(labels, Mapping) and bool(wanted) and wanted.items() <= labels.items()


def _tolerates_spot(pod: Any) -> bool:
    return any("spot" in (str(at(item, "key")), str(at(item, "value"))) for item in listed(at(pod, "tolerations")))
