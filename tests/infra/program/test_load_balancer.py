"""The region's load balancer: it reaches gateways alone, refuses plain text, and exports what the edge needs to open it."""

from __future__ import annotations

import pytest
from workload_support import LOCAL, PROD, SERVICE, named

from infra.embedded.graph import Graph
from infra.embedded.recorder import record
from infra.errors import ConfigError
from infra.timers import ALB_IDLE_S

BALANCER, TARGETS = "aws:lb/loadBalancer:LoadBalancer", "aws:lb/targetGroup:TargetGroup"
LISTENER, RULE = "aws:lb/listener:Listener", "aws:lb/listenerRule:ListenerRule"
INGRESS, EGRESS = (
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule",
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule",
)
BINDING = "kubernetes:elbv2.k8s.aws/v1beta1:TargetGroupBinding"


def test_plain_text_is_refused_but_for_the_question_of_health(graphs: dict[str, Graph]) -> None:
    """A redirect would have the client's key in the clear first. The rule also makes the target group a used one, or no target
    would ever be found healthy."""
    (listener,) = graphs[PROD].of_type(LISTENER)
    (action,) = listener.inputs["defaultActions"]
    assert (listener.inputs["port"], action["type"], action["fixedResponse"]["statusCode"]) == (80, "fixed-response", "403")
    (rule,) = graphs[PROD].of_type(RULE)
    assert rule.inputs["conditions"] == [{"pathPattern": {"values": ["/health"]}}]
    (targets,) = graphs[PROD].of_type(TARGETS)
    assert rule.inputs["actions"] == [{"type": "forward", "targetGroupArn": targets.outputs["arn"]}]


def test_the_edge_makes_the_listener_for_tls_from_what_this_stack_exports(graphs: dict[str, Graph]) -> None:
    outputs = graphs[PROD].outputs
    (balancer,), (targets,) = graphs[PROD].of_type(BALANCER), graphs[PROD].of_type(TARGETS)
    assert outputs["load_balancer_arn"] == balancer.outputs["arn"] and outputs["target_group_arn"] == targets.outputs["arn"]
    assert outputs["load_balancer_zone_id"] == balancer.outputs["zoneId"]
    assert outputs["gateway_health_path"] == targets.inputs["healthCheck"]["path"] == "/health"
    there = [listener.inputs for listener in graphs["prod.edge"].of_type(LISTENER)]
    assert outputs["load_balancer_arn"] in {inputs["loadBalancerArn"] for inputs in there}
    assert {inputs["port"] for inputs in there} == {443}


def test_pods_are_registered_by_address_on_the_port_of_the_gateways_service(graphs: dict[str, Graph]) -> None:
    (targets,) = graphs[PROD].of_type(TARGETS)
    spec = named(graphs[PROD], BINDING)["gateway"].inputs["spec"]
    assert spec["targetGroupARN"] == targets.outputs["arn"] and spec["targetType"] == targets.inputs["targetType"] == "ip"
    service = named(graphs[PROD], SERVICE)[spec["serviceRef"]["name"]].inputs["spec"]
    assert spec["serviceRef"]["port"] in {port["port"] for port in service["ports"] if port["name"] == "http"}
    namespace = named(graphs[PROD], "kubernetes:core/v1:Namespace")["serving"]
    assert namespace.inputs["metadata"]["labels"]["elbv2.k8s.aws/pod-readiness-gate-inject"] == "enabled"


def test_the_load_balancer_reaches_gateways_and_nothing_else(graphs: dict[str, Graph]) -> None:
    pods = graphs["prod.cluster.us-east-2"].outputs["cluster_security_group_id"]
    (out,) = graphs[PROD].of_type(EGRESS)
    assert (out.inputs["referencedSecurityGroupId"], out.inputs["fromPort"], out.inputs["toPort"]) == (pods, 8080, 8080)
    into_pods = [rule.inputs for rule in graphs[PROD].of_type(INGRESS) if rule.inputs["securityGroupId"] == pods]
    assert [(rule["referencedSecurityGroupId"], rule["fromPort"], rule["toPort"]) for rule in into_pods] == [
        (out.inputs["securityGroupId"], 8080, 8080)
    ]


@pytest.mark.parametrize(("scheme", "clients", "subnets"), [
    ("internet-facing", "0.0.0.0/0", "public_subnet_ids"),
    ("internal", "10.16.0.0/16", "private_subnet_ids"),
])  # fmt: skip
def test_an_internal_load_balancer_stays_inside(scheme: str, clients: str, subnets: str) -> None:
    graphs = record([PROD], overrides={PROD: {"load_balancer": {"scheme": scheme}}})
    graph = graphs[PROD]
    (balancer,) = graph.of_type(BALANCER)
    assert balancer.inputs["internal"] is (scheme == "internal")
    assert balancer.inputs["subnets"] == graphs["prod.cluster.us-east-2"].outputs[subnets]
    cidrs = {rule.inputs["cidrIpv4"] for rule in graph.of_type(INGRESS) if "cidrIpv4" in rule.inputs}
    assert cidrs == {clients}


def test_it_waits_for_whole_answers_and_is_hard_to_delete_or_to_confuse(graphs: dict[str, Graph]) -> None:
    (balancer,) = graphs[PROD].of_type(BALANCER)
    assert balancer.inputs["idleTimeout"] == ALB_IDLE_S
    assert balancer.inputs["enableDeletionProtection"] and balancer.options.protect
    assert balancer.inputs["dropInvalidHeaderFields"] and balancer.inputs["desyncMitigationMode"] == "strictest"


def test_a_load_balancer_that_cuts_at_once_is_for_local_alone() -> None:
    record([LOCAL], overrides={LOCAL: {"load_balancer": {"deregistration_s": 0}}})
    with pytest.raises(ConfigError, match=r"`flotilla:load_balancer.deregistration_s` is 0"):
        record([PROD], overrides={PROD: {"load_balancer": {"deregistration_s": 0}}})
