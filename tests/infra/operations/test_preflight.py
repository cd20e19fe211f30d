"""Preflight: each thing that would stop a deployment is one finding with a remedy, and a question without an answer is unsure."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from operations_support import MOTO_ACCOUNT, NOW, Account, reservation
from typer.testing import CliRunner

from infra import config
from infra.naming import StackName
from infra.operations import commands
from infra.operations.findings import Finding, Severity, is_clear
from infra.operations.needs import ELASTIC_IPS, ON_DEMAND_P, SPOT_P, instance_types, quota_needs
from infra.operations.preflight import preflight
from infra.stack_config import ClusterConfig, ServingConfig
from serving.errors import UserError

CLUSTER, SERVING = "prod.cluster.us-east-2", "prod.serving.us-east-2"
Clients = Callable[[str, str], Any]


def standing_in_the_way(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [
        (finding.check, finding.subject, finding.severity.value) for finding in findings if finding.severity is not Severity.OK
    ]


@pytest.mark.parametrize("stack", [CLUSTER, SERVING, "prod.foundation", "prod.edge"])
def test_where_all_is_there_nothing_stands_in_the_way(stack: str, account: Account, clients: Clients, stacks_dir: Path) -> None:
    findings = preflight(stack, clients, NOW, stacks_dir)
    assert standing_in_the_way(findings) == [] and is_clear(findings)
    checks = {finding.check for finding in findings}
    assert checks == {
        CLUSTER: {"account", "quota", "offering", "reservation", "version", "addon", "node image"},
        SERVING: {"account", "quota", "offering", "image"},
    }.get(stack, {"account"})


def test_a_region_needs_what_its_pools_can_grow_to() -> None:
    def load(layer: Any, model: Any) -> Any:
        stack = StackName("prod", layer, "us-east-2")
        return config.load(stack, model, config.read_stack_file(stack)).config

    region = config.load_catalog().regions["us-east-2"]
    cluster, serving = load("cluster", ClusterConfig), load("serving", ServingConfig)
    amounts = {need.quota: need.amount for need in quota_needs(region, cluster, serving)}
    # Reserved 3 × 2 + 2 × 5 = 16 nodes, on demand 9 + 10 = 19, spot 7 + 4 = 11; each has 96 vCPUs.
    assert (amounts[ON_DEMAND_P], amounts[SPOT_P]) == ((16 + 19) * 96, 11 * 96)
    assert amounts[ELASTIC_IPS] == 3
    one_way_out = quota_needs(region, cluster.model_copy(update={"egress": "one-zone"}), serving)
    assert {need.quota: need.amount for need in one_way_out}[ELASTIC_IPS] == 1
    assert instance_types(region, cluster, serving)["p4de.24xlarge"] == ("us-east-2a", "us-east-2b")


def _too_small_a_quota(account: Account) -> None:
    account.quotas["L-417A185B"] = 3359


def _no_addresses(account: Account) -> None:
    account.quotas["L-0263D0A3"] = 2


def _type_not_in_a_zone(account: Account) -> None:
    account.zones = {**account.zones, "p4de.24xlarge": "a"}


def _reservation_gone(account: Account) -> None:
    account.reservations.pop(0)


def _reservation_differs(**changes: Any) -> Callable[[Account], None]:
    def change(account: Account) -> None:
        account.reservations[0] = reservation("cr-010d0000000000001", "p4d.24xlarge", "us-east-2a", 2) | changes

    return change


def _support_ends(days: int) -> Callable[[Account], None]:
    def change(account: Account) -> None:
        account.supported_until = NOW + timedelta(days=days)

    return change


def _withdrawn(what: str) -> Callable[[Account], None]:
    def change(account: Account) -> None:
        account.withdrawn = {what}

    return change


CASES: list[tuple[Callable[[Account], None], tuple[str, str, str], str]] = [
    # 16 + 19 nodes of 96 vCPUs are 3360.
    (_too_small_a_quota, ("quota", ON_DEMAND_P.name, "blocked"), "--quota-code L-417A185B --desired-value 3360"),
    (_no_addresses, ("quota", "EC2-VPC Elastic IPs", "blocked"), "--desired-value 3"),
    (_type_not_in_a_zone, ("offering", "p4de.24xlarge", "blocked"), "regions.us-east-2.gpu_zones"),
    (_reservation_gone, ("reservation", "p4d-a", "blocked"), "buy 2 × p4d.24xlarge in us-east-2a"),
    (_reservation_differs(State="expired"), ("reservation", "p4d-a", "blocked"), "reserved_pools.p4d-a"),
    (_reservation_differs(InstanceType="p4de.24xlarge"), ("reservation", "p4d-a", "blocked"), "reserved_pools.p4d-a"),
    (_reservation_differs(AvailabilityZone="us-east-2b"), ("reservation", "p4d-a", "blocked"), "reserved_pools.p4d-a"),
    (_reservation_differs(TotalInstanceCount=1), ("reservation", "p4d-a", "blocked"), "reserved_pools.p4d-a"),
    (_reservation_differs(EndDate=NOW + timedelta(days=13)), ("reservation", "p4d-a", "warning"), "buy the next one"),
    (_support_ends(59), ("version", "Kubernetes 1.36", "warning"), "upgrade"),
    (_support_ends(-1), ("version", "Kubernetes 1.36", "blocked"), "upgrade"),
    (_withdrawn("coredns"), ("addon", "coredns", "blocked"), "`ADDONS` of infra/versions.py"),
    (_withdrawn("nvidia"), ("node image", "nvidia", "blocked"), "`NODE_AMIS` of infra/versions.py"),
]


@pytest.mark.parametrize(("change", "expected", "remedy"), CASES)
def test_what_would_stop_a_cluster_is_one_finding_with_its_remedy(
    change: Callable[[Account], None],
    expected: tuple[str, str, str],
    remedy: str,
    account: Account,
    clients: Clients,
    stacks_dir: Path,
) -> None:
    change(account)
    findings = preflight(CLUSTER, clients, NOW, stacks_dir)
    assert standing_in_the_way(findings) == [expected]
    assert remedy in next(finding.remedy for finding in findings if finding.severity is not Severity.OK)


@pytest.mark.parametrize("days", [60, 400])
def test_a_version_with_time_left_is_no_finding(days: int, account: Account, clients: Clients, stacks_dir: Path) -> None:
    account.supported_until = NOW + timedelta(days=days)
    assert standing_in_the_way(preflight(CLUSTER, clients, NOW, stacks_dir)) == []


def test_an_image_that_nobody_pinned_stops_serving(account: Account, clients: Clients, stacks_dir: Path) -> None:
    path = stacks_dir / f"Pulumi.{SERVING}.yaml"
    path.write_text(path.read_text().replace(f"engine: sha256:{64 * '1'}", f"engine: sha256:{64 * '0'}"))
    assert standing_in_the_way(preflight(SERVING, clients, NOW, stacks_dir)) == [("image", "engine", "blocked")]


@pytest.mark.parametrize(
    ("operation", "unsure"),
    [
        ("GetServiceQuota", {"quota"}),
        ("DescribeInstanceTypeOfferings", {"offering"}),
        ("DescribeCapacityReservations", {"reservation"}),
        ("DescribeClusterVersions", {"version"}),
        ("DescribeAddonVersions", {"addon"}),
        ("GetParameters", {"node image"}),
        ("GetCallerIdentity", {"account"}),
    ],
)
def test_a_question_that_nobody_answers_is_unsure_and_no_good_news(
    operation: str, unsure: set[str], account: Account, clients: Clients, stacks_dir: Path
) -> None:
    account.refused = {operation}
    findings = preflight(CLUSTER, clients, NOW, stacks_dir)
    assert {finding.check for finding in findings if finding.severity is Severity.UNSURE} == unsure
    assert all(f"{operation}: AccessDenied" in finding.message for finding in findings if finding.severity is Severity.UNSURE)
    assert not is_clear(findings)


def test_credentials_of_another_account_are_the_only_finding_and_nothing_more_is_asked(
    account: Account, clients: Clients
) -> None:
    (finding,) = preflight(CLUSTER, clients, NOW)
    assert finding.severity is Severity.BLOCKED and MOTO_ACCOUNT in finding.message and "222222222222" in finding.message
    assert account.called == ["GetCallerIdentity"]


def test_without_credentials_or_on_this_machine_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, clients: Clients, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match="Unable to locate credentials"):
        preflight(CLUSTER, clients, NOW)
    with pytest.raises(UserError, match="local is this machine"):
        preflight("local.cluster.us-east-2", clients, NOW)


def test_the_command_prints_findings_and_exits_1_where_something_is_in_the_way(
    monkeypatch: pytest.MonkeyPatch, account: Account, stacks_dir: Path
) -> None:
    app = typer.Typer()
    commands.register(app)
    wrong = CliRunner().invoke(app, ["preflight", CLUSTER, "--json"])
    assert wrong.exit_code == 1
    answer = json.loads(wrong.stdout)
    assert answer["is_clear"] is False and answer["findings"][0]["severity"] == "blocked"
    text = CliRunner().invoke(app, ["preflight", CLUSTER])
    assert text.stdout.startswith("BLOCKED  account prod:") and "→ take credentials of that account" in text.stdout


def test_days_are_counted_from_now_not_from_today(account: Account, clients: Clients, stacks_dir: Path) -> None:
    late: datetime = account.supported_until + timedelta(days=1)
    assert ("version", "Kubernetes 1.36", "blocked") in standing_in_the_way(preflight(CLUSTER, clients, late, stacks_dir))
