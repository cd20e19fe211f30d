"""The engines of one model class in a region: a supervisor and stock vLLM in each pod.

Engines hold nothing that lasts: weights come from the region's bucket, verified, and any engine may die at any time. A rollout
takes one engine away before it adds the next: GPUs for both at once are rarely there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.apps import v1 as apps
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.policy import v1 as policy

from infra import timers
from infra.catalog import Model
from infra.components.component import Component
from infra.components.workloads import pods
from infra.naming import ENGINE, StackName
from infra.stack_config.serving import EngineConfig
from infra.timers import Stop
from serving.settings import ModelClass

HTTP_PORT, OPS_PORT = 8000, 8001
SETTINGS_FILE = "engine.json"
CACHE_DIR = "/var/cache/flotilla"
QUIET_ENGINE: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""An engine asks nobody for weights and reports to nobody."""


@dataclass(frozen=True)
class EngineFleetArgs:
    """`settings` is an EngineSettings document as JSON."""

    model_class: ModelClass
    model: Model
    config: EngineConfig
    image: pulumi.Input[str]
    settings: pulumi.Input[str]
    priority_class: str
    stop: Stop


class EngineFleet(Component):
    """Deployment, settings, headless Service and disruption budget of a class's engines."""

    def __init__(self, name: str, args: EngineFleetArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("workloads:EngineFleet", name, stack, opts)
        self._args = args
        self.service = self._fleet = fleet_name(args.model_class)
        self._labels = pods.labels(stack, ENGINE, self._fleet, model_class=args.model_class)
        settings = pods.settings_map(f"{self._fleet}-settings", SETTINGS_FILE, args.settings, self._labels, self.child())
        self._create_service()
        policy.PodDisruptionBudget(
            self._fleet,
            metadata=pods.metadata(self._fleet, self._labels),
            spec={
                "max_unavailable": 1,
                "selector": {"match_labels": pods.selector(self._fleet)},
                "unhealthy_pod_eviction_policy": "AlwaysAllow",
            },
            opts=self.child(),
        )
        self._create_pods([settings, *self._create_claim()])
        self.register_outputs({})

    def _create_service(self) -> None:
        core.Service(
            self._fleet,
            metadata=pods.metadata(self._fleet, self._labels),
            spec={
                # Headless: the gateway must know each engine to route by prefix and load, so no proxy may choose for it.
                "cluster_ip": "None",
                "selector": pods.selector(self._fleet),
                "ports": [{"name": "http", "port": HTTP_PORT, "target_port": "http", "protocol": "TCP"}],
            },
            opts=self.child(),
        )

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
        return f"{self._fleet}-model-cache"

    def _create_pods(self, needs: list[pulumi.Resource]) -> None:
        apps.Deployment(
            self._fleet,
            metadata=pods.metadata(self._fleet, self._labels),
            spec={
                "replicas": self._args.config.min_replicas,
                "selector": {"match_labels": pods.selector(self._fleet)},
                "strategy": {"type": "RollingUpdate", "rolling_update": {"max_surge": 0, "max_unavailable": 1}},
                "template": {
                    "metadata": {"labels": self._labels, "annotations": {pods.DIGEST: pods.digest(self._args.settings)}},
                    "spec": self._pod(),
                },
            },
            opts=self.child(depends_on=needs),
        )

    def _pod(self) -> core.PodSpecArgsDict:
        config = self._args.config
        cache: core.VolumeArgsDict = (
            {"name": "model-cache", "persistent_volume_claim": {"claim_name": self._claim}}
            if config.model_cache == "claim"
            else {"name": "model-cache", "empty_dir": {"size_limit": f"{config.model_cache_gib}Gi"}}
        )
        return {
            "service_account_name": ENGINE,
            "automount_service_account_token": False,
            "priority_class_name": self._args.priority_class,
            "security_context": pods.POD_SECURITY,
            "termination_grace_period_seconds": self._args.stop.grace_s,
            "containers": [self._container()],
            "volumes": [
                {"name": "settings", "config_map": {"name": f"{self._fleet}-settings"}},
                cache,
                {"name": "tmp", "empty_dir": {}},
                # Tensor-parallel workers talk through shared memory; a container's default of 64 MiB is too little.
                {"name": "shm", "empty_dir": {"medium": "Memory"}},
            ],
        }

    def _container(self) -> core.ContainerArgsDict:
        model, config = self._args.model, self._args.config
        variables = {
            "FLOTILLA_MODEL_CACHE_DIR": CACHE_DIR,
            "VLLM_CACHE_ROOT": f"{CACHE_DIR}/vllm",
            **QUIET_ENGINE,
            **model.engine_env,
        }
        return {
            "name": "engine",
            "image": self._args.image,
            "command": ["python", "-m", "serving.engine"],
            "args": ["--", *model.engine_arguments()],
            "env": pods.environment(SETTINGS_FILE, variables),
            "ports": [
                {"name": "http", "container_port": HTTP_PORT, "protocol": "TCP"},
                {"name": "ops", "container_port": OPS_PORT, "protocol": "TCP"},
            ],
            "resources": pods.resources(config.resources, pods.TMP_GIB + pods.LOGS_GIB, model.gpus.count if model.gpus else 0),
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


def fleet_name(model_class: ModelClass) -> str:
    """Name of the Deployment, the Service and the pods' label of a class."""
    return f"{ENGINE}-{model_class}"
