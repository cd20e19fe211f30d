"""What a person reads who wrote a stack file wrong: file, key, value, expectation; every fault at once; before any resource."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pulumi
import pytest
import yaml

from infra import config
from infra.embedded.graph import Graph
from infra.embedded.recorder import environment_stacks, record
from infra.errors import ConfigError
from infra.naming import StackName, parse_stack
from infra.stack_config import ClusterConfig, FoundationConfig, ServingConfig
from serving.errors import UserError

SERVING = "local.serving.us-east-2"
SERVING_FILE = f"stacks/Pulumi.{SERVING}.yaml"


def faults_of(stacks_dir: Path, *stacks: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        record(stacks or [SERVING], stacks_dir=stacks_dir)
    assert isinstance(caught.value, UserError) and caught.value.hint
    return caught.value.message.splitlines()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} no longer holds {old!r}"
    path.write_text(text.replace(old, new))


CATALOG_FAULTS = [
    ("code: use2", "code: USE2", "stacks/catalog.yaml: `regions.us-east-2.code` is 'USE2': string should match"),
    ("vpc_cidr: 10.32.0.0/16", "vpc_cidr: 10.16.0.0/16", "`regions.us-west-2.vpc_cidr` is 10.16.0.0/16, overlaps"),
    ("vpc_cidr: 10.32.0.0/16", "vpc_cidr: 10.32.0.0/20", "`regions.us-west-2.vpc_cidr` is 10.32.0.0/20, must be a /16"),
    ("code: usw2", "code: use2", "`regions.us-west-2.code` is 'use2', which us-east-2 has"),
    ("us-west-2c]", "us-east-2c]", "`regions.us-west-2.availability_zones` names 'us-east-2c', must lie in us-west-2"),
    ("home_region: us-east-2", "home_region: mars", "`environments.local.home_region` is 'mars', must be one of"),
    ("regions: [us-east-2, us-west-2]", "regions: [us-east-2, mars]", "`environments.local.regions` names 'mars'"),
    (
        "p4de.24xlarge: [us-west-2a,",
        "p4de.24xlarge: [us-east-2a,",
        "`regions.us-west-2.gpu_zones.p4de.24xlarge` names 'us-east-2a'",
    ),
    (
        "p4d.24xlarge: [us-west-2a",
        "p9.24xlarge: [us-west-2a",
        "`regions.us-west-2.gpu_zones.p9.24xlarge`: not a known GPU instance type",
    ),
    ("lora: {slots: 8, max_rank: 32}", "lora: {slots: 8, max_rank: 33}", "`models.qwen2.5-7b-instruct.lora.max_rank` is 33"),
    ("small: smollm2-135m-instruct", "small: gpt", "`environments.local.models.small` is 'gpt', must be one of"),
    (
        "small: qwen2.5-7b-instruct-twin",
        "small: qwen2.5-7b-instruct",
        "`environments.local.twins.small` is 'qwen2.5-7b-instruct', must be a model with `engine: twin`",
    ),
    ("small: smollm2-135m-instruct", "tiny: smollm2-135m-instruct", "`environments.local.models.tiny` is 'tiny'"),
    ("tensor_parallel_size: 2", "tensor_parallel_size: 1", "must equal `gpus.count` (2)"),
    ("context_window_tokens: 8192", "context_window_tokens: 12", "`models.smollm2-135m-instruct.context_window_tokens` is 12"),
    ("enforce_eager: true", "trust_remote_code: true", "`engine_args.trust_remote_code` is not yours to set"),
    ("{kind: a100-40g, count: 1}", "{kind: h100, count: 1}", "`models.qwen2.5-7b-instruct.gpus.kind` is 'h100'"),
    ('account_id: "000000000000"', "account_id: 0", "`environments.local.account_id` is 0"),
    ("name_prefix: flotilla", "name_prefx: flotilla", "`name_prefx` is not a known key. Did you mean `name_prefix`?"),
    ("regions:\n  us-east-2:", "regions:\n  us-west-2: {}\n  us-east-2:", "key 'us-west-2' stands here twice"),
    ("regions:\n", "regions: [\n", "stacks/catalog.yaml, line"),
]
TARIFF_FAULTS = [
    ("batch_discount_percent: 50", "batch_discount_percent: 500", "`tariffs.0.batch_discount_percent` is 500"),
    ("smollm2-135m-instruct:", "smollm3:", "'2026-11', has no price of `smollm2-135m-instruct`, which is served"),
    ("cached_input: 5000", "cached_input: 50000", "prices `smollm2-135m-instruct` cached input at 50000"),
    ("input: 20000,", "input: 0.02,", "`tariffs.0.models.smollm2-135m-instruct.input` is 0.02"),
    ("effective_from: 2026-11-01", "effective_from: soon", "`tariffs.0.effective_from` is 'soon'"),
]
LARGE = """\
    large:
      floor: {on_demand: 1}
      warm_spares: 0
      max_replicas: 1
      resources: {cpu: 100m, memory: 512Mi}
      model_cache_gib: 1
"""
STACK_FILE_FAULTS = [
    ("replicas: 1", "replicas: none", "`flotilla:gateway.replicas` is 'none': "),
    ("http: 8080", "http: 80", "`flotilla:gateway.host_ports.http` is 80: "),
    ("journal_gib", "jurnal_gib", "`flotilla:gateway.jurnal_gib` is not a known key. Did you mean `journal_gib`?"),
    ("gateway: host:.venv\n", "gateway: flotilla:latest\n", "`flotilla:images.gateway` is 'flotilla:latest'"),
    (
        "warm_spares: 0",
        "warm_spares: 2",
        "`flotilla:engines.small`: `max_replicas` is 1, must be at least floor and warm spares (3)",
    ),
    (
        "{on_demand: 1}",
        "{on_demand: 0}",
        "`flotilla:engines.small`: `floor` and `warm_spares` are 0, must be at least 1 together",
    ),
    ("max_replicas: 1", "max_replicas: 2", "`max_replicas` is 2, must be at most 1 with a claim as model cache"),
    (
        "  flotilla:cache:",
        "  flotilla:drills: {in_production: true}\n  flotilla:cache:",
        "`flotilla:drills`: `in_production` is true, and `templates` names none.",
    ),
    ("engine: valkey", "engine: memcached", "`flotilla:cache.engine` is 'memcached': input should be 'valkey' or 'redis'"),
    ("flotilla:cache:", "cache:", "`cache` is not a known key. Ours begin with `flotilla:`"),
    ("flotilla:cache:", "flotilla:cash:", "`flotilla:cash` is not a known key. Did you mean `cache`?"),
    (LARGE, "", "`flotilla:engines.large` is missing; the catalog says that local"),
    ("memory: 4Gi}", "memory: lots}", "`flotilla:engines.small.resources.memory` is 'lots'"),
    ("config:", "konfig: {}\nx:", "`flotilla:gateway` is missing"),
]


@pytest.mark.parametrize(("old", "new", "told"), CATALOG_FAULTS)
def test_a_wrong_value_in_the_catalog_is_told_by_key_and_value(stacks_dir: Path, old: str, new: str, told: str) -> None:
    edit(stacks_dir / "catalog.yaml", old, new)
    faults = faults_of(stacks_dir)
    assert any(told in fault for fault in faults), faults
    assert all(fault.startswith("stacks/catalog.yaml") for fault in faults)


@pytest.mark.parametrize(("old", "new", "told"), TARIFF_FAULTS)
def test_a_wrong_value_in_the_tariffs_is_told_by_key_and_value(stacks_dir: Path, old: str, new: str, told: str) -> None:
    edit(stacks_dir / "tariffs.yaml", old, new)
    faults = faults_of(stacks_dir)
    assert any(told in fault for fault in faults), faults
    assert all(fault.startswith("stacks/tariffs.yaml") for fault in faults)


@pytest.mark.parametrize(("old", "new", "told"), STACK_FILE_FAULTS)
def test_a_wrong_value_in_a_stack_file_is_told_by_key_and_value(stacks_dir: Path, old: str, new: str, told: str) -> None:
    edit(stacks_dir / f"Pulumi.{SERVING}.yaml", old, new)
    faults = faults_of(stacks_dir)
    assert any(fault.startswith(f"{SERVING_FILE}: ") and told in fault for fault in faults), faults


def test_every_fault_of_every_stack_is_told_at_once(stacks_dir: Path) -> None:
    edit(stacks_dir / "catalog.yaml", "context_window_tokens: 8192", "context_window_tokens: 12")
    edit(stacks_dir / "catalog.yaml", "committed_req_per_min: 7000", "committed_req_per_min: -1")
    edit(stacks_dir / f"Pulumi.{SERVING}.yaml", "    replicas: 1", "    replicas: 0.5")
    edit(stacks_dir / "Pulumi.local.cluster.us-east-2.yaml", "max_size: 9", "max_size: 2")
    edit(
        stacks_dir / "Pulumi.local.foundation.yaml",
        "flotilla:noncurrent_version_days: 1",
        "flotilla:noncurrent_version_days: soon",
    )
    faults = faults_of(stacks_dir, "local.foundation", "local.cluster.us-east-2", SERVING)
    for told in (
        "context_window_tokens",
        "committed_req_per_min",
        "gateway.replicas",
        "`min_size` is 3, must be at most `max_size` (2)",
        "noncurrent_version_days",
    ):
        assert sum(told in fault for fault in faults) == 1, (told, faults)
    assert len(faults) == 5


def test_a_model_that_cannot_fit_its_gpus_is_refused_with_the_arithmetic(stacks_dir: Path) -> None:
    # 70.55 G parameters × 2 bytes = 131.4 GiB; 32,768 tokens × 320 KiB = 10 GiB.
    # 2 × 80 × 0.9 = 144 GiB hold 141.4; 1 × 80 × 0.9 = 72 do not.
    path = stacks_dir / "catalog.yaml"
    catalog = yaml.safe_load(path.read_text())
    large = catalog["models"]["llama-3.3-70b-instruct"]
    for count, fits in ((2, True), (1, False)):
        large["gpus"]["count"] = large["tensor_parallel_size"] = count
        path.write_text(yaml.safe_dump(catalog))
        if fits:
            config.load_catalog(stacks_dir)
        else:
            (fault,) = faults_of(stacks_dir)
            assert "weights (131.4 GiB) and KV of one full context (10.0 GiB) need 141.4 GiB" in fault and "72.0" in fault


def test_what_cannot_be_read_is_one_clear_line(stacks_dir: Path) -> None:
    path = stacks_dir / f"Pulumi.{SERVING}.yaml"
    path.unlink()
    assert faults_of(stacks_dir) == [f"{SERVING_FILE}: no such file"]
    path.write_bytes(b"\xff\xfe\x00")
    assert faults_of(stacks_dir) == [f"{SERVING_FILE}: cannot be read: it is not UTF-8"]
    path.write_text("- a list")
    assert faults_of(stacks_dir) == [f"{SERVING_FILE}: holds a list, must hold a mapping of keys"]
    (stacks_dir / "catalog.yaml").unlink()
    with pytest.raises(ConfigError, match=r"stacks/catalog\.yaml: no such file"):
        environment_stacks("local", stacks_dir=stacks_dir)
    (stacks_dir / "catalog.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"stacks/catalog\.yaml: cannot be read: Is a directory"):
        environment_stacks("local", stacks_dir=stacks_dir)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("local", "no layer ''"),
        ("local.servng.us-east-2", "no layer 'servng'; layers are foundation, cluster, serving, edge"),
        ("local.serving", "layer serving needs a region"),
        ("local.edge.us-east-2", "layer edge spans regions and takes none"),
        ("Local.edge", "lower-case"),
        ("mars.edge", "no environment 'mars'; it has local, staging, prod"),
        ("local.serving.eu-west-1", "no such stack; local has"),
    ],
)
def test_a_wrong_stack_name_is_told_in_one_line(name: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        record([name])
    assert told in caught.value.message and "\n" not in caught.value.message and caught.value.hint


def test_stack_names_survive_a_round_trip() -> None:
    for name in environment_stacks("local"):
        assert str(parse_stack(name)) == name
        assert parse_stack(name).reference == f"organization/flotilla/{name}"


def test_the_engines_text_and_the_files_own_values_fit_alike() -> None:
    """The CLI hands a program every value as text; the embedded run hands over what YAML read."""
    stack = StackName("local", "serving", "us-east-2")
    values = config.read_stack_file(stack)
    as_read = config.load(stack, ServingConfig, values)
    assert config.load(stack, ServingConfig, {key: json.dumps(value) for key, value in values.items()}) == as_read
    scalars = config.read_stack_file(StackName("local", "foundation"))
    as_text = {key: str(value) for key, value in scalars.items()}
    loaded = [config.load(StackName("local", "foundation"), FoundationConfig, given).config for given in (scalars, as_text)]
    assert loaded[0] == loaded[1] and scalars != as_text


def test_what_runs_only_on_this_machine_is_refused_elsewhere(stacks_dir: Path) -> None:
    edit(stacks_dir / "catalog.yaml", "  local:\n", "  lab:\n")
    path = stacks_dir / "Pulumi.local.serving.us-east-2.yaml"
    path.rename(stacks_dir / "Pulumi.lab.serving.us-east-2.yaml")
    stack = StackName("lab", "serving", "us-east-2")
    with pytest.raises(ConfigError) as caught:
        config.load(stack, ServingConfig, config.read_stack_file(stack, stacks_dir), stacks_dir)
    keys = [fault.split("`")[1] for fault in caught.value.message.splitlines()]
    assert keys == [
        "flotilla:images.gateway",
        "flotilla:images.engine",
        "flotilla:gateway.host_ports",
        "flotilla:engines.large",
        "flotilla:engines.medium",
        "flotilla:load_balancer.deregistration_s",
    ]


PROD_CLUSTER, PROD_SERVING = "prod.cluster.us-east-2", "prod.serving.us-east-2"
STAGING_SERVING = "staging.serving.us-east-2"
CAPACITY_FAULTS = [
    # (file, old, new, the line that tells of it)
    (
        # 21 + 2 × 14 = 49 GPUs on 3 zones × 2 nodes × 8.
        PROD_SERVING, "floor: {reserved: 20, on_demand: 5}", "floor: {reserved: 21, on_demand: 5}",
        f"stacks/Pulumi.{PROD_SERVING}.yaml: `flotilla:engines`: floor.reserved of medium and small needs 49 × a100-40g reserved,"
        f" and there are 48. Lower it, or raise `reserved_pools` of stacks/Pulumi.{PROD_CLUSTER}.yaml.",
    ),
    (
        # (60 - 20) + 2 × (33 - 14) = 78 GPUs on 9 nodes × 8.
        PROD_SERVING, "max_replicas: 30", "max_replicas: 33",
        f"stacks/Pulumi.{PROD_SERVING}.yaml: `flotilla:engines`: max_replicas of medium and small needs 78 × a100-40g on-demand,"
        " and there are 72. Lower it, or raise `pools.on_demand`.",
    ),
    (
        # 8 × 5 = 40 GPUs on 4 nodes × 8.
        PROD_SERVING, "overflow_max_replicas: 4", "overflow_max_replicas: 5",
        f"stacks/Pulumi.{PROD_SERVING}.yaml: `flotilla:engines`: overflow_max_replicas and batch_max_replicas of large needs"
        " 40 × a100-80g spot, and there are 32. Lower it, or raise `pools.spot`.",
    ),
    (
        PROD_SERVING, "p4d: {instance_type: p4d.24xlarge, max_nodes: 9}", "p4d: {instance_type: p3.16xlarge, max_nodes: 9}",
        f"stacks/Pulumi.{PROD_SERVING}.yaml: `flotilla:pools.on_demand.p4d`: `instance_type` is 'p3.16xlarge', must be one of"
        " p4d.24xlarge, p4de.24xlarge, g6.2xlarge.",
    ),
    (
        PROD_CLUSTER, "zone: us-east-2b, nodes: 5", "zone: us-east-2c, nodes: 5",
        f"stacks/Pulumi.{PROD_CLUSTER}.yaml: `flotilla:reserved_pools.p4de-b.zone` is 'us-east-2c', must be one of us-east-2a,"
        " us-east-2b: the catalog's `regions.us-east-2.gpu_zones` offers p4de.24xlarge there alone.",
    ),
    (
        "catalog", "      p4de.24xlarge: [us-east-2a, us-east-2b]\n", "",
        f"stacks/Pulumi.{PROD_SERVING}.yaml: `flotilla:pools.spot.p4de.instance_type` is p4de.24xlarge, which us-east-2 does not"
        " offer. It has p4d.24xlarge, g6.2xlarge; if AWS says otherwise, add it to `regions.us-east-2.gpu_zones`.",
    ),
    (
        PROD_CLUSTER, "flotilla:cluster_access: in-vpc-runner", "flotilla:cluster_access: [10.0.0.0/33]",
        f"stacks/Pulumi.{PROD_CLUSTER}.yaml: `flotilla:cluster_access",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("stack", "old", "new", "told"), CAPACITY_FAULTS)
def test_what_no_node_could_carry_is_refused_with_the_arithmetic(
    stacks_dir: Path, stack: str, old: str, new: str, told: str
) -> None:
    edit(stacks_dir / ("catalog.yaml" if stack == "catalog" else f"Pulumi.{stack}.yaml"), old, new)
    faults = faults_of(stacks_dir, PROD_CLUSTER, PROD_SERVING)
    assert any(fault.startswith(told) for fault in faults), faults


@pytest.mark.parametrize(
    ("version", "day", "is_refused"),
    [
        # 1.35 is supported until 27 March 2027; people get 60 days.
        ("1.35", date(2027, 1, 26), False),
        ("1.35", date(2027, 1, 27), True),
        ("1.35", date(2027, 6, 1), True),
        ("1.36", date(2027, 1, 27), False),
    ],
)
def test_a_cluster_near_the_end_of_its_support_is_refused(
    stacks_dir: Path, monkeypatch: pytest.MonkeyPatch, version: str, day: date, is_refused: bool
) -> None:
    monkeypatch.setattr(config, "today", lambda: day)
    stack = parse_stack(PROD_CLUSTER)
    values = {**config.read_stack_file(stack), "kubernetes_version": version}
    if not is_refused:
        config.load(stack, ClusterConfig, values)
        return
    with pytest.raises(ConfigError, match=r"`flotilla:kubernetes_version` is 1\.35, which EKS supports until 27 March 2027"):
        config.load(stack, ClusterConfig, values)


def test_the_end_of_support_stops_nobodys_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "today", lambda: date(2035, 1, 1))
    stack = parse_stack("local.cluster.us-east-2")
    config.load(stack, ClusterConfig, config.read_stack_file(stack))


def test_no_stack_lets_the_engine_make_default_providers(graphs: dict[str, Graph]) -> None:
    for stack in graphs:
        document = yaml.safe_load((config.STACKS_DIR / f"Pulumi.{stack}.yaml").read_text())
        assert document["config"]["pulumi:disable-default-providers"] == ["aws", "kubernetes"], stack


ONE_LINE = {
    # What is wrong: (stack, file, old, new, what the one line says).
    "a wrong stack name": ("prod.servng.us-east-2", "", "", "", "no layer 'servng'"),
    "an unknown region": ("prod.cluster.mars-1", "", "", "", "no such stack; prod has"),
    "a missing key": (
        PROD_CLUSTER,
        f"Pulumi.{PROD_CLUSTER}",
        "  flotilla:admin_role_arns",
        "  #",
        "`flotilla:admin_role_arns` is missing. Add it.",
    ),
    "a floor over reserved capacity": (
        PROD_SERVING,
        f"Pulumi.{PROD_SERVING}",
        "floor: {reserved: 20, on_demand: 5}",
        "floor: {reserved: 21, on_demand: 5}",
        "floor.reserved of medium and small needs 49 × a100-40g reserved, and there are 48",
    ),
    "an instance type that the region does not offer": (
        STAGING_SERVING,
        "catalog",
        "      g6.2xlarge: [us-east-2a, us-east-2b, us-east-2c]\n",
        "",
        "is g6.2xlarge, which us-east-2 does not offer",
    ),
    "CIDRs of regions that overlap": (
        PROD_CLUSTER,
        "catalog",
        "vpc_cidr: 10.32.0.0/16",
        "vpc_cidr: 10.16.0.0/16",
        "`regions.us-west-2.vpc_cidr`",
    ),
}


@pytest.mark.parametrize("wrong", ONE_LINE)
def test_each_fault_is_one_clear_line_before_any_resource(wrong: str, stacks_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, file, old, new, told = ONE_LINE[wrong]
    if file:
        edit(stacks_dir / f"{file}.yaml", old, new)

    def refuse(self: pulumi.Resource, kind: str, name: str, *_: object, **__: object) -> None:
        raise AssertionError(f"{kind} {name} was declared")

    monkeypatch.setattr(pulumi.Resource, "__init__", refuse)
    (fault,) = faults_of(stacks_dir, stack)
    assert told in fault
    with pytest.raises(AssertionError, match="was declared"):
        record(["local.foundation"])
