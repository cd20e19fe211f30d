"""The gateways of a region: a StatefulSet, because each ordinal owns a journal that must outlive its pod.

A journal's volume lies in one zone, that of the ordinal's first start, and so does the ordinal from then on. So the spread over
zones is a condition, not a wish: a first start that went wrong could not be mended. A lost zone does not count, and stops nobody.

Gateways watch the EndpointSlices of the engines' Services, and may ask the API for nothing else. Only their own container gets a
token for that, which is renewed hourly.

Two containers share that journal: the gateway appends usage before it answers, the shipper carries sealed segments to the
archive. The claim is retained when pods or the set go away; it holds what has been acknowledged and not yet shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.apps import v1 as apps
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.rbac import v1 as rbac

from infra import timers
from infra.components.component import Component
from infra.components.workloads import pods
from infra.components.workloads.scaled_object import ScaledObjectArgs, Trigger, scaled_object
from infra.naming import GATEWAY, JOURNAL_STORAGE, NAMESPACE, PROJECT, StackName
from infra.scheduling import GATEWAY_POOL, HOST, POOL, ZONE, spread
from infra.stack_config.serving import GatewayConfig, Resources
from infra.timers import Stop
from serving import series

HTTP_PORT, OPS_PORT, SHIPPER_PORT, ADMIN_PORT = 8080, 8081, 8082, 8083
SETTINGS_FILE = "gateway.json"
ACCOUNT_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_S = 3607
"""Kubernetes' own choice; the kubelet renews a token after four fifths."""
STATE_DIR = "/var/lib/flotilla"
JOURNAL_DIR = f"{STATE_DIR}/journal"
HOST_PORTS = f"{PROJECT}.dev/host-ports"
"""Annotation that asks the embedded run to open ports of this machine for the Service."""


@dataclass(frozen=True)
class GatewayFleetArgs:
    """`settings` is a GatewaySettings document as JSON."""

    config: GatewayConfig
    image: pulumi.Input[str]
    settings: pulumi.Input[str]
    priority_class: str
    stop: Stop

    @property
    def is_scaled(self) -> bool:
        """KEDA decides how many; otherwise the number is fixed."""
        return self.config.max_replicas is not None and self.config.max_replicas > self.config.replicas


class GatewayFleet(Component):
    """StatefulSet, settings, Service, disruption budget and autoscaling of the gateways."""

    def __init__(self, name: str, args: GatewayFleetArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("workloads:GatewayFleet", name, stack, opts)
        self._args = args
        self._labels = pods.labels(stack, name, GATEWAY)
        settings = pods.settings_map(f"{GATEWAY}-settings", SETTINGS_FILE, args.settings, self._labels, self.child())
        self._create_service()
        self._allow_discovery()
        pods.budget(GATEWAY, 1, self._labels, self.child())
        workload = self._create_pods(settings)
        if args.is_scaled:
            scaled_object(self._scaling(), self._labels, self.child(depends_on=[workload]))
        self.register_outputs({})

    def _create_service(self) -> None:
        ports = self._args.config.host_ports
        annotations = {HOST_PORTS: f"http={ports.http},ops={ports.ops}"} if ports else None
        admin = {HOST_PORTS: f"admin={ports.admin}"} if ports else None
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
        # Of its own, and with gateways that are not ready: whoever has drained them all must be able to end it.
        core.Service(
            f"{GATEWAY}-admin",
            metadata=pods.metadata(f"{GATEWAY}-admin", self._labels, admin),
            spec={
                "type": "ClusterIP",
                "selector": pods.selector(GATEWAY),
                "publish_not_ready_addresses": True,
                "ports": [{"name": "admin", "port": ADMIN_PORT, "target_port": "admin", "protocol": "TCP"}],
            },
            opts=self.child(),
        )

    def _allow_discovery(self) -> None:
        metadata = pods.metadata(f"{GATEWAY}-discovery", self._labels)
        role = rbac.Role(
            f"{GATEWAY}-discovery",
            metadata=metadata,
            rules=[{"api_groups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}],
            opts=self.child(),
        )
        rbac.RoleBinding(
            f"{GATEWAY}-discovery",
            metadata=metadata,
            role_ref={"api_group": "rbac.authorization.k8s.io", "kind": "Role", "name": f"{GATEWAY}-discovery"},
            subjects=[{"kind": "ServiceAccount", "name": GATEWAY, "namespace": NAMESPACE}],
            opts=self.child(depends_on=[role]),
        )

    def _scaling(self) -> ScaledObjectArgs:
        config = self._args.config
        return ScaledObjectArgs(
            target_kind="StatefulSet",
            target=GATEWAY,
            min_replicas=config.replicas,
            max_replicas=config.max_replicas or config.replicas,
            triggers=[Trigger("requests-in-flight", f"sum({series.IN_FLIGHT.name})", config.target_in_flight)],
        )

    def _create_pods(self, settings: core.ConfigMap) -> apps.StatefulSet:
        config = self._args.config
        claim: core.PersistentVolumeClaimSpecArgsDict = {
            "access_modes": ["ReadWriteOnce"],
            "storage_class_name": JOURNAL_STORAGE,
            "resources": {"requests": {"storage": f"{config.journal_gib}Gi"}},
        }
        spec: apps.StatefulSetSpecArgsDict = {
            "selector": {"match_labels": pods.selector(GATEWAY)},
            "pod_management_policy": "Parallel",
            "persistent_volume_claim_retention_policy": {"when_deleted": "Retain", "when_scaled": "Retain"},
            "volume_claim_templates": [{"metadata": {"name": "journal", "labels": self._labels}, "spec": claim}],
            "template": {
                "metadata": {"labels": self._labels, "annotations": {pods.DIGEST: pods.digest(self._args.settings)}},
                "spec": self._pod(),
            },
        }
        if not self._args.is_scaled:
            spec["replicas"] = config.replicas
        return apps.StatefulSet(
            GATEWAY, metadata=pods.metadata(GATEWAY, self._labels), spec=spec, opts=self.child(depends_on=[settings])
        )

    def _pod(self) -> core.PodSpecArgsDict:
        config = self._args.config
        return {
            "service_account_name": GATEWAY,
            "automount_service_account_token": False,
            "priority_class_name": self._args.priority_class,
            "security_context": pods.POD_SECURITY,
            "termination_grace_period_seconds": self._args.stop.grace_s,
            "node_selector": {POOL: GATEWAY_POOL},
            "topology_spread_constraints": [
                spread(ZONE, pods.selector(GATEWAY), "DoNotSchedule"),
                spread(HOST, pods.selector(GATEWAY), "ScheduleAnyway"),
            ],
            "containers": [
                self._container(
                    "gateway",
                    "serving.gateway",
                    config.resources,
                    {"http": HTTP_PORT, "ops": OPS_PORT, "admin": ADMIN_PORT},
                    "ops",
                    [{"name": "account", "mount_path": ACCOUNT_DIR, "read_only": True}],
                ),
                self._container(
                    "shipper", "serving.metering.shipper", config.shipper_resources, {"shipper": SHIPPER_PORT}, "shipper"
                ),
            ],
            "volumes": [
                {"name": "settings", "config_map": {"name": f"{GATEWAY}-settings"}},
                pods.scratch("tmp", pods.TMP_GIB),
                {
                    "name": "account",
                    "projected": {
                        "sources": [
                            {"service_account_token": {"path": "token", "expiration_seconds": TOKEN_S}},
                            {"config_map": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                        ]
                    },
                },
            ],
        }

    def _container(
        self,
        name: str,
        module: str,
        given: Resources,
        ports: dict[str, int],
        probed: str,
        mounts: Sequence[core.VolumeMountArgsDict] = (),
    ) -> core.ContainerArgsDict:
        return {
            "name": name,
            "image": self._args.image,
            "command": ["python", "-m", module],
            "env": pods.environment(SETTINGS_FILE, {"FLOTILLA_JOURNAL_DIR": JOURNAL_DIR}),
            "ports": [{"name": port, "container_port": number, "protocol": "TCP"} for port, number in ports.items()],
            "resources": pods.resources(given, pods.TMP_GIB + pods.LOGS_GIB),
            "security_context": pods.CONTAINER_SECURITY,
            "startup_probe": pods.probe(timers.STARTUP, probed),
            "readiness_probe": pods.probe(timers.READINESS, probed),
            "liveness_probe": pods.probe(timers.LIVENESS, probed),
            # The shipper too: it must not end before the gateway that writes what it ships.
            "lifecycle": {"pre_stop": {"sleep": {"seconds": self._args.stop.pre_stop_s}}},
            "volume_mounts": [
                {"name": "settings", "mount_path": pods.SETTINGS_DIR, "read_only": True},
                {"name": "journal", "mount_path": STATE_DIR},
                {"name": "tmp", "mount_path": pods.TMP},
                *mounts,
            ],
        }
