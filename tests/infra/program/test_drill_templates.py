"""AWS FIS's experiment for a drill: off unless asked for, aimed at one zone, stopped by an alarm, narrow in rights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from workload_support import PROD

from infra import config
from infra.embedded.graph import Graph
from infra.embedded.recorder import record
from infra.guardrails.graphs import estate_of
from policies.guardrails.rule import judge
from policies.guardrails.rules import RULES

TEMPLATE = "aws:fis/experimentTemplate:ExperimentTemplate"
TODAY = date(2026, 11, 24)


@pytest.fixture(scope="module")
def drilled() -> dict[str, Graph]:
    return record([PROD], overrides={PROD: {"drills": True}})


def test_no_stack_keeps_an_experiment_unless_its_file_says_so(graphs: dict[str, Graph]) -> None:
    assert not [stack for stack, graph in graphs.items() if list(graph.of_type(TEMPLATE))]


def test_the_experiment_cuts_off_one_zone_of_its_own_network_for_ten_minutes(drilled: dict[str, Graph]) -> None:
    (template,) = drilled[PROD].of_type(TEMPLATE)
    (target,), (action,) = template.inputs["targets"], template.inputs["actions"]
    assert (target["resourceType"], target["selectionMode"]) == ("aws:ec2:subnet", "ALL")
    vpc_id = drilled["prod.cluster.us-east-2"].outputs["vpc_id"]
    assert {found["path"]: found["values"] for found in target["filters"]} == {
        "VpcId": [vpc_id],
        "AvailabilityZone": ["us-east-2a"],
    }
    assert {tag["key"]: tag["value"] for tag in target["resourceTags"]} == {"project": "flotilla", "environment": "prod"}
    assert action["actionId"] == "aws:network:disrupt-connectivity"
    assert action["target"] == {"key": "Subnets", "value": target["name"]}
    assert {given["key"]: given["value"] for given in action["parameters"]} == {"duration": "PT10M", "scope": "all"}
    assert template.inputs["experimentOptions"]["emptyTargetResolutionMode"] == "fail"


def test_it_ends_when_no_gateway_of_the_region_is_healthy(drilled: dict[str, Graph]) -> None:
    (template,) = drilled[PROD].of_type(TEMPLATE)
    (alarm,) = drilled[PROD].of_type("aws:cloudwatch/metricAlarm:MetricAlarm")
    (targets,) = drilled[PROD].of_type("aws:lb/targetGroup:TargetGroup")
    assert template.inputs["stopConditions"] == [{"source": "aws:cloudwatch:alarm", "value": alarm.outputs["arn"]}]
    assert alarm.inputs["dimensions"]["TargetGroup"] == targets.outputs["arnSuffix"]
    assert (alarm.inputs["metricName"], alarm.inputs["treatMissingData"]) == ("HealthyHostCount", "breaching")


def test_its_role_is_fis_alone_and_changes_no_acl_but_those_that_fis_made(drilled: dict[str, Graph]) -> None:
    (role,) = (found for found in drilled[PROD].of_type("aws:iam/role:Role") if "az-loss" in found.name)
    (policy,) = (found for found in drilled[PROD].of_type("aws:iam/rolePolicy:RolePolicy") if "az-loss" in found.name)
    (trust,) = json.loads(role.inputs["assumeRolePolicy"])["Statement"]
    assert trust["Principal"] == {"Service": "fis.amazonaws.com"} and "aws:SourceArn" in trust["Condition"]["ArnLike"]
    granted = {statement["Sid"]: statement for statement in json.loads(policy.inputs["policy"])["Statement"]}
    assert granted["ChangeAcls"]["Condition"] == {"StringEquals": {"aws:ResourceTag/managedByFIS": "true"}}
    assert granted["PutAclsOn"]["Condition"]["StringEquals"]["aws:ResourceTag/environment"] == "prod"


def _forever(inputs: dict[str, Any]) -> None:
    inputs["actions"][0]["parameters"] = [{"key": "scope", "value": "all"}]


@pytest.mark.parametrize(("mistake", "message"), [
    (lambda inputs: inputs.update(stopConditions=[{"source": "none"}]), "stops at no alarm"),
    (lambda inputs: inputs.pop("logConfiguration"), "leaves no log"),
    (lambda inputs: inputs["actions"][0].update(parameters=[{"key": "duration", "value": "PT31M"}]), "for PT31M"),
    (lambda inputs: inputs["actions"][0].update(parameters=[{"key": "duration", "value": "PT1H"}]), "for PT1H"),
    (_forever, "as long as it likes"),
])  # fmt: skip
def test_guardrails_refuse_an_experiment_that_nothing_stops(
    drilled: dict[str, Graph], mistake: Callable[[dict[str, Any]], object], message: str
) -> None:
    graph, catalog = drilled[PROD], config.load_catalog()
    assert not judge(estate_of(graph, catalog), RULES, (), TODAY).findings
    (template,) = graph.of_type(TEMPLATE)
    inputs = copy.deepcopy(dict(template.inputs))
    mistake(inputs)
    resources = tuple(replace(found, inputs=inputs) if found is template else found for found in graph.resources)
    (finding,) = judge(estate_of(replace(graph, resources=resources), catalog), RULES, (), TODAY).findings
    assert finding.rule == "experiments-stop" and message in finding.message
