"""What each fleet of a model class is made of: where it may run, what it gives way to, what it is reached by."""

from __future__ import annotations

from typing import Any

import pytest
from workload_support import DEPLOYMENT, LOCAL, PROD, SERVICE, STAGING, labels, named, pod, workloads

from infra import config
from infra.embedded.graph import Graph
from infra.embedded.recorder import record
from infra.instances import INSTANCE_SHAPES
from infra.naming import parse_stack

CATALOG = config.load_catalog()


@pytest.fixture
def fleets(graphs: dict[str, Graph]) -> dict[str, Any]:
    """Deployments of production's home region by name."""
    return named(graphs[PROD], DEPLOYMENT)


def allowed(workload: Any) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """What a pod requires of its node, and the taints that it tolerates."""
    (term,) = pod(workload)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    required = {item["key"]: item["values"] for item in term["matchExpressions"]}
    return required, [(item["key"], item["value"]) for item in pod(workload)["tolerations"]]


@pytest.mark.parametrize(
    ("name", "gpu", "num_gpus", "capacities"),
    [
        ("engine-small", "a100-40g", 1, ["reserved", "on-demand"]),
        ("engine-small-overflow", "a100-40g", 1, ["spot"]),
        ("engine-small-batch", "a100-40g", 1, ["spot"]),
        ("engine-medium", "a100-40g", 2, ["reserved", "on-demand"]),
        ("engine-medium-overflow", "a100-40g", 2, ["spot"]),
        ("engine-medium-batch", "a100-40g", 2, ["spot"]),
        ("engine-large", "a100-80g", 8, ["reserved", "on-demand"]),
        ("engine-large-overflow", "a100-80g", 8, ["spot"]),
    ],
)
def test_a_fleet_runs_on_its_gpus_and_base_never_on_spot(
    name: str, gpu: str, num_gpus: int, capacities: list[str], fleets: dict[str, Any]
) -> None:
    required, tolerated = allowed(fleets[name])
    assert required == {"flotilla.dev/gpu": [gpu], "flotilla.dev/capacity": capacities}
    spot = [("flotilla.dev/capacity", "spot")] if capacities == ["spot"] else []
    assert tolerated == [("nvidia.com/gpu", "present"), *spot]
    (container,) = pod(fleets[name])["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(num_gpus)
    args = container["args"]
    assert args[args.index("--tensor-parallel-size") + 1] == str(num_gpus)


def test_there_are_these_fleets_and_no_other(fleets: dict[str, Any]) -> None:
    assert sorted(fleets) == [
        "engine-large", "engine-large-overflow",
        "engine-medium", "engine-medium-batch", "engine-medium-overflow",
        "engine-small", "engine-small-batch", "engine-small-overflow",
    ]  # fmt: skip


def test_reserved_nodes_are_filled_before_on_demand_ones(fleets: dict[str, Any]) -> None:
    (preferred,) = pod(fleets["engine-small"])["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["preference"]["matchExpressions"][0]["values"] == ["reserved"]


def test_a_request_may_land_on_base_or_overflow_and_never_on_batch(graphs: dict[str, Graph], fleets: dict[str, Any]) -> None:
    services = named(graphs[PROD], SERVICE)

    def behind(service: str) -> list[str]:
        wanted = services[service].inputs["spec"]["selector"].items()
        return sorted(name for name, fleet in fleets.items() if wanted <= labels(fleet).items())

    assert behind("engine-small") == ["engine-small", "engine-small-overflow"]
    assert behind("engine-small-batch") == ["engine-small-batch"]
    gateways = {"gateway", "gateway-admin"}
    assert all(service.inputs["spec"]["clusterIP"] == "None" for name, service in services.items() if name not in gateways)


def test_whoever_may_wait_gives_way(graphs: dict[str, Graph], fleets: dict[str, Any]) -> None:
    classes = {
        found.inputs["metadata"]["name"]: found.inputs
        for found in named(graphs[PROD], "kubernetes:scheduling.k8s.io/v1:PriorityClass").values()
    }
    order = [
        pod(workloads(graphs[PROD])[name])["priorityClassName"]
        for name in ("gateway", "engine-small", "engine-small-overflow", "engine-small-batch")
    ]
    values = [classes[name]["value"] for name in order]
    assert values == sorted(values, reverse=True) and len(set(values)) == 4
    assert [classes[name]["preemptionPolicy"] for name in order] == ["PreemptLowerPriority"] * 3 + ["Never"]


def test_a_drain_takes_one_base_engine_at_a_time_and_all_of_a_spot_node(graphs: dict[str, Graph]) -> None:
    budgets = {
        name: found.inputs["spec"]["maxUnavailable"]
        for name, found in named(graphs[PROD], "kubernetes:policy/v1:PodDisruptionBudget").items()
    }
    assert budgets["gateway"] == budgets["engine-small"] == budgets["engine-large"] == 1
    assert budgets["engine-small-overflow"] == budgets["engine-medium-batch"] == "100%"
    assert budgets.keys() == workloads(graphs[PROD]).keys()


def test_batch_begins_with_none_and_its_size_belongs_to_whoever_runs_batches(fleets: dict[str, Any]) -> None:
    batch = fleets["engine-small-batch"]
    assert batch.inputs["spec"]["replicas"] == 0 and batch.options.ignore_changes == ("spec.replicas",)
    assert batch.inputs["metadata"]["annotations"]["flotilla.dev/max-replicas"] == "8"


@pytest.mark.parametrize("stack", ["prod.serving.us-east-2", "prod.serving.us-west-2"])
def test_a_pool_can_carry_every_engine_that_may_land_on_it(stack: str, graphs: dict[str, Graph]) -> None:
    """Beside its GPUs, an engine takes CPUs, memory and disk: a node's engines must not ask for more than it has."""
    for workload in named(graphs[stack], DEPLOYMENT).values():
        (container,) = pod(workload)["containers"]
        requests = container["resources"]["requests"]
        kind = allowed(workload)[0]["flotilla.dev/gpu"][0]
        shape = next(shape for shape in INSTANCE_SHAPES.values() if shape.gpu == kind)
        per_node = shape.num_gpus // int(requests["nvidia.com/gpu"])
        assert per_node * int(requests["cpu"]) < shape.num_vcpus
        assert per_node * int(requests["memory"].removesuffix("Gi")) < shape.memory_gib
        assert per_node * int(requests["ephemeral-storage"].removesuffix("Gi")) < shape.nvme_gib


def test_the_launch_profile_is_within_reach_and_the_committed_load_needs_no_spot(graphs: dict[str, Graph]) -> None:
    """50/30/20 engines over the regions; the floors are what half of them, one region of two, is."""
    regions = CATALOG.environments["prod"].regions
    for model_class, fleet in CATALOG.classes.items():
        configs = [
            config.load(parse_stack(name), config.ServingConfig, config.read_stack_file(parse_stack(name))).config
            for name in (f"prod.serving.{region}" for region in regions)
        ]
        engines = [found.engines[model_class] for found in configs]
        assert sum(its.max_replicas for its in engines) >= fleet.launch_replicas
        assert sum(its.floor.replicas for its in engines) == fleet.launch_replicas
        assert {its.warm_spares for its in engines} == {1}


def test_staging_has_one_engine_on_one_small_node_and_local_none_on_a_gpu(graphs: dict[str, Graph]) -> None:
    (staging,) = named(graphs[STAGING], DEPLOYMENT).values()
    assert staging.inputs["spec"]["replicas"] == 1 and allowed(staging)[0]["flotilla.dev/gpu"] == ["l4-24g"]
    local = named(graphs[LOCAL], DEPLOYMENT)
    assert local.keys() == {"engine-small", "engine-medium", "engine-large"}
    for engine in local.values():
        # One that is scaled leaves its number to whoever scales it.
        assert engine.inputs["spec"].get("replicas", 1) == 1 and not {"affinity", "tolerations"} & pod(engine).keys()


def test_lora_slots_of_the_catalog_reach_the_engine(fleets: dict[str, Any]) -> None:
    def arguments(name: str) -> list[str]:
        return list(pod(fleets[name])["containers"][0]["args"])

    small = arguments("engine-small")
    assert "--enable-lora" in small and small[small.index("--max-loras") + 1] == "8"
    assert small[small.index("--max-lora-rank") + 1] == "32" and "--enable-lora" not in arguments("engine-large")


def test_images_come_from_the_regions_own_registry_by_digest(graphs: dict[str, Graph], fleets: dict[str, Any]) -> None:
    repository = graphs["prod.foundation"].outputs["regions"]["us-east-2"]["image_repository"]
    (container,) = pod(fleets["engine-small"])["containers"]
    assert container["image"].startswith(f"{repository}@sha256:")


def test_pulumi_waits_for_gateways_and_not_for_engines(graphs: dict[str, Graph]) -> None:
    """On a first day no release is there yet, and no engine can be ready."""
    skipped = {
        name: found.inputs["metadata"].get("annotations", {}).get("pulumi.com/skipAwait")
        for name, found in workloads(graphs[PROD]).items()
    }
    assert skipped.pop("gateway") is None and set(skipped.values()) == {"true"}


def test_a_larger_floor_changes_that_class_alone(graphs: dict[str, Graph]) -> None:
    override = {"engines": {"large": {"warm_spares": 0}}}
    changed = record([PROD], overrides={PROD: override})[PROD]
    before = {resource.urn: resource.inputs for resource in graphs[PROD].resources}
    after = {resource.urn: resource.inputs for resource in changed.resources}
    assert before.keys() == after.keys()
    changed_names = sorted(urn.split("$")[-1] for urn in before if before[urn] != after[urn])
    assert changed_names == [
        "kubernetes:apps/v1:StatefulSet::gateway",  # its leader decides by the floor, which is in its settings
        "kubernetes:core/v1:ConfigMap::gateway-settings",
        "kubernetes:keda.sh/v1alpha1:ScaledObject::engine-large",
    ]
