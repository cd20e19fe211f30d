"""Cross-stack outputs: the contract is checked where it is exported and where it is read."""

from __future__ import annotations

from typing import Any

import pulumi
import pytest

from infra import stackref
from infra.embedded.graph import Graph, Secret
from infra.embedded.recorder import record_program
from infra.embedded.wire import has_secret
from infra.naming import StackName, parse_stack
from infra.stackref import ClusterOutputs, ContractError, EdgeOutputs, FoundationOutputs, ServingOutputs

CONTRACTS = {"foundation": FoundationOutputs, "cluster": ClusterOutputs, "serving": ServingOutputs, "edge": EdgeOutputs}
SERVING: dict[str, Any] = {
    "gateway_service": "gateway.serving",
    "gateway_port": 8080,
    "gateway_health_path": "/health",
    "region_health_path": "/region",
    "control_path": "/controls",
    "load_balancer_arn": "arn:aws:elasticloadbalancing:us-east-2:000000000000:loadbalancer/app/gateway/1",
    "load_balancer_dns_name": "gateway.us-east-2.elb.amazonaws.com",
    "load_balancer_zone_id": "Z1",
    "target_group_arn": "arn:aws:elasticloadbalancing:us-east-2:000000000000:targetgroup/gateway/1",
}


def exported(values: dict[str, Any]) -> Graph:
    return record_program(lambda: stackref.export(ServingOutputs, values), "test.serving.us-east-2")


def read(outputs: dict[str, Any]) -> Graph:
    def program() -> None:
        got = stackref.read(StackName("test", "serving", "us-east-2"), ServingOutputs)
        pulumi.export("port", got.apply(lambda outputs: outputs.gateway_port))

    return record_program(program, "test.edge", graphs={"test.serving.us-east-2": Graph("test.serving.us-east-2", (), outputs)})


def test_what_one_stack_exports_the_next_one_reads() -> None:
    def program() -> None:
        stackref.export(ServingOutputs, {**SERVING, "gateway_port": pulumi.Output.from_input(8080)})

    graph = record_program(program, "test.serving.us-east-2")
    assert graph.outputs == SERVING
    assert read(dict(graph.outputs)).outputs["port"] == 8080


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gateway_port": None}, "gateway_port"),
        ({"gateway_port": "http"}, "gateway_port"),
        ({"gateway_service": ["a"]}, "gateway_service"),
    ],
)
def test_a_wrong_type_is_refused_at_both_ends(change: dict[str, Any], told: str) -> None:
    for end in (exported, read):
        with pytest.raises(ContractError, match=told):
            end({**SERVING, **change})


def test_a_missing_field_is_refused_at_both_ends_and_the_reader_names_the_stack_to_update() -> None:
    lacking = {name: value for name, value in SERVING.items() if name != "gateway_port"}
    with pytest.raises(ContractError, match="differ in gateway_port"):
        exported(lacking)
    with pytest.raises(ContractError, match=r"stack test\.serving\.us-east-2 does not export .*gateway_port.* Update it first"):
        read(lacking)


def test_an_unknown_field_is_refused_by_the_exporter_and_ignored_by_the_reader() -> None:
    """So that an exporter can be upgraded before its readers."""
    with pytest.raises(ContractError, match="differ in weather"):
        exported({**SERVING, "weather": "fine"})
    assert read({**SERVING, "weather": "fine"}).outputs["port"] == 8080


def test_every_stack_exports_its_layers_contract_and_nothing_secret(graphs: dict[str, Graph]) -> None:
    for stack, graph in graphs.items():
        contract = CONTRACTS[parse_stack(stack).layer]
        assert graph.outputs.keys() == contract.model_fields.keys()
        stackref.decode(contract, graph.outputs, stack)
        assert not has_secret(graph.outputs)
    assert has_secret({"a": [Secret("x")]})


def test_edges_point_one_way_and_regions_never_refer_to_each_other(graphs: dict[str, Graph]) -> None:
    assert {stack: graph.references for stack, graph in graphs.items() if stack.startswith("prod.")} == {
        "prod.foundation": (),
        "prod.cluster.us-east-2": ("prod.foundation",),
        "prod.cluster.us-west-2": ("prod.foundation",),
        "prod.serving.us-east-2": ("prod.cluster.us-east-2", "prod.foundation"),
        "prod.serving.us-west-2": ("prod.cluster.us-west-2", "prod.foundation"),
        "prod.edge": ("prod.serving.us-east-2", "prod.serving.us-west-2"),
    }
    for stack, graph in graphs.items():
        named = parse_stack(stack)
        assert {parse_stack(reference) for reference in graph.references} <= set(named.upstream(map(parse_stack, graphs)))
