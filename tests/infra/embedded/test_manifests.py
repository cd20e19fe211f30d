"""Kubernetes objects become workloads; what one machine cannot honour is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from infra.embedded.desired import Action, Mount, Probe, Volume
from infra.embedded.graph import Graph, Resource, Secret, token
from infra.embedded.manifests import Surroundings, host_ports, pod_ports, render
from serving.errors import UserError
from serving.settings import ModelClass

REPOSITORY = Path(__file__).parents[3]
SURROUNDINGS = Surroundings("us-east-2", REPOSITORY, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, port_offset=100)
CACHE = token("urn:pulumi:s::p::aws:elasticache/replicationGroup:ReplicationGroup::c", "primaryEndpointAddress")


def resource(kind: str, name: str, **inputs: Any) -> Resource:
    inputs = {"metadata": {"name": name, "namespace": "serving"}, **inputs}
    return Resource(f"urn:pulumi:s::p::{kind}::{name}", kind, name, "", True, inputs, inputs)


def deployment() -> dict[str, Any]:
    return {
        "replicas": 2,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        "template": {
            "metadata": {"labels": {"app": "engine", "tier": "gpu"}},
            "spec": {
                "terminationGracePeriodSeconds": 60,
                "containers": [
                    {
                        "name": "engine",
                        "image": "host:.venv",
                        "command": ["python", "-m", "x"],
                        "args": ["--cache", "/var/cache/y"],
                        "env": [
                            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                            {"name": "URL", "value": f"redis://{CACHE}:6379"},
                            {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "mode"}}},
                            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "password", "key": "value"}}},
                        ],
                        "ports": [{"name": "http", "containerPort": 8000}],
                        "startupProbe": {"tcpSocket": {"port": "http"}, "failureThreshold": 60},
                        "readinessProbe": {
                            "httpGet": {"path": "/readyz", "port": "http"},
                            "periodSeconds": 1,
                            "timeoutSeconds": 3,
                        },
                        "livenessProbe": {"exec": {"command": ["true"]}, "initialDelaySeconds": 5},
                        "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
                        "volumeMounts": [
                            {"name": "cache", "mountPath": "/var/cache"},
                            {"name": "settings", "mountPath": "/etc/x"},
                        ],
                    }
                ],
                "volumes": [
                    {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}},
                    {"name": "settings", "configMap": {"name": "settings"}},
                ],
            },
        },
    }


def graph(spec: dict[str, Any], annotation: str = "http=8080", *, kind: str = "Deployment") -> Graph:
    service = {"selector": {"app": "engine"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
    metadata = {"name": "engine", "namespace": "serving", "annotations": {"flotilla.dev/host-ports": annotation}}
    resources = (
        resource("kubernetes:core/v1:ConfigMap", "settings", data={"mode": "fast", "x.json": f'{{"cache": "{CACHE}"}}'}),
        resource("kubernetes:core/v1:Secret", "password", stringData=Secret({"value": "hush"})),
        resource(f"kubernetes:apps/v1:{kind}", "engine", spec=spec),
        resource("kubernetes:core/v1:Service", "engine", metadata=metadata, spec=service),
        resource("kubernetes:networking.k8s.io/v1:NetworkPolicy", "deny", spec={}),
    )
    return Graph("local.serving.us-east-2", resources, {})


def lookup(urn: str, name: str) -> str:
    assert name == "primaryEndpointAddress"
    return "127.9.9.9"


def test_a_deployment_keeps_everything_that_has_a_meaning_here() -> None:
    (workload,), (service,) = render(graph(deployment()), SURROUNDINGS, lookup)
    (container,) = workload.template.containers
    assert workload.key == "us-east-2.serving.engine"
    assert (workload.replicas, workload.max_surge, workload.max_unavailable, workload.template.grace_s) == (2, 0, 1, 60)
    assert container.command == ("python", "-m", "x", "--cache", "/var/cache/y")
    assert container.venv == str(REPOSITORY / ".venv" / "bin")
    assert container.env == {"POD": "{field:status.podIP}", "URL": "redis://127.9.9.9:6379", "MODE": "fast", "PASSWORD": "hush"}
    assert container.host_env == SURROUNDINGS.host_env
    assert container.mounts == (Mount(path="/var/cache", volume="cache"), Mount(path="/etc/x", volume="settings"))
    assert container.startup == Probe(action=Action(kind="tcp", port=8000), failure_threshold=60)
    assert container.readiness == Probe(action=Action(kind="http", path="/readyz", port=8000), period_s=1, timeout_s=3)
    assert container.liveness == Probe(action=Action(kind="exec", command=("true",)), initial_delay_s=5)
    assert container.pre_stop == Action(kind="sleep", sleep_s=2)
    assert workload.template.volumes == {
        "cache": Volume(kind="retained", key="us-east-2/serving/models"),
        "settings": Volume(kind="files", files={"mode": "fast", "x.json": '{"cache": "127.9.9.9"}'}),
    }
    assert (service.workloads, service.ports, service.host_ports) == ((workload.key,), {"http": 8000}, {"http": 8180})


def test_ports_are_known_before_anything_is_realised() -> None:
    assert host_ports(graph(deployment()), 5) == {8085: "Service serving/engine of local.serving.us-east-2"}
    assert pod_ports(graph(deployment())) == {8000}


def test_a_claim_template_is_a_retained_folder_for_each_ordinal() -> None:
    spec = deployment() | {"volumeClaimTemplates": [{"metadata": {"name": "journal"}}], "podManagementPolicy": "Parallel"}
    (workload,), _ = render(graph(spec, kind="StatefulSet"), SURROUNDINGS, lookup)
    assert workload.template.volumes["journal"] == Volume(kind="retained", key="us-east-2/serving/journal-{pod}")
    assert workload.is_parallel


@pytest.mark.parametrize("part", ["a label", "the strategy", "the size"])
def test_what_is_not_in_the_template_does_not_change_its_revision(part: str) -> None:
    spec = deployment()
    (before,), _ = render(graph(spec), SURROUNDINGS, lookup)
    match part:
        case "a label":
            spec["template"]["metadata"]["labels"]["more"] = "x"
        case "the strategy":
            spec["strategy"] = {"type": "Recreate"}
        case "the size":
            spec["replicas"] = 3
    (after,), _ = render(graph(spec), SURROUNDINGS, lookup)
    assert before.template.revision == after.template.revision


def pod(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    spec = copy.deepcopy(deployment())
    change(spec["template"]["spec"])
    return spec


REFUSED = [
    (pod(lambda it: it["containers"][0].update(image="nginx@sha256:0")), "`nginx@sha256:0`"),
    (pod(lambda it: it["containers"][0].update(image="host:.no-such")), ".no-such"),
    (pod(lambda it: it["containers"][0].pop("command")), "`command`"),
    (pod(lambda it: it["containers"][0].update(envFrom=[{"configMapRef": {"name": "settings"}}])), "`envFrom`"),
    (pod(lambda it: it["containers"][0]["env"].append({"name": "M", "valueFrom": {"resourceFieldRef": {}}})), "`M`"),
    (pod(lambda it: it["containers"][0]["readinessProbe"].update(httpGet={"port": "web"})), "`web`"),
    (
        pod(
            lambda it: (
                it["containers"][0]["livenessProbe"].update(exec=None, grpc={"port": 1})
                or it["containers"][0]["livenessProbe"].pop("exec")
            )
        ),
        "grpc",
    ),
    (pod(lambda it: it["containers"][0]["volumeMounts"].append({"name": "ghost", "mountPath": "/g"})), "`ghost`"),
    (pod(lambda it: it["volumes"].append({"name": "disk", "hostPath": {"path": "/"}})), "`disk`"),
    (pod(lambda it: it["volumes"].append({"name": "other", "configMap": {"name": "absent"}})), "serving/absent"),
    (pod(lambda it: it.update(initContainers=[{}])), "`initContainers`"),
    (deployment() | {"strategy": {"rollingUpdate": {"maxSurge": "25%"}}}, "`maxSurge`"),
    (deployment() | {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}}, "rollingUpdate"),
]


@pytest.mark.parametrize(("spec", "named"), REFUSED, ids=[named for _, named in REFUSED])
def test_what_cannot_be_honoured_is_one_line_that_names_it(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as raised:
        render(graph(spec), SURROUNDINGS, lookup)
    assert named in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("annotation", ["http=-200", "http=65500", "web=80", "http=eighty"])
def test_a_host_port_that_cannot_be_is_refused(annotation: str) -> None:
    with pytest.raises(UserError, match="Service::engine"):
        render(graph(deployment(), annotation), SURROUNDINGS, lookup)


def test_the_program_itself_can_be_rendered(program: dict[str, Graph]) -> None:
    workloads, services = render(program["local.serving.us-east-2"], SURROUNDINGS, lambda urn, name: "127.9.9.9")
    engines = [f"engine-{model_class}" for model_class in get_args(ModelClass)]
    kinds = {workload.name: workload.kind for workload in workloads}
    assert kinds == {"gateway": "StatefulSet", **dict.fromkeys(engines, "Deployment")}
    assert {service.name: (service.ports, service.host_ports) for service in services} == {
        "gateway": ({"http": 8080, "ops": 8081}, {"http": 8180, "ops": 8181}),
        "gateway-admin": ({"admin": 8083}, {"admin": 8183}),
        **dict.fromkeys(engines, ({"http": 8000, "kv-events": 5557, "kv-replay": 5558}, {})),
        "engine-small": ({"http": 8000}, {}),
    }
