"""AWS FIS's experiments for drills: off unless asked for, aimed at what is ours, stopped by an alarm, narrow in rights."""

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
from infra.embedded.graph import Graph, Resource
from infra.embedded.recorder import record
from infra.guardrails.graphs import estate_of
from infra.stack_config.serving import Drill
from policies.guardrails.rule import judge
from policies.guardrails.rules import RULES

TEMPLATE = "aws:fis/experimentTemplate:ExperimentTemplate"
TODAY = date(2026, 11, 24)


@pytest.fixture(scope="module")
def drilled() -> dict[str, Graph]:
    return record([PROD], overrides={PROD: {"drills": {"templates": [*Drill], "in_production": True}}})


def template_of(graph: Graph, drill: str) -> Resource:
    """The one template of a drill."""
    (found,) = (its for its in graph.of_type(TEMPLATE) if its.inputs["tags"]["Name"].endswith(f"-{drill}"))
    return found


def granted(graph: Graph, drill: str) -> dict[str, Any]:
    """The statements of a drill's role, by their ids."""
    (policy,) = (found for found in graph.of_type("aws:iam/rolePolicy:RolePolicy") if found.name.startswith(f"{drill}-"))
    return {statement["Sid"]: statement for statement in json.loads(policy.inputs["policy"])["Statement"]}


def test_no_stack_keeps_an_experiment_unless_its_file_says_so(graphs: dict[str, Graph]) -> None:
    assert not [stack for stack, graph in graphs.items() if list(graph.of_type(TEMPLATE))]


def test_the_experiment_cuts_off_one_zone_of_its_own_network_for_ten_minutes(drilled: dict[str, Graph]) -> None:
    template = template_of(drilled[PROD], "az-loss")
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
    template = template_of(drilled[PROD], "az-loss")
    (alarm,) = (its for its in drilled[PROD].of_type("aws:cloudwatch/metricAlarm:MetricAlarm") if its.name.startswith("az-loss"))
    (targets,) = drilled[PROD].of_type("aws:lb/targetGroup:TargetGroup")
    assert template.inputs["stopConditions"] == [{"source": "aws:cloudwatch:alarm", "value": alarm.outputs["arn"]}]
    assert alarm.inputs["dimensions"]["TargetGroup"] == targets.outputs["arnSuffix"]
    assert (alarm.inputs["metricName"], alarm.inputs["treatMissingData"]) == ("HealthyHostCount", "breaching")


def test_its_role_is_fis_alone_and_changes_no_acl_but_those_that_fis_made(drilled: dict[str, Graph]) -> None:
    (role,) = (found for found in drilled[PROD].of_type("aws:iam/role:Role") if "az-loss" in found.name)
    (trust,) = json.loads(role.inputs["assumeRolePolicy"])["Statement"]
    assert trust["Principal"] == {"Service": "fis.amazonaws.com"} and "aws:SourceArn" in trust["Condition"]["ArnLike"]
    its = granted(drilled[PROD], "az-loss")
    assert its["ChangeAcls"]["Condition"] == {"StringEquals": {"aws:ResourceTag/managedByFIS": "true"}}
    assert its["PutAclsOn"]["Condition"]["StringEquals"]["aws:ResourceTag/environment"] == "prod"


ACTIONS = {
    "region-loss": {"cut-off": "aws:network:disrupt-connectivity"},
    "partition": {
        "cut-us-west-2": "aws:network:route-table-disrupt-cross-region-connectivity",
        "pause-tables": "aws:dynamodb:global-table-pause-replication",
    },
    "az-loss": {"cut-off": "aws:network:disrupt-connectivity"},
    "cache-loss": {"interrupt": "aws:elasticache:replicationgroup-interrupt-az-power"},
    "slow-region": {f"slow-us-east-2{zone}": "aws:ebs:volume-io-latency" for zone in "abc"},
}


@pytest.mark.parametrize("drill", Drill)
def test_every_drill_has_its_actions_its_targets_an_alarm_and_an_end(drilled: dict[str, Graph], drill: Drill) -> None:
    template = template_of(drilled[PROD], drill)
    actions = {action["name"]: action for action in template.inputs["actions"]}
    assert {name: action["actionId"] for name, action in actions.items()} == ACTIONS[drill]
    targets = {target["name"] for target in template.inputs["targets"]}
    assert {action["target"]["value"] for action in actions.values()} == targets
    for target in template.inputs["targets"]:  # nothing that is not ours, whatever else the account has
        assert target["resourceTags"]
    (condition,) = template.inputs["stopConditions"]
    (alarm,) = (
        its for its in drilled[PROD].of_type("aws:cloudwatch/metricAlarm:MetricAlarm") if its.name.startswith(f"{drill}-")
    )
    assert condition["value"] == alarm.outputs["arn"]
    # The loss of a region is meant to leave no gateway there, so that this does not end it.
    assert alarm.inputs["metricName"] == ("StopDrill" if drill is Drill.REGION_LOSS else "HealthyHostCount")


@pytest.mark.parametrize("drill", Drill)
def test_no_role_of_a_drill_may_change_what_carries_no_mark(drilled: dict[str, Graph], drill: Drill) -> None:
    """A right to change something names what: by ARN, or by a tag of ours or of FIS. Only looking, and what AWS scopes no
    further, is free."""
    free = {"PutAcls", "Associate", "EndpointRoutes"}  # our own side of an association whose other side carries a condition
    for sid, statement in granted(drilled[PROD], drill).items():
        verbs = {action.partition(":")[2] for action in statement["Action"]}
        if sid in free or all(verb.startswith(("Describe", "Get")) for verb in verbs):
            continue
        is_named = all(not arn.endswith(("*", "/*")) or "flotilla-prod" in arn for arn in statement["Resource"])
        is_made_in = sid.endswith("In")  # where something is made, which is then marked
        assert is_named or "Condition" in statement or is_made_in, sid


def test_a_region_loss_takes_every_subnet_and_a_partition_names_the_other_region(drilled: dict[str, Graph]) -> None:
    (target,) = template_of(drilled[PROD], "region-loss").inputs["targets"]
    assert [found["path"] for found in target["filters"]] == ["VpcId"]
    partition = template_of(drilled[PROD], "partition").inputs["actions"]
    assert {"key": "region", "value": "us-west-2"} in partition[0]["parameters"]
    boundary = next(iter(drilled["prod.foundation"].of_type("aws:iam/policy:Policy")))
    assert "elasticache:InterruptClusterAzPower" in boundary.inputs["policy"]


def test_production_keeps_no_template_that_its_file_does_not_call_meant(drilled: dict[str, Graph]) -> None:
    graph, catalog = drilled[PROD], config.load_catalog()
    template = template_of(graph, "cache-loss")
    tags = {name: value for name, value in template.inputs["tags"].items() if name != "drills-in-production"}
    assert len(tags) + 1 == len(template.inputs["tags"])
    changed = replace(template, inputs={**template.inputs, "tags": tags})
    resources = tuple(changed if found is template else found for found in graph.resources)
    (finding,) = judge(estate_of(replace(graph, resources=resources), catalog), RULES, (), TODAY).findings
    assert (finding.rule, finding.urn) == ("experiments-meant", template.urn)


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
    template = template_of(graph, "az-loss")
    inputs = copy.deepcopy(dict(template.inputs))
    mistake(inputs)
    resources = tuple(replace(found, inputs=inputs) if found is template else found for found in graph.resources)
    (finding,) = judge(estate_of(replace(graph, resources=resources), catalog), RULES, (), TODAY).findings
    assert finding.rule == "experiments-stop" and message in finding.message
