"""Gateways, engines, cache: what their manifests promise to Kubernetes, to each other, and to the processes in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest

from infra import config
from infra.components.workloads.pods import DIGEST
from infra.embedded.graph import Graph, Resource, tokens_in
from infra.embedded.recorder import record
from infra.layers.serving import ENGINE_STOP, GATEWAY_STOP
from infra.timers import LIVENESS, READINESS, SPOT_GRACE_S, STARTUP, Stop
from serving.settings import EngineSettings, GatewaySettings, JournalSettings, ModelClass

SERVING = "local.serving.us-east-2"
WORKLOADS = ("kubernetes:apps/v1:StatefulSet", "kubernetes:apps/v1:Deployment")


@pytest.fixture
def serving(local_graphs: dict[str, Graph]) -> Graph:
    return local_graphs[SERVING]


@pytest.fixture
def workloads(serving: Graph) -> dict[str, Resource]:
    return {resource.name: resource for resource in serving.of_type(*WORKLOADS)}


def pod(workload: Resource) -> dict[str, Any]:
    return workload.inputs["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def containers(workloads: dict[str, Resource]) -> Iterator[tuple[Resource, dict[str, Any]]]:
    for workload in workloads.values():
        for container in pod(workload)["containers"]:
            yield workload, container


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item.get("value", item.get("valueFrom")) for item in container["env"]}


def config_map(graph: Graph, name: str) -> dict[str, str]:
    (found,) = (resource for resource in graph.of_type("kubernetes:core/v1:ConfigMap") if resource.name == name)
    return found.inputs["data"]  # type: ignore[no-any-return]


def policies(graph: Graph) -> dict[str, dict[str, Any]]:
    return {found.name: found.inputs["spec"] for found in graph.of_type("kubernetes:networking.k8s.io/v1:NetworkPolicy")}


def test_the_commands_are_those_of_the_serving_package(workloads: dict[str, Resource]) -> None:
    found = {(workload.name, container["name"]): container["command"] for workload, container in containers(workloads)}
    assert found == {
        ("gateway", "gateway"): ["python", "-m", "serving.gateway"],
        ("gateway", "shipper"): ["python", "-m", "serving.metering.shipper"],
        **{(f"engine-{model_class}", "engine"): ["python", "-m", "serving.engine"] for model_class in get_args(ModelClass)},
    }


def test_engine_arguments_come_from_the_catalog_behind_two_dashes(workloads: dict[str, Resource]) -> None:
    (engine,) = pod(workloads["engine-small"])["containers"]
    model = config.load_catalog().models["smollm2-135m-instruct"]
    assert engine["args"] == ["--", *model.engine_arguments()]
    assert engine["args"][engine["args"].index("--max-model-len") + 1] == "8192"
    assert {"--enforce-eager", "--enable-prefix-caching", "--no-enable-log-requests"} <= set(engine["args"])
    assert environment(engine)["VLLM_CPU_KVCACHE_SPACE"] == "2" and environment(engine)["HF_HUB_OFFLINE"] == "1"


def test_a_twin_runs_where_a_gateway_runs_and_is_told_what_it_is(serving: Graph, workloads: dict[str, Resource]) -> None:
    (engine,) = pod(workloads["engine-medium"])["containers"]
    assert engine["image"] == "host:.venv" and engine["args"][-2:] == ["--profile", "a100-medium"]
    settings = EngineSettings.model_validate_json(config_map(serving, "engine-medium-settings")["engine.json"])
    assert settings.engine == "twin"


def test_a_stack_of_twins_alone_serves_no_model(serving: Graph) -> None:
    """As `flotilla up --engine twin` asks for it."""
    twins = record([SERVING], overrides={SERVING: {"twins": True}})[SERVING]
    engines = [resource for resource in twins.of_type(*WORKLOADS) if resource.name.startswith("engine-")]
    assert {pod(engine)["containers"][0]["image"] for engine in engines} == {"host:.venv"}
    for name in get_args(ModelClass):
        assert EngineSettings.model_validate_json(config_map(twins, f"engine-{name}-settings")["engine.json"]).engine == "twin"


def test_a_gateway_reads_its_settings_where_they_are_mounted(serving: Graph, workloads: dict[str, Resource]) -> None:
    settings = GatewaySettings.model_validate_json(config_map(serving, "gateway-settings")["gateway.json"])
    assert (settings.environment, settings.region, settings.home_region) == ("local", "us-east-2", "us-east-2")
    assert settings.tables.ledger == "flotilla-local-ledger" and settings.archive_bucket == "flotilla-local-use2-archive"
    assert settings.secrets.key_pepper == "flotilla/local/key-pepper"
    ((urn, name),) = tokens_in(settings.cache_url)
    assert settings.cache_url == "redis://${" + f"{urn}#{name}" + "}:6379"
    assert urn.endswith("cache-group") and name == "primaryEndpointAddress"
    large, medium, model = settings.models
    assert (large.aliases, medium.engine_service) == (("Llama-3.3-70B-Instruct-twin",), "engine-medium.serving")
    assert (model.model_class, model.aliases, model.engine_service) == (
        "small",
        ("SmolLM2-135M-Instruct",),
        "engine-small.serving",
    )
    assert settings.drain_s == GATEWAY_STOP.drain_s and settings.journal == JournalSettings(seal_after_s=2)
    for container in pod(workloads["gateway"])["containers"]:
        assert environment(container)["FLOTILLA_SETTINGS_FILE"] == "/etc/flotilla/gateway.json"
        assert environment(container)["FLOTILLA_JOURNAL_DIR"] == "/var/lib/flotilla/journal"
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/etc/flotilla", "/var/lib/flotilla"}


def test_an_engine_reads_its_settings_and_knows_its_registry(serving: Graph) -> None:
    settings = EngineSettings.model_validate_json(config_map(serving, "engine-small-settings")["engine.json"])
    assert (settings.model_class, settings.registry_table) == ("small", "flotilla-local-registry")
    assert settings.artifact_bucket == "flotilla-local-use2-artifacts" and settings.drain_s == ENGINE_STOP.drain_s


def test_a_change_of_settings_rolls_its_own_workload_and_no_other(local_graphs: dict[str, Graph]) -> None:
    changed = record([SERVING], overrides={SERVING: {"cache": {"transit_encryption": True}}})[SERVING]

    def digests(graph: Graph) -> dict[str, str]:
        return {
            found.name: found.inputs["spec"]["template"]["metadata"]["annotations"][DIGEST] for found in graph.of_type(*WORKLOADS)
        }

    before, after = digests(local_graphs[SERVING]), digests(changed)
    assert before["gateway"] != after["gateway"] and before["engine-small"] == after["engine-small"]


def test_every_pod_knows_its_name_and_its_address(workloads: dict[str, Resource]) -> None:
    for _, container in containers(workloads):
        assert environment(container)["FLOTILLA_POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
        assert environment(container)["FLOTILLA_POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_pods_meet_pod_security_restricted(serving: Graph, workloads: dict[str, Resource]) -> None:
    (namespace,) = serving.of_type("kubernetes:core/v1:Namespace")
    assert namespace.inputs["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload, container in containers(workloads):
        outer, inner = pod(workload)["securityContext"], container["securityContext"]
        assert outer["runAsNonRoot"] and outer["runAsUser"] > 0 and outer["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (
            inner["readOnlyRootFilesystem"]
            and not inner["allowPrivilegeEscalation"]
            and inner["capabilities"] == {"drop": ["ALL"]}
        )
        assert pod(workload)["automountServiceAccountToken"] is False


def test_mounts_have_volumes_and_probes_have_ports(workloads: dict[str, Resource]) -> None:
    for workload, container in containers(workloads):
        claims = [claim["metadata"]["name"] for claim in workload.inputs["spec"].get("volumeClaimTemplates", [])]
        volumes = {volume["name"] for volume in pod(workload)["volumes"]} | set(claims)
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
        requested, limited = container["resources"]["requests"], container["resources"]["limits"]
        assert requested["memory"] == limited["memory"] and "cpu" in requested and "cpu" not in limited


def test_journals_outlive_their_pods(workloads: dict[str, Resource]) -> None:
    """They hold what was acknowledged and has not been shipped."""
    spec = workloads["gateway"].inputs["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_services_and_budgets_select_the_pods_they_are_for(serving: Graph, workloads: dict[str, Resource]) -> None:
    for name, workload in workloads.items():
        labels = workload.inputs["spec"]["template"]["metadata"]["labels"]
        (service,) = (found.inputs for found in serving.of_type("kubernetes:core/v1:Service") if found.name == name)
        (budget,) = (found.inputs for found in serving.of_type("kubernetes:policy/v1:PodDisruptionBudget") if found.name == name)
        for chosen in (
            service["spec"]["selector"],
            budget["spec"]["selector"]["matchLabels"],
            workload.inputs["spec"]["selector"]["matchLabels"],
        ):
            assert chosen and chosen.items() <= labels.items()
        assert budget["spec"]["maxUnavailable"] == 1


def test_a_gateway_has_ports_of_this_machine_in_local_and_engines_are_headless(serving: Graph) -> None:
    services = {found.name: found.inputs for found in serving.of_type("kubernetes:core/v1:Service")}
    assert services["gateway"]["metadata"]["annotations"] == {"flotilla.dev/host-ports": "http=8080,ops=8081"}
    assert [(port["name"], port["port"]) for port in services["gateway"]["spec"]["ports"]] == [("http", 8080), ("ops", 8081)]
    assert services["engine-small"]["spec"]["clusterIP"] == "None"
    assert [(port["name"], port["port"]) for port in services["engine-small"]["spec"]["ports"]] == [("http", 8000)]


def test_the_two_regions_take_different_ports_of_this_machine(local_graphs: dict[str, Graph]) -> None:
    asked = [
        found.inputs["metadata"]["annotations"]["flotilla.dev/host-ports"]
        for region in ("us-east-2", "us-west-2")
        for found in local_graphs[f"local.serving.{region}"].of_type("kubernetes:core/v1:Service")
        if found.name == "gateway"
    ]
    ports = [pair.split("=")[1] for ask in asked for pair in ask.split(",")]
    assert len(ports) == len(set(ports)) == 4


def test_nobody_may_talk_to_anybody_unless_a_policy_says_so(serving: Graph) -> None:
    deny = policies(serving)["default-deny"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_an_engine_answers_to_gateways_and_monitoring_alone(serving: Graph, workloads: dict[str, Resource]) -> None:
    labels = workloads["engine-small"].inputs["spec"]["template"]["metadata"]["labels"]
    admitted: list[tuple[Any, list[int]]] = []
    for spec in policies(serving).values():
        selector = spec["podSelector"].get("matchLabels", {})
        if selector.items() <= labels.items():
            admitted += [(rule["from"], [port["port"] for port in rule["ports"]]) for rule in spec.get("ingress", [])]
    gateways = [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}]
    monitoring = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert sorted(admitted, key=str) == sorted([(gateways, [8000]), (monitoring, [8001])], key=str)


def test_no_pod_can_reach_the_metadata_service(serving: Graph) -> None:
    """Node credentials are what an intruder asks for first."""
    opened = [
        (peer["ipBlock"], [port["port"] for port in rule["ports"]])
        for spec in policies(serving).values()
        for rule in spec.get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert ({"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}, [443]) in opened
    link_local = [block for block in opened if block[0]["cidr"].startswith("169.254")]
    assert link_local == [({"cidr": "169.254.170.23/32"}, [80])], "Pod Identity's agent, and nothing beside it"


def test_the_cache_is_reached_by_pods_of_the_cluster_alone(serving: Graph, local_graphs: dict[str, Graph]) -> None:
    (rule,) = serving.of_type("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule")
    assert (
        rule.inputs["referencedSecurityGroupId"] == local_graphs["local.cluster.us-east-2"].outputs["cluster_security_group_id"]
    )
    assert (rule.inputs["fromPort"], rule.inputs["toPort"]) == (6379, 6379)
    (group,) = serving.of_type("aws:elasticache/replicationGroup:ReplicationGroup")
    assert (group.inputs["engine"], group.inputs["engineVersion"]) == ("valkey", "8.0") and group.inputs[
        "atRestEncryptionEnabled"
    ]


def test_a_cache_with_a_replica_fails_over_and_redis_is_a_choice(serving: Graph) -> None:
    override = {"cache": {"engine": "redis", "num_replicas": 2, "transit_encryption": True}}
    (group,) = record([SERVING], overrides={SERVING: override})[SERVING].of_type(
        "aws:elasticache/replicationGroup:ReplicationGroup"
    )
    assert group.inputs["automaticFailoverEnabled"] and group.inputs["multiAzEnabled"] and group.inputs["numCacheClusters"] == 3
    assert (group.inputs["engine"], group.inputs["parameterGroupName"]) == ("redis", "default.redis7")


@pytest.mark.parametrize("stop", [GATEWAY_STOP, ENGINE_STOP])
def test_an_orderly_stop_ends_before_the_grace_period_and_the_grace_before_a_spot_node(stop: Stop) -> None:
    assert stop.longest_s < stop.grace_s < SPOT_GRACE_S


def test_timers_fit_together(workloads: dict[str, Resource]) -> None:
    """Each inequality says which failure it prevents."""
    assert READINESS.notice_s < LIVENESS.notice_s, "a process is taken out of service before it is killed"
    assert READINESS.timeout_s < LIVENESS.period_s
    assert ENGINE_STOP.drain_s >= GATEWAY_STOP.drain_s, "else a gateway's last streams would be cut from behind"
    assert GATEWAY_STOP.pre_stop_s < GATEWAY_STOP.drain_s
    assert STARTUP.period_s * STARTUP.failures >= 30
    for name, stop in (("gateway", GATEWAY_STOP), ("engine-small", ENGINE_STOP)):
        assert pod(workloads[name])["terminationGracePeriodSeconds"] == stop.grace_s
    gateway, _ = pod(workloads["gateway"])["containers"]
    assert gateway["lifecycle"]["preStop"]["sleep"]["seconds"] == GATEWAY_STOP.pre_stop_s


def test_settings_documents_are_plain_json(serving: Graph) -> None:
    for name in ("gateway-settings", "engine-small-settings"):
        for text in config_map(serving, name).values():
            assert isinstance(json.loads(text), dict)
