"""What must hold of every resource in every stack; each rule is shown to fail when broken on purpose."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pulumi
import pulumi_aws as aws
import pytest
from golden_files import GOLDENS
from protected_types import PROTECTED_TYPES
from pulumi import _types

from infra.config import load_catalog
from infra.embedded.computed import PROVIDERS, class_of
from infra.embedded.graph import HIDDEN, Graph, Options, Resource, Secret
from infra.embedded.graph_json import encode, hidden
from infra.embedded.recorder import environment_stacks, record, record_program
from infra.naming import parse_stack
from infra.tags import REQUIRED
from serving.image.secrets import CONTENTS

Rule = Callable[[Graph], list[str]]
UNNAMED_TYPES = ("pulumi:providers:aws", "pulumi:providers:kubernetes")


def real(graph: Graph) -> Iterator[Resource]:
    """Resources that a provider makes."""
    return (resource for resource in graph.resources if resource.custom and not resource.type.startswith(PROVIDERS))


def without_explicit_provider(graph: Graph) -> list[str]:
    """Real resources whose provider is not one of this stack's own."""
    own = {resource.urn for resource in graph.of_type(*UNNAMED_TYPES)}
    return [resource.name for resource in real(graph) if resource.options.provider not in own]


def untagged(graph: Graph) -> list[str]:
    """AWS resources that could carry the tags, and Kubernetes objects that could carry the labels, and do not."""
    found: list[str] = []
    for resource in real(graph):
        if resource.type.startswith("kubernetes:"):
            labels = resource.inputs["metadata"].get("labels", {})
            wanted = {"app.kubernetes.io/part-of": "flotilla", "flotilla.dev/environment": parse_stack(graph.stack).environment}
            if not wanted.items() <= labels.items():
                found.append(resource.name)
        elif "tags" in _types.resource_types(class_of(resource.type)):
            tags = resource.inputs.get("tags", {})
            if not set(REQUIRED) <= tags.keys() or tags["stack"] != graph.stack:
                found.append(resource.name)
    return found


def unprotected(graph: Graph) -> list[str]:
    """Resources that hold what cannot be made again, and may be deleted."""
    return [resource.name for resource in graph.of_type(*PROTECTED_TYPES) if not resource.options.protect]


def places_in_names(graph: Graph) -> list[str]:
    """Logical names of a regional stack that hold its environment or region."""
    stack = parse_stack(graph.stack)
    if not stack.region:
        return []
    return [resource.name for resource in graph.resources if stack.region in resource.name or stack.environment in resource.name]


def strays(graph: Graph) -> list[str]:
    """Resources outside the component that should group them."""
    return [resource.name for resource in real(graph) if not resource.parent]


SECRET_NAME = re.compile(r"(?i)(password|secretString|secretBinary|authToken|privateKey|accessKey|apiKey|adminKey|stringData)$")
"""Of properties as providers spell them."""


def plain_secrets(graph: Graph) -> list[str]:
    """Resources, or `exports`, whose written form shows a generated secret, a value that is called one, or a credential."""
    written = [(resource.name, resource.inputs) for resource in graph.resources] + [("exports", graph.outputs)]
    return [name for name, values in written if shows_secret(values)]


def shows_secret(values: Mapping[str, Any]) -> bool:
    text = json.dumps(hidden(values))
    is_credential = any(pattern.search(text.encode()) for _, pattern in CONTENTS)
    return is_credential or "randomPassword" in text or any(value != HIDDEN for value in _named_as_secrets(hidden(values)))


def _named_as_secrets(value: Any) -> Iterator[Any]:
    """Plain values below `value` whose key says that they are secrets."""
    if isinstance(value, list):
        for item in value:
            yield from _named_as_secrets(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if SECRET_NAME.search(key) and not isinstance(item, dict | list):
                yield item
            yield from _named_as_secrets(item)


RULES: dict[str, tuple[Rule, str, dict[str, Any]]] = {
    "explicit provider": (without_explicit_provider, "aws:s3/bucket:Bucket", {"options": Options(protect=True)}),
    "tags": (untagged, "aws:dynamodb/table:Table", {"inputs": {}}),
    "labels": (untagged, "kubernetes:apps/v1:Deployment", {"inputs": {"metadata": {}}}),
    "protection": (unprotected, "aws:kms/key:Key", {"options": Options()}),
    "no place in a name": (places_in_names, "kubernetes:apps/v1:StatefulSet", {"name": "gateway-us-east-2"}),
    "a parent": (strays, "aws:eks/cluster:Cluster", {"parent": ""}),
    "no plain secret": (
        plain_secrets,
        "aws:secretsmanager/secretVersion:SecretVersion",
        {"inputs": {"secretString": "${urn:pulumi:s::p::t::n#randomPassword}"}},
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_every_stack_keeps_the_rule(name: str, graphs: dict[str, Graph]) -> None:
    rule = RULES[name][0]
    assert {stack: rule(graph) for stack, graph in graphs.items()} == {stack: [] for stack in graphs}


@pytest.mark.parametrize(
    ("values", "is_plain"),
    [
        ({"secretString": "hunter2"}, True),
        ({"secretString": Secret("hunter2")}, False),
        ({"data": {"a": "${urn:pulumi:s::p::t::n#randomPassword}"}}, True),
        ({"spec": [{"env": [{"name": "A", "value": "AKIA2222222222222222"}]}]}, True),
        ({"auth": {"adminKey": "x"}}, True),
        ({"adminKeySecret": "flotilla/prod/admin-key"}, False),
    ],
)
def test_a_plain_secret_is_found_wherever_it_lies(values: dict[str, Any], is_plain: bool) -> None:
    assert shows_secret(values) is is_plain


def test_no_golden_holds_a_credential() -> None:
    goldens = list(GOLDENS.rglob("*.txt"))
    assert len(goldens) > 10
    for golden in goldens:
        text = golden.read_bytes()
        assert not [what for what, pattern in CONTENTS if pattern.search(text)] and b"randomPassword" not in text, golden


@pytest.mark.parametrize("name", RULES)
def test_the_rule_fails_where_it_is_broken(name: str, graphs: dict[str, Graph]) -> None:
    """A rule that cannot fail checks nothing."""
    rule, broken_type, broken = RULES[name]
    victim = next(resource for graph in graphs.values() for resource in graph.of_type(broken_type))
    stack = victim.urn.split("::")[0].rpartition(":")[2]
    graph = graphs[stack]
    resources = tuple(replace(resource, **broken) if resource is victim else resource for resource in graph.resources)
    assert rule(replace(graph, resources=resources)) == [broken.get("name", victim.name)]


def test_there_is_enough_to_check(graphs: dict[str, Graph]) -> None:
    sizes = {stack: sum(1 for _ in real(graph)) for stack, graph in graphs.items()}
    assert all(size >= 3 for size in sizes.values()) and sum(sizes.values()) > 600, sizes
    protected = {
        environment: sum(1 for stack in environment_stacks(environment) for _ in graphs[stack].of_type(*PROTECTED_TYPES))
        for environment in load_catalog().environments
    }
    assert min(protected.values()) > 20, protected


def test_two_recordings_are_identical(graphs: dict[str, Graph]) -> None:
    again = record(list(graphs))
    assert again == graphs
    assert {stack: encode(graph) for stack, graph in again.items()} == {stack: encode(graph) for stack, graph in graphs.items()}


def test_regions_are_copies_of_each_other(graphs: dict[str, Graph]) -> None:
    def shape(stack: str) -> list[tuple[str, str]]:
        return [(resource.type, resource.name) for resource in graphs[stack].resources]

    for environment in ("local", "prod"):
        for layer in ("cluster", "serving"):
            assert shape(f"{environment}.{layer}.us-east-2") == shape(f"{environment}.{layer}.us-west-2")


def test_providers_speak_to_their_own_region_and_refuse_other_accounts(graphs: dict[str, Graph]) -> None:
    for stack, graph in graphs.items():
        regions = [resource.inputs["region"] for resource in graph.of_type("pulumi:providers:aws")]
        wanted = parse_stack(stack).region
        assert regions == [wanted] if wanted else regions
        accounts = {resource.inputs["allowedAccountIds"] for resource in graph.of_type("pulumi:providers:aws")}
        assert accounts == {f'["{load_catalog().environments[parse_stack(stack).environment].account_id}"]'}


class _InsideApply(Exception):
    pass


@pytest.fixture
def refuse_resources_inside_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes any resource that is created by a function given to `apply` an error: no plan could show it."""
    inside = threading.local()
    apply, construct = pulumi.Output.apply, pulumi.Resource.__init__

    def watched_apply(output: Any, function: Callable[[Any], Any], *args: Any, **kwargs: Any) -> Any:
        def watched(value: Any) -> Any:
            inside.depth = getattr(inside, "depth", 0) + 1
            try:
                return function(value)
            finally:
                inside.depth -= 1

        return apply(output, watched, *args, **kwargs)

    def watched_construct(resource: Any, resource_type: str, name: str, *args: Any, **kwargs: Any) -> None:
        if getattr(inside, "depth", 0):
            raise _InsideApply(f"{resource_type} {name}")
        construct(resource, resource_type, name, *args, **kwargs)

    monkeypatch.setattr(pulumi.Output, "apply", watched_apply)
    monkeypatch.setattr(pulumi.Resource, "__init__", watched_construct)


@pytest.mark.usefixtures("refuse_resources_inside_apply")
def test_no_resource_is_made_inside_apply(graphs: dict[str, Graph]) -> None:
    assert record(list(graphs)) == graphs

    def program() -> None:
        provider = aws.Provider("aws", region="us-east-2")
        outer = aws.s3.Bucket("outer", opts=pulumi.ResourceOptions(provider=provider))
        outer.arn.apply(lambda _: aws.s3.Bucket("inner", opts=pulumi.ResourceOptions(provider=provider)))

    with pytest.raises(_InsideApply, match="aws:s3/bucket:Bucket inner"):
        record_program(program, "test.foundation")
