"""The edge: who answers `api.<domain>`, what takes a region out, and that nothing of it needs a control plane."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_new_region import NEW, add_region

from infra.config import load_catalog
from infra.embedded.edge_checks import checks_of
from infra.embedded.graph import Graph, Resource, tokens_in
from infra.embedded.recorder import record
from infra.errors import ConfigError
from infra.naming import CONTROL_PATH, REGION_HEALTH_PATH
from policies.failover import rotation

REGIONS = ("us-east-2", "us-west-2")
PROD, ONE_REGION = "prod.edge", "staging.edge"
CODES = {name: region.code for name, region in load_catalog().regions.items()}
CHECK, RECORD = "aws:route53/healthCheck:HealthCheck", "aws:route53/record:Record"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Graph]:
    return record([PROD, ONE_REGION])


@pytest.fixture(scope="module")
def edge(recorded: dict[str, Graph]) -> Graph:
    return recorded[PROD]


def one(graph: Graph, resource_type: str, name: str) -> Resource:
    (found,) = (resource for resource in graph.of_type(resource_type) if resource.name == name)
    return found


def names_in(value: Any) -> set[str]:
    """Logical names of the resources whose computed values are in `value`."""
    return {urn.rpartition("::")[2] for urn, _ in tokens_in(value)}


def is_in_rotation(graph: Graph, region: str, answers: Mapping[tuple[str, str], bool]) -> bool:
    """What Route 53 makes of the declared checks: `answers` says which (host, path) answer 2xx; no entry is no answer."""
    health = one(graph, CHECK, f"records-health-{region}").inputs
    children = [one(graph, CHECK, name).inputs for name in names_in(health["childHealthchecks"])]
    healthy = [
        answers.get((child["fqdn"], child["resourcePath"]), False) != child["invertHealthcheck"]
        for child in children
        if child["type"] == "HTTPS"
    ]
    return sum(healthy) >= health["childHealthThreshold"]


def well(region: str) -> tuple[str, str]:
    return (f"{CODES[region]}.flotilla.example.com", REGION_HEALTH_PATH)


def evacuated(region: str, by: str) -> tuple[str, str]:
    return (f"{CODES[by]}.flotilla.example.com", f"{CONTROL_PATH}/{region}")


EAST, WEST = REGIONS


@pytest.mark.parametrize(
    ("answers", "in_rotation"),
    [
        pytest.param({well(EAST), well(WEST)}, {EAST, WEST}, id="both are well"),
        pytest.param({well(WEST)}, {WEST}, id="one fails its own check"),
        pytest.param({well(EAST), well(WEST), evacuated(EAST, by=WEST)}, {WEST}, id="one is well, and evacuated all the same"),
        pytest.param({well(WEST), evacuated(EAST, by=WEST)}, {WEST}, id="one is lost, and evacuated"),
        pytest.param({well(EAST), evacuated(WEST, by=EAST)}, {EAST}, id="the other way round"),
        pytest.param({well(EAST), well(WEST), evacuated(WEST, by=WEST)}, {EAST, WEST}, id="nobody evacuates itself"),
        pytest.param({well(EAST)}, {EAST}, id="a survivor that cannot be read evacuates nobody"),
        pytest.param(set(), set(), id="none is well: Route 53 then answers with all"),
    ],
)
def test_a_region_gets_traffic_while_it_is_well_and_no_other_says_that_it_is_evacuated(
    edge: Graph, answers: set[tuple[str, str]], in_rotation: set[str]
) -> None:
    given = dict.fromkeys(answers, True)
    assert {region for region in REGIONS if is_in_rotation(edge, region, given)} == in_rotation
    region_of = {f"{code}.flotilla.example.com": region for region, code in CODES.items()}
    here = {(region_of[host], path): True for host, path in answers}
    checks = checks_of(edge)
    assert {region for region in REGIONS if rotation.is_in_rotation(checks[region], here)} == in_rotation, "one machine's edge"


def test_checks_come_in_one_order_though_the_program_names_them_in_none(edge: Graph) -> None:
    for checks in checks_of(edge).values():
        assert list(checks) == sorted(checks, key=lambda check: (check.asked, check.path)), "another order would roll the edge"


def test_a_lone_region_depends_on_its_own_check_alone(recorded: dict[str, Graph]) -> None:
    health = one(recorded[ONE_REGION], CHECK, "records-health-us-east-2").inputs
    assert health["childHealthThreshold"] == 1 and names_in(health["childHealthchecks"]) == {"records-check-us-east-2"}


@pytest.mark.parametrize("region", REGIONS)
def test_the_api_is_answered_by_the_nearest_region_in_rotation(edge: Graph, region: str) -> None:
    answer = one(edge, RECORD, f"records-api-{region}").inputs
    assert answer["name"] == edge.outputs["api_domain"] == "api.flotilla.example.com"
    assert answer["latencyRoutingPolicies"] == [{"region": region}] and answer["setIdentifier"] == region
    assert names_in(answer["healthCheckId"]) == {f"records-health-{region}"}
    assert answer["records"] == [edge.outputs["regional_domains"][region]]
    assert answer["type"] == "CNAME" and answer["ttl"] == 30, "an alias to a load balancer would live for 60 s"


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_has_a_name_that_answers_whatever_its_health(edge: Graph, region: str) -> None:
    """A health check that asked a name which health checks take away would never see the region come back."""
    own = one(edge, RECORD, f"records-region-{region}").inputs
    (alias,) = own["aliases"]
    assert own["name"] == edge.outputs["regional_domains"][region]
    assert alias["evaluateTargetHealth"] is False and not own.get("healthCheckId")
    assert one(edge, CHECK, f"records-check-{region}").inputs["fqdn"] == own["name"]


@pytest.mark.parametrize("region", REGIONS)
def test_tls_ends_at_each_load_balancer_with_a_certificate_of_its_region(edge: Graph, region: str) -> None:
    certificate = one(edge, "aws:acm/certificate:Certificate", f"certificates-certificate-{region}")
    assert certificate.inputs["domainName"] == "*.flotilla.example.com" and certificate.options.provider.endswith(f"aws-{region}")
    listener = one(edge, "aws:lb/listener:Listener", f"listener-{region}-https")
    assert (listener.inputs["port"], listener.inputs["protocol"]) == (443, "HTTPS")
    assert listener.inputs["sslPolicy"].startswith("ELBSecurityPolicy-TLS13-1-2-Res")
    assert names_in(listener.inputs["certificateArn"]) == {certificate.name}
    issued = one(edge, "aws:acm/certificateValidation:CertificateValidation", f"certificates-issued-{region}")
    assert issued.urn in listener.options.depends_on, "a load balancer refuses a certificate that is not issued yet"
    assert listener.options.provider.endswith(f"aws-{region}")


def test_one_record_proves_every_regions_certificate(edge: Graph) -> None:
    """ACM asks for the same record in each region; declared twice, the second would fail."""
    records = [record for record in edge.of_type(RECORD) if "Certificates" in record.parent]
    assert [record.name for record in records] == ["certificates-validation"]
    for issued in edge.of_type("aws:acm/certificateValidation:CertificateValidation"):
        assert names_in(issued.inputs["validationRecordFqdns"]) == {"certificates-validation"}


@pytest.mark.parametrize("region", REGIONS)
def test_floods_and_known_attacks_are_turned_away_and_prompts_are_not(edge: Graph, region: str) -> None:
    acl = one(edge, "aws:wafv2/webAcl:WebAcl", f"firewall-{region}-acl").inputs
    assert acl["scope"] == "REGIONAL" and acl["defaultAction"] == {"allow": {}}
    statements = {rule["name"]: rule["statement"] for rule in acl["rules"]}
    assert statements["flood-from-one-address"]["rateBasedStatement"]["limit"] == 100_000
    bad_inputs = statements["AWSManagedRulesKnownBadInputsRuleSet"]["managedRuleGroupStatement"]
    counted = {override["name"] for override in bad_inputs["ruleActionOverrides"] if override["actionToUse"] == {"count": {}}}
    assert counted == {"Log4JRCE_BODY", "JavaDeserializationRCE_BODY", "ReactJSRCE_BODY"}, "a prompt may be about an attack"
    assert "AWSManagedRulesCommonRuleSet" not in statements, "it refuses bodies above 8 KB"
    shown = [acl["visibilityConfig"], *(rule["visibilityConfig"] for rule in acl["rules"])]
    assert not any(it["sampledRequestsEnabled"] for it in shown), "samples hold the keys in headers"
    association = one(edge, "aws:wafv2/webAclAssociation:WebAclAssociation", f"firewall-{region}-association")
    assert names_in(association.inputs["webAclArn"]) == {f"firewall-{region}-acl"}


def test_the_firewall_is_a_choice() -> None:
    graph = record([PROD], overrides={PROD: {"firewall": "none"}})[PROD]
    assert not [resource for resource in graph.resources if "wafv2" in resource.type]


def test_fixed_addresses_are_a_choice_beside_the_name_and_never_before_it(edge: Graph) -> None:
    """Global Accelerator cannot read an evacuation control: what is behind it alone could not be evacuated."""
    assert edge.outputs["further_domains"] == [] and not [it for it in edge.resources if "globalaccelerator" in it.type]
    chosen = record([PROD], overrides={PROD: {"accelerator": "beside"}})[PROD]
    assert chosen.outputs["further_domains"] == ["static.flotilla.example.com"]
    assert {it.urn: it for it in edge.resources}.items() <= {it.urn: it for it in chosen.resources}.items()
    groups = list(chosen.of_type("aws:globalaccelerator/endpointGroup:EndpointGroup"))
    assert {group.inputs["endpointGroupRegion"] for group in groups} == set(REGIONS)
    assert all(group.inputs["endpointConfigurations"][0]["clientIpPreservationEnabled"] for group in groups)
    assert one(chosen, "aws:globalaccelerator/accelerator:Accelerator", "accelerator-accelerator").options.protect


def test_a_region_switch_plan_is_a_choice_whose_checks_count_beside_ours() -> None:
    ids = {EAST: "11111111-1111-1111-1111-111111111111", WEST: "22222222-2222-2222-2222-222222222222"}
    chosen = record([PROD], overrides={PROD: {"region_switch": {"health_check_ids": ids}}})[PROD]
    plan = one(chosen, "aws:arcregionswitch/plan:Plan", "region-switch-plan").inputs
    assert (plan["recoveryApproach"], plan["regions"]) == ("activeActive", list(REGIONS))
    assert [workflow["workflowTargetAction"] for workflow in plan["workflows"]] == ["activate", "deactivate"]
    for workflow in plan["workflows"]:
        (step,) = workflow["steps"]
        (switched,) = step["route53HealthCheckConfigs"]
        assert switched["recordName"] == "api.flotilla.example.com"
        identifiers = {record_set["region"]: record_set["recordSetIdentifier"] for record_set in switched["recordSets"]}
        assert identifiers == {region: one(chosen, RECORD, f"records-api-{region}").inputs["setIdentifier"] for region in REGIONS}
    for region, check_id in ids.items():
        health = one(chosen, CHECK, f"records-health-{region}").inputs
        assert check_id in health["childHealthchecks"] and health["childHealthThreshold"] == len(health["childHealthchecks"]) == 3
    role = one(chosen, "aws:iam/role:Role", "region-switch-role")
    assert "boundary-policy#arn" in role.inputs["permissionsBoundary"]


def test_a_check_for_an_unknown_region_is_refused_before_any_resource() -> None:
    with pytest.raises(ConfigError) as raised:
        record([PROD], overrides={PROD: {"region_switch": {"health_check_ids": {"us-east-1": "11111111"}}}})
    assert raised.value.message == (
        "stacks/Pulumi.prod.edge.yaml: `flotilla:region_switch.health_check_ids` names 'us-east-1', must be one of us-east-2,"
        " us-west-2. Correct it."
    )


def test_a_third_region_is_watched_by_both_others(stacks_dir: Path) -> None:
    """Whoever survives must be able to take out either of the others."""
    add_region(stacks_dir)
    graph = record([PROD], stacks_dir=stacks_dir)[PROD]
    health = one(graph, CHECK, f"records-health-{NEW}").inputs
    assert health["childHealthThreshold"] == 3
    assert names_in(health["childHealthchecks"]) == {
        f"records-check-{NEW}",
        f"records-control-{NEW}-at-us-east-2",
        f"records-control-{NEW}-at-us-west-2",
    }
