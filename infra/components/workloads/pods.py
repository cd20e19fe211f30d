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

from infra import timers
from infra.naming import NAMESPACE, PROJECT, StackName
from infra.stack_config import Resources

USER_ID = 10001
TMP = "/tmp"  # noqa: S108 (the pod's own)
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


def resources(given: Resources, num_gpus: int = 0) -> core.ResourceRequirementsArgsDict:
    """Requests and limits of a container."""
    gpus = {"nvidia.com/gpu": str(num_gpus)} if num_gpus else {}
    return {"requests": {"cpu": given.cpu, "memory": given.memory, **gpus}, "limits": {"memory": given.memory, **gpus}}


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
