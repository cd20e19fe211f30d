"""A region on a real Kubernetes: its recorded stacks, and what an API server said to each of their objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from control_plane import ControlPlane, control_plane
from kube import Kube, RefusedError
from manifests import Declared, declared
from nodes import FakeNode, start_nodes

from infra import config
from infra.embedded.graph import Graph
from infra.embedded.recorder import environment_stacks, every_stack, record
from infra.naming import StackName, parse_stack

SERVING_STACKS = tuple(stack for stack in map(parse_stack, every_stack()) if stack.layer == "serving")


@dataclass(frozen=True)
class Answer:
    """What the API server said to an object."""

    object: Declared
    refusal: str
    """Empty where it took it."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Region:
    """A control plane with a region's objects, the cluster's first."""

    stack: StackName
    cluster: Graph
    serving: Graph
    plane: ControlPlane
    answers: tuple[Answer, ...]

    @property
    def kube(self) -> Kube:
        """As its administrator."""
        return self.plane.kube

    def declared(self, kind: str) -> list[Declared]:
        """Its objects of a kind."""
        return [answer.object for answer in self.answers if answer.object.kind == kind]


@contextmanager
def running_region(stack: StackName, assets: Path, folder: Path, nodes: Sequence[FakeNode] = ()) -> Iterator[Region]:
    """The region of a serving stack on a control plane of its own, which is gone after the block.

    Its nodes come before its objects, as the cluster's stack comes before: pods that wait for a first node all land in its zone.
    """
    cluster, serving = graphs_of(stack)
    with control_plane(assets, folder) as plane:
        start_nodes(plane.kube, nodes)
        answers = tuple(_applied(plane.kube, object_) for object_ in declared(cluster, serving))
        yield Region(stack, cluster, serving, plane, answers)


def graphs_of(stack: StackName) -> tuple[Graph, Graph]:
    """The graphs of a serving stack's cluster, and its own."""
    graphs = recorded(stack.environment)
    return graphs[str(StackName(stack.environment, "cluster", stack.region))], graphs[str(stack)]


@cache
def recorded(environment: str) -> dict[str, Graph]:
    """Every stack of an environment, as the repository configures it. Day and time do not matter to it (`_a_fixed_day`)."""
    config.load_catalog()
    return record(environment_stacks(environment))


def _applied(kube: Kube, object_: Declared) -> Answer:
    try:
        _, warnings = kube.apply(object_.manifest)
    except RefusedError as error:
        return Answer(object_, str(error))
    return Answer(object_, "", tuple(warnings))
