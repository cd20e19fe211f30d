"""A fleet of engines: a supervisor and stock vLLM in each pod. `EngineService` is what the fleets of a class are reached by.

Engines hold nothing that lasts: weights come from the region's bucket, verified, and any engine may die at any time. A rollout
takes one engine away before it adds the next: GPUs for both at once are rarely there.

`pulumi up` does not wait for a rollout: engines come up one after the other, in minutes each, and on a first day there is no
release yet that they could fetch. The gateways' count of ready engines tells how far it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pulumi
from pulumi_kubernetes.apps import v1 as apps
from pulumi_kubernetes.core import v1 as core

from infra import timers
from infra.catalog import KV_EVENTS_PORT, KV_REPLAY_PORT, Model
from infra.components.component import Component
from infra.components.workloads import pods
from infra.components.workloads.fleets import Fleet
from infra.components.workloads.scaled_object import ScaledObjectArgs, Trigger, scaled_object
from infra.naming import ENGINE, PROJECT, StackName
from infra.scheduling import gpu_affinity, gpu_tolerations
from infra.stack_config.serving import EngineConfig
from infra.timers import Stop
from policies.autoscaling.pace import Pace
from serving.settings import HTTP, KV_EVENTS, KV_REPLAY, ModelClass

HTTP_PORT, OPS_PORT = 8000, 8001
SETTINGS_FILE = "engine.json"
CACHE_DIR = "/var/cache/flotilla"
SHARED_MEMORY_GIB = 8
"""For tensor-parallel workers, which talk through it; a container's default is 64 MiB. It counts as the container's memory."""
QUIET_ENGINE: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""An engine asks nobody for weights and reports to nobody."""
SERVICE_LABEL = f"{PROJECT}.dev/service"
"""Label of an engine's pod: the Service that it answers for."""
MAX_REPLICAS = f"{PROJECT}.dev/max-replicas"
"""Annotation of a fleet whose size nothing here decides: how large its owner may make it."""


@dataclass(frozen=True)
class Size:
    """How many engines a fleet has: from `minimum` to `maximum`, as `triggers` ask, at `pace`."""

    minimum: int
    maximum: int
    triggers: tuple[Trigger, ...] = ()
    """None leaves the number to somebody else once the fleet is there."""
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True)
class EngineFleetArgs:
    """`settings` is an EngineSettings document as JSON."""

    fleet: Fleet
    model: Model
    config: EngineConfig
    size: Size
    image: pulumi.Input[str]
    settings: pulumi.Input[str]
    priority_class: str
    stop: Stop


class EngineService(Component):
    """The headless Service of one or several fleets."""

    def __init__(
        self, name: str, model_class: ModelClass, model: Model, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("workloads:EngineService", name, stack, opts)
        core.Service(
            name,
            metadata=pods.metadata(name, pods.labels(stack, ENGINE, name, model_class=model_class)),
            spec={
                # Headless: the gateway must know each engine to route by prefix and load, so no proxy may choose for it.
                "cluster_ip": "None",
                "selector": {SERVICE_LABEL: name},
                "ports": [
                    {"name": port, "port": number, "target_port": port, "protocol": "TCP"}
                    for port, number in _gateway_ports(model).items()
                ],
            },
            opts=self.child(),
        )
        self.register_outputs({})


def _gateway_ports(model: Model) -> dict[str, int]:
    """What gateways use of an engine: the API, and what it says of its cache."""
    events = {KV_EVENTS: KV_EVENTS_PORT, KV_REPLAY: KV_REPLAY_PORT} if model.publishes_cache_events else {}
    return {HTTP: HTTP_PORT, **events}


class EngineFleet(Component):
    """Deployment, settings, disruption budget and autoscaling of a fleet."""

    def __init__(self, name: str, args: EngineFleetArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("workloads:EngineFleet", name, stack, opts)
        self._args = args
        fleet, size = args.fleet, args.size
        self._labels = pods.labels(
            stack, ENGINE, fleet.name, model_class=fleet.model_class, fleet=str(fleet.kind), service=fleet.service
        )
        settings = pods.settings_map(f"{fleet.name}-settings", SETTINGS_FILE, args.settings, self._labels, self.child())
        pods.budget(fleet.name, fleet.max_unavailable, self._labels, self.child())
        workload = self._create_pods([settings, *self._create_claim()])
        if size.triggers and size.maximum > size.minimum:
            scaling = ScaledObjectArgs("Deployment", fleet.name, size.minimum, size.maximum, size.triggers, size.pace)
            scaled_object(scaling, self._labels, self.child(depends_on=[workload]))
        self.register_outputs({})

    def _create_claim(self) -> list[pulumi.Resource]:
        if self._args.config.model_cache != "claim":
            return []
        return [
            core.PersistentVolumeClaim(
                self._claim,
                metadata=pods.metadata(self._claim, self._labels),
                spec={
                    "access_modes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": f"{self._args.config.model_cache_gib}Gi"}},
                },
                opts=self.child(),
            )
        ]

    @property
    def _claim(self) -> str:
        return f"{self._args.fleet.name}-model-cache"

    def _create_pods(self, needs: list[pulumi.Resource]) -> apps.Deployment:
        fleet, size = self._args.fleet, self._args.size
        annotations = {pods.SKIP_AWAIT: "true"}
        ignored: list[str] = []
        spec: apps.DeploymentSpecArgsDict = {
            "selector": {"match_labels": pods.selector(fleet.name)},
            "strategy": {"type": "RollingUpdate", "rolling_update": {"max_surge": 0, "max_unavailable": 1}},
            "template": {
                "metadata": {"labels": self._labels, "annotations": {pods.DIGEST: pods.digest(self._args.settings)}},
                "spec": self._pod(),
            },
        }
        if size.maximum == size.minimum:
            spec["replicas"] = size.minimum
        elif not size.triggers:
            spec["replicas"] = size.minimum
            ignored.append("spec.replicas")
            annotations[MAX_REPLICAS] = str(size.maximum)
        return apps.Deployment(
            fleet.name,
            metadata=pods.metadata(fleet.name, self._labels, annotations),
            spec=spec,
            opts=self.child(depends_on=needs, ignore_changes=ignored),
        )

    def _pod(self) -> core.PodSpecArgsDict:
        config, fleet, gpus = self._args.config, self._args.fleet, self._args.model.gpus
        cache: core.VolumeArgsDict = (
            {"name": "model-cache", "persistent_volume_claim": {"claim_name": self._claim}}
            if config.model_cache == "claim"
            else pods.scratch("model-cache", config.model_cache_gib)
        )
        pod: core.PodSpecArgsDict = {
            "service_account_name": ENGINE,
            "automount_service_account_token": False,
            "priority_class_name": self._args.priority_class,
            "security_context": pods.POD_SECURITY,
            "termination_grace_period_seconds": self._args.stop.grace_s,
            "containers": [self._container()],
            "volumes": [
                {"name": "settings", "config_map": {"name": f"{fleet.name}-settings"}},
                cache,
                pods.scratch("tmp", pods.TMP_GIB),
                {"name": "shm", "empty_dir": {"medium": "Memory", "size_limit": f"{SHARED_MEMORY_GIB}Gi"}},
            ],
        }
        if gpus:
            pod["affinity"] = gpu_affinity(gpus.kind, fleet.capacities)
            pod["tolerations"] = gpu_tolerations(fleet.capacities)
        return pod

    def _container(self) -> core.ContainerArgsDict:
        model, config = self._args.model, self._args.config
        variables = {
            "FLOTILLA_MODEL_CACHE_DIR": CACHE_DIR,
            "VLLM_CACHE_ROOT": f"{CACHE_DIR}/vllm",
            **QUIET_ENGINE,
            **model.engine_env,
        }
        cache_gib = config.model_cache_gib if config.model_cache == "node" else 0
        num_gpus = model.gpus.count if model.gpus else 0
        return {
            "name": "engine",
            "image": self._args.image,
            "command": ["python", "-m", "serving.engine"],
            "args": ["--", *model.engine_arguments()],
            "env": pods.environment(SETTINGS_FILE, variables),
            "ports": [
                {"name": port, "container_port": number, "protocol": "TCP"}
                for port, number in {**_gateway_ports(model), "ops": OPS_PORT}.items()
            ],
            "resources": pods.resources(config.resources, cache_gib + pods.TMP_GIB + pods.LOGS_GIB, num_gpus),
            "security_context": pods.CONTAINER_SECURITY,
            "startup_probe": pods.probe(timers.STARTUP, "ops"),
            "readiness_probe": pods.probe(timers.READINESS, "ops"),
            "liveness_probe": pods.probe(timers.LIVENESS, "ops"),
            "volume_mounts": [
                {"name": "settings", "mount_path": pods.SETTINGS_DIR, "read_only": True},
                {"name": "model-cache", "mount_path": CACHE_DIR},
                {"name": "tmp", "mount_path": pods.TMP},
                {"name": "shm", "mount_path": "/dev/shm"},  # noqa: S108 (the pod's own)
            ],
        }
