"""Gateways, engines, cache: what their manifests promise to Kubernetes, to each other, and to the processes in them."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import workload_support
from workload_support import LOCAL, PROD, containers, document, environment, labels, named, pod

from infra import config, versions
from infra.components.workloads.pods import DIGEST
from infra.embedded.graph import Graph, Resource, tokens_in
from infra.embedded.recorder import record
from infra.naming import KARPENTER, LOAD_BALANCER_CONTROLLER
from serving.settings import EngineSettings, GatewaySettings, JournalSettings, ModelClass


@pytest.fixture
def serving(local_graphs: dict[str, Graph]) -> Graph:
    return local_graphs[LOCAL]


@pytest.fixture
def workloads(serving: Graph) -> dict[str, Resource]:
    return workload_support.workloads(serving)


def test_the_commands_are_those_of_the_serving_package(workloads: dict[str, Resource]) -> None:
    found = {(workload.name, container["name"]): container["command"] for workload, container in containers(workloads.values())}
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
    arguments = engine["args"]
    assert engine["image"] == "host:.venv" and arguments[arguments.index("--profile") + 1] == "a100-medium"
    settings = EngineSettings.model_validate_json(document(serving, "engine-medium-settings"))
    assert settings.engine == "twin"


def test_a_stack_of_twins_alone_serves_no_model(serving: Graph) -> None:
    """As `flotilla up --engine twin` asks for it."""
    twins = record([LOCAL], overrides={LOCAL: {"twins": True}})[LOCAL]
    engines = [resource for resource in workload_support.workloads(twins).values() if resource.name.startswith("engine-")]
    assert {pod(engine)["containers"][0]["image"] for engine in engines} == {"host:.venv"}
    for name in get_args(ModelClass):
        assert EngineSettings.model_validate_json(document(twins, f"engine-{name}-settings")).engine == "twin"


def test_a_gateway_reads_its_settings_where_they_are_mounted(serving: Graph, workloads: dict[str, Resource]) -> None:
    settings = GatewaySettings.model_validate_json(document(serving, "gateway-settings"))
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
    assert settings.journal == JournalSettings(seal_after_s=2)
    for container in pod(workloads["gateway"])["containers"]:
        assert environment(container)["FLOTILLA_SETTINGS_FILE"] == "/etc/flotilla/gateway.json"
        assert environment(container)["FLOTILLA_JOURNAL_DIR"] == "/var/lib/flotilla/journal"
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/etc/flotilla", "/var/lib/flotilla"}


def test_an_engine_reads_its_settings_and_knows_its_registry(serving: Graph) -> None:
    settings = EngineSettings.model_validate_json(document(serving, "engine-small-settings"))
    assert (settings.model_class, settings.registry_table) == ("small", "flotilla-local-registry")
    assert settings.artifact_bucket == "flotilla-local-use2-artifacts"


def test_a_change_of_settings_rolls_its_own_workload_and_no_other(local_graphs: dict[str, Graph]) -> None:
    changed = record([LOCAL], overrides={LOCAL: {"cache": {"transit_encryption": True}}})[LOCAL]

    def digests(graph: Graph) -> dict[str, str]:
        return {
            found.name: found.inputs["spec"]["template"]["metadata"]["annotations"][DIGEST]
            for found in workload_support.workloads(graph).values()
        }

    before, after = digests(local_graphs[LOCAL]), digests(changed)
    assert before["gateway"] != after["gateway"] and before["engine-small"] == after["engine-small"]


def test_every_pod_knows_its_name_and_its_address(workloads: dict[str, Resource]) -> None:
    for _, container in containers(workloads.values()):
        assert environment(container)["FLOTILLA_POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
        assert environment(container)["FLOTILLA_POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_pods_meet_pod_security_restricted(serving: Graph, workloads: dict[str, Resource]) -> None:
    namespace = named(serving, "kubernetes:core/v1:Namespace")["serving"]
    assert namespace.inputs["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload, container in containers(workloads.values()):
        outer, inner = pod(workload)["securityContext"], container["securityContext"]
        assert outer["runAsNonRoot"] and outer["runAsUser"] > 0 and outer["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (
            inner["readOnlyRootFilesystem"]
            and not inner["allowPrivilegeEscalation"]
            and inner["capabilities"] == {"drop": ["ALL"]}
        )
        assert pod(workload)["automountServiceAccountToken"] is False


def test_mounts_have_volumes_and_probes_have_ports(workloads: dict[str, Resource]) -> None:
    for workload, container in containers(workloads.values()):
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


def test_a_gateway_has_ports_of_this_machine_in_local_and_engines_are_headless(serving: Graph) -> None:
    services = {found.name: found.inputs for found in serving.of_type("kubernetes:core/v1:Service")}
    assert services["gateway"]["metadata"]["annotations"] == {"flotilla.dev/host-ports": "http=8080,ops=8081"}
    assert [(port["name"], port["port"]) for port in services["gateway"]["spec"]["ports"]] == [("http", 8080), ("ops", 8081)]
    admin = services["gateway-admin"]
    assert admin["metadata"]["annotations"] == {"flotilla.dev/host-ports": "admin=8083"}
    assert [(port["name"], port["port"]) for port in admin["spec"]["ports"]] == [("admin", 8083)]
    assert admin["spec"]["publishNotReadyAddresses"], "or nobody could end a drain of all of them"
    assert services["engine-small"]["spec"]["clusterIP"] == "None"
    assert [(port["name"], port["port"]) for port in services["engine-small"]["spec"]["ports"]] == [("http", 8000)]


def test_the_two_regions_take_different_ports_of_this_machine(local_graphs: dict[str, Graph]) -> None:
    asked = [
        found.inputs["metadata"]["annotations"]["flotilla.dev/host-ports"]
        for region in ("us-east-2", "us-west-2")
        for found in local_graphs[f"local.serving.{region}"].of_type("kubernetes:core/v1:Service")
        if found.name.startswith("gateway")
    ]
    ports = [pair.split("=")[1] for ask in asked for pair in ask.split(",")]
    assert len(ports) == len(set(ports)) == 6


def test_the_cache_is_reached_by_pods_of_the_cluster_alone(serving: Graph, local_graphs: dict[str, Graph]) -> None:
    access = named(serving, "aws:ec2/securityGroup:SecurityGroup")["cache-access"]
    rules = serving.of_type("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule")
    (rule,) = (rule for rule in rules if rule.inputs["securityGroupId"] == access.outputs["id"])
    pods = local_graphs["local.cluster.us-east-2"].outputs["cluster_security_group_id"]
    assert rule.inputs["referencedSecurityGroupId"] == pods
    assert (rule.inputs["fromPort"], rule.inputs["toPort"]) == (6379, 6379)
    (group,) = serving.of_type("aws:elasticache/replicationGroup:ReplicationGroup")
    assert (group.inputs["engine"], group.inputs["engineVersion"]) == ("valkey", "8.0")
    assert group.inputs["atRestEncryptionEnabled"]


def test_a_cache_with_a_replica_fails_over_and_redis_is_a_choice(serving: Graph) -> None:
    override = {"cache": {"engine": "redis", "num_replicas": 2, "transit_encryption": True}}
    (group,) = record([LOCAL], overrides={LOCAL: override})[LOCAL].of_type("aws:elasticache/replicationGroup:ReplicationGroup")
    assert group.inputs["automaticFailoverEnabled"] and group.inputs["multiAzEnabled"] and group.inputs["numCacheClusters"] == 3
    assert (group.inputs["engine"], group.inputs["parameterGroupName"]) == ("redis", "default.redis7")


def test_settings_documents_are_plain_json(serving: Graph) -> None:
    for name in ("gateway-settings", "engine-small-settings"):
        assert isinstance(json.loads(document(serving, name)), dict)


@pytest.mark.parametrize("stack", [LOCAL, PROD])
def test_a_workload_its_budget_and_its_service_mean_the_same_pods(stack: str, graphs: dict[str, Graph]) -> None:
    graph = graphs[stack]
    budgets = named(graph, "kubernetes:policy/v1:PodDisruptionBudget")
    chosen = {name: service.inputs["spec"]["selector"] for name, service in named(graph, workload_support.SERVICE).items()}
    for name, workload in workload_support.workloads(graph).items():
        own = workload.inputs["spec"]["selector"]["matchLabels"]
        assert own and own.items() <= labels(workload).items()
        assert budgets[name].inputs["spec"]["selector"]["matchLabels"] == own
        matching = {found for found, wanted in chosen.items() if wanted.items() <= labels(workload).items()}
        assert len(matching - {"gateway-admin"}) == 1
        assert ("gateway-admin" in matching) == (name == "gateway")


def test_the_journals_class_keeps_volumes_and_encrypts_them_with_our_key(graphs: dict[str, Graph]) -> None:
    (storage,) = graphs[PROD].of_type("kubernetes:storage.k8s.io/v1:StorageClass")
    (claim,) = workload_support.workloads(graphs[PROD])["gateway"].inputs["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == storage.inputs["metadata"]["name"] == "flotilla-journals"
    assert storage.inputs["reclaimPolicy"] == "Retain" and storage.inputs["volumeBindingMode"] == "WaitForFirstConsumer"
    key = graphs["prod.foundation"].outputs["regions"]["us-east-2"]["kms_key_arn"]
    assert storage.inputs["parameters"] == {"type": "gp3", "encrypted": "true", "kmsKeyId": key}


def test_gateways_are_spread_over_zones_before_anything_else(graphs: dict[str, Graph]) -> None:
    """A journal's volume ties its ordinal to the zone of its first start."""
    zone, host = pod(workload_support.workloads(graphs[PROD])["gateway"])["topologySpreadConstraints"]
    assert (zone["topologyKey"], zone["whenUnsatisfiable"]) == ("topology.kubernetes.io/zone", "DoNotSchedule")
    assert (host["topologyKey"], host["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")


@pytest.mark.parametrize("stack", [LOCAL, PROD])
def test_objects_wait_for_what_they_need(stack: str, graphs: dict[str, Graph]) -> None:
    """A kind that a chart defines is not there before the chart; pods are not before their namespace and its rules."""
    graph = graphs[stack]
    charts = {name: chart.urn for name, chart in named(graph, "kubernetes:helm.sh/v4:Chart").items()}
    makers = {
        "keda.sh": "keda",
        "karpenter.sh": "karpenter",
        "karpenter.k8s.aws": "karpenter",
        "elbv2.k8s.aws": "aws-load-balancer-controller",
        "monitoring.coreos.com": "kube-prometheus-stack",
    }
    seen: set[str] = set()
    for resource in graph.resources:
        group = resource.type.removeprefix("kubernetes:").partition("/")[0]
        if group in makers:
            seen.add(group)
            assert charts[makers[group]] in resource.options.depends_on, resource.name
    assert seen >= {"karpenter.sh", "elbv2.k8s.aws", "monitoring.coreos.com"}
    namespace = named(graph, "kubernetes:core/v1:Namespace")["serving"]
    deny = named(graph, workload_support.NETWORK_POLICY)["default-deny"]
    for workload in workload_support.workloads(graph).values():
        assert {namespace.urn, deny.urn, charts["aws-load-balancer-controller"]} <= set(workload.options.depends_on)


def test_charts_are_pinned_and_controllers_take_the_roles_that_the_cluster_stack_gives(graphs: dict[str, Graph]) -> None:
    charts = named(graphs[PROD], "kubernetes:helm.sh/v4:Chart")
    assert {name: chart.inputs["version"] for name, chart in charts.items()} == {
        pinned.name: pinned.version for pinned in versions.CHARTS
    }
    for name, account in (("karpenter", KARPENTER), ("aws-load-balancer-controller", LOAD_BALANCER_CONTROLLER)):
        assert charts[name].inputs["namespace"] == account.namespace
        assert charts[name].inputs["values"]["serviceAccount"]["name"] == account.name
    queue = graphs["prod.cluster.us-east-2"].outputs["karpenter"]["interruption_queue"]
    assert charts["karpenter"].inputs["values"]["settings"]["interruptionQueue"] == queue


def test_only_what_needs_the_node_itself_is_outside_pod_security(graphs: dict[str, Graph]) -> None:
    levels = {
        found.name: found.inputs["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        for found in graphs[PROD].of_type("kubernetes:core/v1:Namespace")
    }
    assert levels == {"serving": "restricted", "monitoring": "baseline", "gpu": "privileged"}
