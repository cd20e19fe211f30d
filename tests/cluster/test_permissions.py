"""What pods may do: nothing to the API, nothing that `restricted` forbids, and no connection but the ones that serving needs.

Admission and RBAC are the API server's own. Connections are judged by the rules that it holds
(`network_rules`): there is no data plane.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
from kube import Kube, RefusedError, eventually
from network_rules import End, Outside, Pod, Rules
from regions import Region

from infra import config
from infra.catalog import KV_EVENTS_PORT, KV_REPLAY_PORT
from infra.components.cache.redis_cache import PORT as CACHE_PORT
from infra.components.workloads import engine_fleet, gateway_fleet
from infra.naming import ENGINE, GATEWAY, MONITORING, NAMESPACE, PROJECT

pytestmark = pytest.mark.cluster
ACCOUNTS = (GATEWAY, ENGINE)
GROUPS = ("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated")
QUESTIONS = [
    (verb, resource, group)
    for group, resource in [
        ("", "secrets"),
        ("", "configmaps"),
        ("", "pods"),
        ("", "pods/exec"),
        ("", "nodes"),
        ("", "serviceaccounts/token"),
        ("apps", "deployments"),
        ("apps", "statefulsets"),
        ("rbac.authorization.k8s.io", "rolebindings"),
        ("networking.k8s.io", "networkpolicies"),
        ("discovery.k8s.io", "endpointslices"),
    ]
    for verb in ("get", "list", "watch", "create", "update", "patch", "delete", "impersonate")
]


def _granted(kube: Kube, account: str) -> list[str]:
    """What the service account may do in its namespace, out of QUESTIONS."""
    user = f"system:serviceaccount:{NAMESPACE}:{account}"
    return [
        f"{verb} {resource}" for verb, resource, group in QUESTIONS if kube.may(user, verb, resource, NAMESPACE, group, GROUPS)
    ]


MAY = {ENGINE: [], GATEWAY: ["get endpointslices", "list endpointslices", "watch endpointslices"]}


@pytest.mark.parametrize("account", ACCOUNTS)
def test_our_service_accounts_may_ask_nothing_of_the_api_but_where_engines_are(region: Region, account: str) -> None:
    """An engine runs other people's prompts; a token that could read secrets would be one prompt away."""
    assert _granted(region.kube, account) == MAY[account]


def test_a_right_that_someone_grants_is_seen(region: Region) -> None:
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "planted", "namespace": NAMESPACE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": GATEWAY, "namespace": NAMESPACE}],
    }
    region.kube.apply(binding)
    try:
        wanted = {"get pods", "list configmaps"}
        eventually(lambda: wanted <= set(_granted(region.kube, GATEWAY)), "the binding is in force")
    finally:
        region.kube.delete("RoleBinding", "planted", NAMESPACE, "rbac.authorization.k8s.io/v1")
    eventually(lambda: _granted(region.kube, GATEWAY) == MAY[GATEWAY], "the binding is gone")


def test_no_pod_but_the_gateways_carries_a_token(region: Region) -> None:
    """The API server mounts one into every pod whose specification and account do not both say no."""
    pods = _pods_of_every_workload(region)
    mounted = {
        name: volume["name"]
        for name, pod in pods.items()
        for volume in pod["spec"]["volumes"]
        if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", ()))
    }
    assert mounted == {GATEWAY: "account"}
    holders = [
        container["name"]
        for container in pods[GATEWAY]["spec"]["containers"]
        if any(mount["name"] == "account" for mount in container["volumeMounts"])
    ]
    assert holders == ["gateway"], "the shipper asks nothing of the API"

    told = copy.deepcopy(region.declared("Deployment")[0].manifest["spec"]["template"])
    told["spec"]["automountServiceAccountToken"] = True
    pod, _ = region.kube.apply(_pod("planted", told), dry_run=True)
    assert any("projected" in volume for volume in pod["spec"]["volumes"])


def _pods_of_every_workload(region: Region) -> dict[str, dict[str, Any]]:
    """One pod of each workload, as admission leaves it."""
    workloads = region.declared("Deployment") + region.declared("StatefulSet")
    pods = {}
    for workload in workloads:
        template = copy.deepcopy(workload.manifest["spec"]["template"])
        for claim in workload.manifest["spec"].get("volumeClaimTemplates", ()):
            name = claim["metadata"]["name"]
            template["spec"]["volumes"].append(
                {"name": name, "persistentVolumeClaim": {"claimName": f"{name}-{workload.name}-0"}}
            )
        pods[workload.name], warnings = region.kube.apply(_pod(f"{workload.name}-example", template), dry_run=True)
        assert warnings == []
    return pods


def _pod(name: str, template: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {**template["metadata"], "name": name, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _spoilt(**changes: Any) -> dict[str, Any]:
    """A pod that meets `restricted` but for `changes`; those of `container` go into its container."""
    container = {
        "name": "main",
        "image": "image",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    } | changes.pop("container", {})
    spec = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    } | changes
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "planted", "namespace": NAMESPACE}, "spec": spec}


VIOLATIONS = {
    "root": (_spoilt(securityContext={"runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}}), "runAsNonRoot"),
    "privileged": (_spoilt(container={"securityContext": {"privileged": True}}), "privileged"),
    "the host's network": (_spoilt(hostNetwork=True), "hostNetwork"),
    "the host's processes": (_spoilt(hostPID=True), "hostPID"),
    "the host's files": (_spoilt(volumes=[{"name": "root", "hostPath": {"path": "/"}}]), "hostPath"),
    "no seccomp": (_spoilt(securityContext={"runAsNonRoot": True}), "seccompProfile"),
    "a capability": (
        _spoilt(
            container={
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}
            }
        ),
        "capabilities",
    ),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_pod_that_breaks_restricted_is_refused(region: Region, violation: str) -> None:
    manifest, expected = VIOLATIONS[violation]
    with pytest.raises(RefusedError, match=f"violates PodSecurity.*{expected}"):
        region.kube.apply(manifest, dry_run=True)


def test_it_is_the_label_of_our_namespace_that_refuses_it(region: Region) -> None:
    """Not a default of this server."""
    eventually(lambda: region.kube.list("ServiceAccount", "default"), "the other namespace has its account")
    for manifest, _ in VIOLATIONS.values():
        elsewhere = copy.deepcopy(manifest)
        elsewhere["metadata"]["namespace"] = "default"
        region.kube.apply(elsewhere, dry_run=True)


@pytest.fixture
def ends(region: Region) -> dict[str, End]:
    """Who might talk to whom: our pods as their workloads label them, strangers, and addresses outside."""
    ours = region.kube.get("Namespace", NAMESPACE)["metadata"]["labels"]
    found: dict[str, End] = {
        VPC: Outside(str(config.load_catalog().regions[region.stack.region].vpc_cidr[10])),
        INTERNET: Outside("203.0.113.7"),
        "instance metadata": Outside("169.254.169.254"),
        AGENT: Outside("169.254.170.23"),
        "a stranger's pod": Pod("default", {"app.kubernetes.io/name": GATEWAY}, _named("default")),
        "a pod of ours that no rule knows": Pod(NAMESPACE, {}, ours),
        PROMETHEUS: Pod(MONITORING, {"app.kubernetes.io/name": "prometheus"}, _named(MONITORING)),
        "another pod of monitoring": Pod(MONITORING, {"app.kubernetes.io/name": "kube-state-metrics"}, _named(MONITORING)),
        DNS: Pod("kube-system", {"k8s-app": "kube-dns"}, _named("kube-system")),
    }
    for workload in region.declared("Deployment") + region.declared("StatefulSet"):
        template = workload.manifest["spec"]["template"]
        ports = {port["name"]: port["containerPort"] for each in template["spec"]["containers"] for port in each["ports"]}
        found[workload.name] = Pod(NAMESPACE, template["metadata"]["labels"], ours, ports)
    return found


def _named(namespace: str) -> dict[str, str]:
    return {"kubernetes.io/metadata.name": namespace}


VPC, INTERNET, AGENT, DNS, PROMETHEUS = "a client in the VPC", "the internet", "the credentials agent", "DNS", "Prometheus"
ANY_OF_OURS = "any pod in our namespace"
ALLOWED = {
    (VPC, GATEWAY, gateway_fleet.HTTP_PORT),
    (PROMETHEUS, GATEWAY, gateway_fleet.OPS_PORT),
    (PROMETHEUS, GATEWAY, gateway_fleet.SHIPPER_PORT),
    (PROMETHEUS, ENGINE, engine_fleet.OPS_PORT),
    (PROMETHEUS, ENGINE, engine_fleet.HTTP_PORT),
    (GATEWAY, ENGINE, engine_fleet.HTTP_PORT),
    (GATEWAY, ENGINE, KV_EVENTS_PORT),
    (GATEWAY, ENGINE, KV_REPLAY_PORT),
    (GATEWAY, VPC, CACHE_PORT),
    (ANY_OF_OURS, DNS, 53),
    (ANY_OF_OURS, INTERNET, 443),
    (ANY_OF_OURS, VPC, 443),
    (ANY_OF_OURS, AGENT, 80),
}
"""All that may be, by role. AWS's own addresses are anywhere, so 443 is open to everywhere but the link-local ones."""
PORTS = sorted({port for _, _, port in ALLOWED} | {22})
Connection = tuple[str, str, int]


def _roles(end: End, name: str) -> tuple[str, ...]:
    """What ALLOWED calls an end."""
    if not isinstance(end, Pod) or end.namespace != NAMESPACE:
        return (name,)
    return (ANY_OF_OURS, str(end.labels.get(f"{PROJECT}.dev/component")))


def _expected(ends: Mapping[str, End]) -> set[Connection]:
    """ALLOWED, for each workload of a role."""
    return {
        (source, target, port)
        for source in ends
        for target in ends
        for of_source in _roles(ends[source], source)
        for of_target in _roles(ends[target], target)
        for port in PORTS
        if (of_source, of_target, port) in ALLOWED
    }


def _found(rules: Rules, ends: Mapping[str, End]) -> set[Connection]:
    """Every connection that the rules let be where one end is ours."""
    ours = {name for name, end in ends.items() if isinstance(end, Pod) and end.namespace == NAMESPACE}
    return {
        (source, target, port)
        for source in ends
        for target in ends
        for port in PORTS
        if ours & {source, target} and rules.allow(ends[source], ends[target], port)
    }


def test_connections_are_those_that_serving_needs_and_no_other(region: Region, ends: dict[str, End]) -> None:
    rules = Rules.of(region.kube)
    assert _found(rules, ends) == _expected(ends)
    assert rules.allow(ends[GATEWAY], ends[DNS], 53, "UDP")


@pytest.mark.parametrize(
    ("lost", "connection", "is_open"),
    [
        ("default-deny", ("a stranger's pod", "a pod of ours that no rule knows", 22), True),
        ("engine-from-gateway", (GATEWAY, "engine-small", engine_fleet.HTTP_PORT), False),
        ("gateway-to-cache", (GATEWAY, VPC, CACHE_PORT), False),
    ],
)
def test_a_policy_that_is_missing_shows(
    region: Region, ends: dict[str, End], lost: str, connection: Connection, is_open: bool
) -> None:
    rules = Rules([policy for policy in Rules.of(region.kube).policies if policy["metadata"]["name"] != lost])
    assert (connection in _found(rules, ends)) is is_open is not (connection in _expected(ends))


def test_a_policy_that_says_too_much_shows(region: Region, ends: dict[str, End]) -> None:
    wide = {
        "metadata": {"name": "planted", "namespace": NAMESPACE},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": engine_fleet.HTTP_PORT}]}]},
    }
    found = _found(Rules([*Rules.of(region.kube).policies, wide]), ends)
    assert ("a stranger's pod", "engine-small", engine_fleet.HTTP_PORT) in found - _expected(ends)
