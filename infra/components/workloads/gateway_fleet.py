"""The gateways of a region: a StatefulSet, because each ordinal owns a journal that must outlive its pod.

Two containers share that journal: the gateway appends usage before it answers, the shipper carries sealed segments to the
archive. The claim is retained when pods or the set go away; it holds what has been acknowledged and not yet shipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.apps import v1 as apps
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.policy import v1 as policy

from infra import timers
from infra.components.component import Component
from infra.components.workloads import pods
from infra.naming import GATEWAY, PROJECT, StackName
from infra.stack_config import GatewayConfig, Resources

HTTP_PORT, OPS_PORT, SHIPPER_PORT = 8080, 8081, 8082
SETTINGS_FILE = "gateway.json"
STATE_DIR = "/var/lib/flotilla"
JOURNAL_DIR = f"{STATE_DIR}/journal"
HOST_PORTS = f"{PROJECT}.dev/host-ports"
"""Annotation that asks the embedded run to open ports of this machine for the Service."""


@dataclass(frozen=True)
class GatewayFleetArgs:
    """`settings` is a GatewaySettings document as JSON."""

    config: GatewayConfig
    settings: pulumi.Input[str]
    priority_class: str


class GatewayFleet(Component):
    """StatefulSet, settings, Service and disruption budget of the gateways."""

    def __init__(self, name: str, args: GatewayFleetArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("workloads:GatewayFleet", name, stack, opts)
        self._args = args
        self._labels = pods.labels(stack, name, GATEWAY)
        settings = pods.settings_map(f"{GATEWAY}-settings", SETTINGS_FILE, args.settings, self._labels, self.child())
        self._create_service()
        policy.PodDisruptionBudget(
            GATEWAY,
            metadata=pods.metadata(GATEWAY, self._labels),
            spec={
                "max_unavailable": 1,
                "selector": {"match_labels": pods.selector(GATEWAY)},
                # A pod that is not ready serves nobody, and must not hold up a node's drain.
                "unhealthy_pod_eviction_policy": "AlwaysAllow",
            },
            opts=self.child(),
        )
        self._create_pods(settings)
        self.register_outputs({})

    def _create_service(self) -> None:
        ports = self._args.config.host_ports
        annotations = {HOST_PORTS: f"http={ports.http},ops={ports.ops}"} if ports else None
        core.Service(
            GATEWAY,
            metadata=pods.metadata(GATEWAY, self._labels, annotations),
            spec={
                "type": "ClusterIP",
                "selector": pods.selector(GATEWAY),
                "ports": [
                    {"name": "http", "port": HTTP_PORT, "target_port": "http", "protocol": "TCP"},
                    {"name": "ops", "port": OPS_PORT, "target_port": "ops", "protocol": "TCP"},
                ],
            },
            opts=self.child(),
        )

    def _create_pods(self, settings: core.ConfigMap) -> None:
        config = self._args.config
        claim: core.PersistentVolumeClaimSpecArgsDict = {
            "access_modes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{config.journal_gib}Gi"}},
        }
        if config.storage_class:
            claim["storage_class_name"] = config.storage_class
        apps.StatefulSet(
            GATEWAY,
            metadata=pods.metadata(GATEWAY, self._labels),
            spec={
                "replicas": config.replicas,
                "selector": {"match_labels": pods.selector(GATEWAY)},
                "pod_management_policy": "Parallel",
                "persistent_volume_claim_retention_policy": {"when_deleted": "Retain", "when_scaled": "Retain"},
                "volume_claim_templates": [{"metadata": {"name": "journal", "labels": self._labels}, "spec": claim}],
                "template": {
                    "metadata": {"labels": self._labels, "annotations": {pods.DIGEST: pods.digest(self._args.settings)}},
                    "spec": self._pod(),
                },
            },
            opts=self.child(depends_on=[settings]),
        )

    def _pod(self) -> core.PodSpecArgsDict:
        config = self._args.config
        return {
            "service_account_name": GATEWAY,
            "automount_service_account_token": False,
            "priority_class_name": self._args.priority_class,
            "security_context": pods.POD_SECURITY,
            "termination_grace_period_seconds": timers.GATEWAY_STOP.grace_s,
            "topology_spread_constraints": [
                {
                    "max_skew": 1,
                    "topology_key": key,
                    "when_unsatisfiable": "ScheduleAnyway",
                    "label_selector": {"match_labels": pods.selector(GATEWAY)},
                }
                for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
            ],
            "containers": [
                self._container("gateway", "serving.gateway", config.resources, {"http": HTTP_PORT, "ops": OPS_PORT}, "ops"),
                self._container(
                    "shipper", "serving.metering.shipper", config.shipper_resources, {"shipper": SHIPPER_PORT}, "shipper"
                ),
            ],
            "volumes": [
                {"name": "settings", "config_map": {"name": f"{GATEWAY}-settings"}},
                {"name": "tmp", "empty_dir": {}},
            ],
        }

    def _container(self, name: str, module: str, given: Resources, ports: dict[str, int], probed: str) -> core.ContainerArgsDict:
        container: core.ContainerArgsDict = {
            "name": name,
            "image": self._args.config.image,
            "command": ["python", "-m", module],
            "env": pods.environment(SETTINGS_FILE, {"FLOTILLA_JOURNAL_DIR": JOURNAL_DIR}),
            "ports": [{"name": port, "container_port": number, "protocol": "TCP"} for port, number in ports.items()],
            "resources": pods.resources(given),
            "security_context": pods.CONTAINER_SECURITY,
            "startup_probe": pods.probe(timers.STARTUP, probed),
            "readiness_probe": pods.probe(timers.READINESS, probed),
            "liveness_probe": pods.probe(timers.LIVENESS, probed),
            "volume_mounts": [
                {"name": "settings", "mount_path": pods.SETTINGS_DIR, "read_only": True},
                {"name": "journal", "mount_path": STATE_DIR},
                {"name": "tmp", "mount_path": pods.TMP},
            ],
        }
        if name == GATEWAY:
            container["lifecycle"] = {"pre_stop": {"sleep": {"seconds": timers.GATEWAY_STOP.pre_stop_s}}}
        return container
