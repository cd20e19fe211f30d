"""How fleets and gateways grow: the rendered numbers, and that the series that are asked for are scraped with those labels."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from workload_support import CONFIG_MAP, LOCAL, PROD, SCALED_OBJECT, STAGING, containers, labels, named, workloads

from infra.components.workloads.engine_scaling import base_triggers, overflow_triggers, scaling_limits, scaling_policy
from infra.config import load_catalog, read_stack_file
from infra.embedded.graph import Graph
from infra.naming import parse_stack
from infra.stack_config import ServingConfig
from policies.autoscaling.policy import Limits, ScalingPolicy
from serving.settings import GatewaySettings, ModelClass

POD_MONITOR = "kubernetes:monitoring.coreos.com/v1:PodMonitor"


def scaled(graph: Graph) -> dict[str, dict[str, Any]]:
    return {name: found.inputs["spec"] for name, found in named(graph, SCALED_OBJECT).items()}


@pytest.mark.parametrize(
    ("name", "minimum", "maximum", "fallback"),
    [
        ("gateway", 6, 60, 6),
        ("engine-small", 26, 60, 26),  # a floor of 25, and a warm spare
        ("engine-medium", 16, 30, 16),
        ("engine-large", 11, 20, 11),
        ("engine-small-overflow", 0, 24, 1),  # KEDA takes what may be 0 to 0 in an outage, unless its fallback is more
        ("engine-medium-overflow", 0, 8, 1),
        ("engine-large-overflow", 0, 4, 1),
    ],
)
def test_sizes_follow_the_stack_file_and_an_outage_of_prometheus_shrinks_nothing(
    name: str, minimum: int, maximum: int, fallback: int, graphs: dict[str, Graph]
) -> None:
    spec = scaled(graphs[PROD])[name]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (minimum, maximum)
    assert spec["fallback"] == {"failureThreshold": 3, "replicas": fallback, "behavior": "currentReplicasIfHigher"}
    for trigger in spec["triggers"]:
        assert trigger["metadata"]["ignoreNullValues"] == "false" and trigger["metricType"] == "AverageValue"
    assert "replicas" not in workloads(graphs[PROD])[name].inputs["spec"], "KEDA owns it"


def test_an_engine_fleet_obeys_what_is_decided_to_the_engine(graphs: dict[str, Graph]) -> None:
    """By Kubernetes' tolerance of a tenth, 28 engines where 26 are would be near enough and never come; and a second quarter of
    an hour before shrinking would be on top of the decision's own."""
    spec = scaled(graphs[PROD])["engine-small"]
    desired, queue = (trigger["metadata"] for trigger in spec["triggers"])
    assert (desired["query"], desired["threshold"]) == ('max(flotilla_desired_replicas{model_class="small",fleet="base"})', "1")
    assert queue["query"].endswith(f"* (absent({desired['query']}) or vector(0))") and queue["threshold"] == "91"
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Pods", "value": 1, "periodSeconds": 108},
                {"type": "Percent", "value": 100, "periodSeconds": 108},
            ],
            "tolerance": "0",
        },
        "scaleDown": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [{"type": "Pods", "value": 16, "periodSeconds": 270}],
            "tolerance": "0",
        },
    }


def test_the_gateways_are_told_the_policy_and_the_limits_that_the_objects_are_rendered_by(graphs: dict[str, Graph]) -> None:
    told = settings(graphs[PROD])
    specs = scaled(graphs[PROD])
    for model in told.models:
        assert model.scaling is not None
        base, overflow = specs[f"engine-{model.model_class}"], specs[f"engine-{model.model_class}-overflow"]
        limits = model.scaling.limits
        assert (limits.floor, limits.max_base) == (base["minReplicaCount"], base["maxReplicaCount"])
        assert limits.max_overflow == overflow["maxReplicaCount"]
        assert base["triggers"][1]["metadata"]["threshold"] == f"{model.scaling.policy.target_in_flight:g}"
        assert model.scaling.policy.down_window_s == 300 and model.scaling.policy.target_tokens_per_s
    assert all(model.scaling is None for model in settings(graphs[STAGING]).models), "one engine is nothing to decide"


def settings(graph: Graph) -> GatewaySettings:
    """What the gateways are told."""
    (config_map,) = [found for name, found in named(graph, CONFIG_MAP).items() if name == "gateway-settings"]
    return GatewaySettings.model_validate_json(config_map.inputs["data"]["gateway.json"])


def test_a_fixed_size_has_no_autoscaler(graphs: dict[str, Graph]) -> None:
    for stack, gateways, elastic in ((LOCAL, 1, {"engine-medium"}), (STAGING, 2, set())):
        assert scaled(graphs[stack]).keys() == elastic
        found = {name: each.inputs["spec"].get("replicas") for name, each in workloads(graphs[stack]).items()}
        assert found.pop("gateway") == gateways
        assert {name for name, replicas in found.items() if replicas is None} == elastic
        assert {replicas for replicas in found.values() if replicas is not None} == {1}


@pytest.mark.parametrize(
    ("work", "base", "overflow"),
    [
        (0, 0, 0),
        (384, 12, 0),  # 12 × 32: base is exactly full
        (385, 12, 1),
        (500, 12, 4),  # ceil((500 - 384) / 32)
    ],
)
def test_overflow_takes_what_base_cannot(work: int, base: int, overflow: int) -> None:
    """The queries' arithmetic, evaluated: base holds at most 12 engines of 32 requests."""
    target, most = 32, 12
    policy = ScalingPolicy(target_in_flight=target)
    (_, base_queue), (_, overflow_queue) = base_triggers("small", policy), overflow_triggers("small", policy, most)
    beyond = re.match(r"\(clamp_min\((.+) - (\d+), (\d+)\)\) \* ", overflow_queue.query)
    assert beyond and base_queue.query.startswith(f"({beyond[1]}) * ")
    left = max(work - int(beyond[2]), int(beyond[3]))
    assert min(math.ceil(work / target), most) == base and math.ceil(left / target) == overflow


@pytest.mark.parametrize(
    ("model_class", "model", "target", "tokens_per_s"),
    [
        ("small", "qwen2.5-7b-instruct", 91, 12_790),
        ("medium", "qwen2.5-14b-instruct", 65, 9_350),
        ("large", "llama-3.3-70b-instruct", 45, 5_655),
        ("small", "qwen2.5-7b-instruct-l4", 8, None),  # no law for L4: an eighth of 64
    ],
)
def test_the_target_is_what_makes_an_engine_three_quarters_useful_or_an_eighth_of_a_batch(
    model_class: ModelClass, model: str, target: int, tokens_per_s: int | None
) -> None:
    """Small: 0.75 / 0.080 = 9.4 requests a second, a step of 11.5 / 0.25 = 46 ms, 9.4 × 211 × 0.046 = 91 at once."""
    config = ServingConfig.model_validate(read_stack_file(parse_stack(PROD)))
    policy = scaling_policy(
        model_class, load_catalog().models[model], load_catalog().classes[model_class], config.engines["small"]
    )
    assert policy.target_in_flight == target
    assert policy.target_tokens_per_s == (tokens_per_s and pytest.approx(tokens_per_s, rel=0.01))


def test_the_target_is_what_the_stack_says_where_it_does() -> None:
    config = ServingConfig.model_validate(read_stack_file(parse_stack(PROD)))
    catalog = load_catalog()
    model, fleet, engines = catalog.models["qwen2.5-7b-instruct"], catalog.classes["small"], config.engines["small"]
    regional = engines.model_copy(update={"scaling": {"target_in_flight": 5}})
    assert scaling_policy("small", model, fleet, regional).target_in_flight == 5
    assert scaling_limits(engines) == Limits(floor=26, max_base=60, max_overflow=24)


def test_what_scaling_asks_for_is_scraped_with_the_labels_it_asks_by(graphs: dict[str, Graph]) -> None:
    """`fleet` is a label of pods; a query by it finds nothing unless the scrape carries it over."""
    graph = graphs[PROD]
    monitors = {name: found.inputs["spec"] for name, found in named(graph, POD_MONITOR).items()}
    for workload, container in containers(workloads(graph).values()):
        role = "gateway" if workload.name == "gateway" else "engine"
        spec = monitors[role]
        assert spec["selector"]["matchLabels"].items() <= labels(workload).items()
        assert spec["namespaceSelector"]["matchNames"] == ["serving"]
        asked = {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]}
        assert asked & {port["name"] for port in container["ports"]}
    added = {rule["targetLabel"]: rule["sourceLabels"] for rule in monitors["engine"]["podMetricsEndpoints"][0]["relabelings"]}
    assert added["fleet"] == ["__meta_kubernetes_pod_label_flotilla_dev_fleet"]
    query = scaled(graph)["engine-small"]["triggers"][1]["metadata"]["query"].split(") * (")[0]
    asked_by = set(re.findall(r"(\w+)=~?\"", query))
    assert asked_by == {"model_name", "fleet", "model"}
    assert "model_name" not in added, "vLLM's own label must win"
    relabelled = monitors["gateway"]["podMetricsEndpoints"][0].get("relabelings", ())
    assert "model" not in {rule["targetLabel"] for rule in relabelled}, "the gateway's own label must win"
    fleets = re.search(r'fleet=~"([^"]+)"', query)
    assert fleets and {
        labels(workloads(graph)[name])["flotilla.dev/fleet"] for name in ("engine-small", "engine-small-overflow")
    } == set(fleets[1].split("|"))


def test_keda_asks_the_prometheus_that_the_chart_makes(graphs: dict[str, Graph]) -> None:
    chart = named(graphs[PROD], "kubernetes:helm.sh/v4:Chart")["kube-prometheus-stack"].inputs
    addresses = {spec["triggers"][0]["metadata"]["serverAddress"] for spec in scaled(graphs[PROD]).values()}
    assert addresses == {f"http://prometheus-operated.{chart['namespace']}.svc:9090"}
    assert chart["values"]["prometheus"]["prometheusSpec"]["podMonitorSelectorNilUsesHelmValues"] is False
