"""What all of our pods share: how they are labelled, confined, probed, and told who they are.

Pods meet Pod Security `restricted`: no root, no privilege, no capability, a read-only root file system. What they write goes to
volumes. Memory is limited to what is requested; CPU is not limited, since a throttled token is a late token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pulumi
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta
from pulumi_kubernetes.policy import v1 as policy

from infra import timers
from infra.naming import NAMESPACE, PROJECT, StackName
from infra.scheduling import GPU_RESOURCE
from infra.stack_config.serving import Resources

SKIP_AWAIT = "pulumi.com/skipAwait"
"""Annotation by which `pulumi up` does not wait until a workload is ready."""
USER_ID = 10001
TMP = "/tmp"  # noqa: S108 (the pod's own)
TMP_GIB = 4
LOGS_GIB = 1
"""What the kubelet keeps of a container's output; it counts as the pod's."""
SETTINGS_DIR = "/etc/flotilla"
DIGEST = f"{PROJECT}.dev/settings-digest"
"""Annotation of a pod template; a change of settings changes it, and so rolls the workload."""

POD_SECURITY: core.PodSecurityContextArgsDict = {
    "run_as_non_root": True,
    "run_as_user": USER_ID,
    "run_as_group": USER_ID,
    "fs_group": USER_ID,
    "fs_group_change_policy": "OnRootMismatch",
    "seccomp_profile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: core.SecurityContextArgsDict = {
    "allow_privilege_escalation": False,
    "privileged": False,
    "read_only_root_filesystem": True,
    "run_as_non_root": True,
    "capabilities": {"drop": ["ALL"]},
}


def selector(name: str) -> dict[str, str]:
    """The labels by which a workload finds its pods; immutable, so few."""
    return {"app.kubernetes.io/name": name}


def labels(stack: StackName, component: str, name: str, **further: str) -> dict[str, str]:
    """Labels of any object: the selector's, and what the tags of AWS resources say."""
    own = {"component": component, "environment": stack.environment, **further}
    return {
        **selector(name),
        "app.kubernetes.io/part-of": PROJECT,
        "app.kubernetes.io/managed-by": "pulumi",
        **{f"{PROJECT}.dev/{key.replace('_', '-')}": value for key, value in own.items()},
    }


def metadata(
    name: str, object_labels: Mapping[str, str], annotations: Mapping[str, str] | None = None
) -> meta.ObjectMetaArgsDict:
    """Metadata of an object in our namespace, named by us: what refers to it should not have to ask."""
    made: meta.ObjectMetaArgsDict = {"name": name, "namespace": NAMESPACE, "labels": dict(object_labels)}
    if annotations:
        made["annotations"] = dict(annotations)
    return made


def environment(settings_file: str, variables: Mapping[str, str]) -> list[core.EnvVarArgsDict]:
    """Environment of a container: its settings file, its own name and address, and `variables`."""
    plain: dict[str, str] = {
        "FLOTILLA_SETTINGS_FILE": f"{SETTINGS_DIR}/{settings_file}",
        "HOME": TMP,
        "TMPDIR": TMP,
        **variables,
    }
    listed: list[core.EnvVarArgsDict] = [
        {"name": "FLOTILLA_POD_NAME", "value_from": {"field_ref": {"field_path": "metadata.name"}}},
        {"name": "FLOTILLA_POD_IP", "value_from": {"field_ref": {"field_path": "status.podIP"}}},
    ]
    for name, value in sorted(plain.items()):
        listed.append({"name": name, "value": value})
    return listed


def resources(given: Resources, disk_gib: int, num_gpus: int = 0) -> core.ResourceRequirementsArgsDict:
    """Requests and limits of a container. `disk_gib` is what it may write to its node: scratch volumes and logs. Without a
    request a pod lands on a full disk; without a limit it fills its neighbours'."""
    alike = {"memory": given.memory, "ephemeral-storage": f"{disk_gib}Gi"}
    if num_gpus:
        alike[GPU_RESOURCE] = str(num_gpus)
    return {"requests": {"cpu": given.cpu, **alike}, "limits": alike}


def scratch(name: str, size_gib: int) -> core.VolumeArgsDict:
    """A folder of the node's disk that goes with the pod; a pod that writes more is evicted."""
    return {"name": name, "empty_dir": {"size_limit": f"{size_gib}Gi"}}


def budget(
    name: str, max_unavailable: int | str, object_labels: Mapping[str, str], opts: pulumi.ResourceOptions
) -> policy.PodDisruptionBudget:
    """How many pods of the workload called `name` a drain may take away at once. A pod that is not ready serves nobody, and must
    not hold up a node's drain."""
    return policy.PodDisruptionBudget(
        name,
        metadata=metadata(name, object_labels),
        spec={
            "max_unavailable": max_unavailable,
            "selector": {"match_labels": selector(name)},
            "unhealthy_pod_eviction_policy": "AlwaysAllow",
        },
        opts=opts,
    )


def probe(of: timers.Probe, port: str) -> core.ProbeArgsDict:
    """A probe of the named port."""
    return {
        "http_get": {"path": of.path, "port": port},
        "period_seconds": of.period_s,
        "timeout_seconds": of.timeout_s,
        "failure_threshold": of.failures,
    }


def settings_map(
    name: str, file: str, document: pulumi.Input[str], object_labels: Mapping[str, str], opts: pulumi.ResourceOptions
) -> core.ConfigMap:
    """A ConfigMap with one settings document."""
    return core.ConfigMap(name, metadata=metadata(name, object_labels), data={file: document}, opts=opts)


def digest(document: pulumi.Input[str]) -> pulumi.Output[str]:
    """Digest of a settings document, short enough to read."""
    return pulumi.Output.from_input(document).apply(lambda text: hashlib.sha256(text.encode()).hexdigest()[:16])
