"""The engine's side of the conversation, for a run that only writes down what the program asks for.

`MockMonitor` of the SDK keeps inputs alone. This one keeps each request whole: parent, protection, aliases, provider, ignored
changes, dependencies, secrets; it answers with inputs plus tokens for what a provider would compute, resolves references to
other stacks from the graphs recorded before, and builds the same URNs as the real engine. It neither awaits nor blocks, so the
recorder can run it on the program's own event loop and the order of events is the program's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime.mocks import MockCallArgs, MockMonitor, MockResourceArgs, Mocks
from pulumi.runtime.proto import alias_pb2, resource_pb2

from infra.embedded import wire
from infra.embedded.computed import outputs_of
from infra.embedded.graph import Graph, Options, Resource, token

STACK_TYPE = "pulumi:pulumi:Stack"
REFERENCE_TYPE = "pulumi:pulumi:StackReference"
PROVIDER_ID = "recorded"


class RecordingError(Exception):
    """The program did what the real engine would refuse, or what the recorder cannot stand in for."""


class _NoMocks(Mocks):
    """`MockMonitor` wants one; nothing here calls it."""

    def call(self, args: MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]] | None]:
        raise NotImplementedError

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        raise NotImplementedError


class RecordingMonitor(MockMonitor):
    """Records one stack. `graphs` are those of the stacks that it may refer to, by name."""

    def __init__(self, project: str, stack: str, graphs: Mapping[str, Graph]) -> None:
        super().__init__(_NoMocks())
        self._project = project
        self._stack = stack
        self._graphs = graphs
        self._resources: dict[str, Resource] = {}
        self._outputs: dict[str, Any] = {}
        self._references: list[str] = []
        self._num_invokes: dict[str, int] = {}

    def graph(self) -> Graph:
        """What has been recorded, in an order that depends on the graph alone."""
        return Graph(self._stack, _in_order(self._resources), dict(self._outputs), tuple(sorted(self._references)))

    def RegisterResource(self, request: Any) -> Any:
        """A declared resource: recorded, and answered as if a provider had made it."""
        urn = self._urn(request.parent, request.type, request.name)
        if request.type == STACK_TYPE:
            return resource_pb2.RegisterResourceResponse(urn=urn)
        if urn in self._resources:
            raise RecordingError(
                f"{self._stack}: two resources of type {request.type} are named {request.name!r} below one parent"
            )
        inputs = wire.from_struct(request.object)
        is_provider = request.type.startswith("pulumi:providers:")
        outputs: dict[str, Any] = dict(inputs)
        resource_id = ""
        if request.custom:
            outputs = outputs_of(request.type, urn, inputs)
            resource_id = PROVIDER_ID if is_provider else token(urn, "id")
            outputs["id"] = resource_id
            for name in request.additionalSecretOutputs:
                outputs[name] = wire.secret(outputs.get(name))
        self._resources[urn] = Resource(
            urn=urn,
            type=request.type,
            name=request.name,
            parent="" if f"::{STACK_TYPE}::" in request.parent else request.parent,
            custom=request.custom,
            inputs=inputs,
            outputs=outputs,
            options=_options(request),
        )
        answered = {name: value for name, value in outputs.items() if name != "id"}
        return resource_pb2.RegisterResourceResponse(urn=urn, id=resource_id, object=wire.to_struct(answered))

    def RegisterResourceOutputs(self, request: Any) -> Any:
        """The outputs of a component, or the exports of the stack."""
        outputs = wire.from_struct(request.outputs)
        if request.urn in self._resources:
            known = self._resources[request.urn]
            self._resources[request.urn] = Resource(**{**vars(known), "outputs": {**known.outputs, **outputs}})
        else:
            self._outputs = outputs
        return empty_pb2.Empty()

    def ReadResource(self, request: Any) -> Any:
        """A reference to another stack; existing resources cannot be read without a cloud.

        Raises:
            RecordingError: the stack has not been recorded, or it is no stack reference.
        """
        if request.type != REFERENCE_TYPE:
            raise RecordingError(f"{self._stack}: reads existing {request.type} {request.id!r}, which only a cloud can answer")
        stack = str(request.id).rsplit("/", 1)[-1]
        if stack not in self._graphs:
            raise RecordingError(f"{self._stack} refers to {stack}, which has not been recorded: record it first")
        self._references.append(stack)
        exports = self._graphs[stack].outputs
        outputs = {
            "name": request.id,
            "outputs": wire.open_secrets(exports),
            "secretOutputNames": [name for name, value in exports.items() if wire.has_secret(value)],
        }
        urn = self._urn(request.parent, request.type, request.name)
        return resource_pb2.ReadResourceResponse(urn=urn, properties=wire.to_struct(outputs))

    def Invoke(self, request: Any) -> Any:
        """A provider function that makes a value: one token for each property of its result.

        The token's URN has the function for its type and the number of the call for its name, so that no two calls are one value.

        Raises:
            RecordingError: the function would look something up.
        """
        number = self._num_invokes[request.tok] = self._num_invokes.get(request.tok, 0) + 1
        urn = self._urn("", request.tok, str(number))
        results = _invoke_results(request.tok)
        if results is None:
            raise RecordingError(f"{self._stack}: calls {request.tok}, which only a cloud can answer")
        answer = wire.to_struct({name: token(urn, name) for name in results})
        return resource_pb2.ResourceInvokeResponse(**{"return": answer})

    def _urn(self, parent: str, resource_type: str, name: str) -> str:
        """The URN that the real engine would give; the types of all ancestors but the stack qualify the type."""
        parent_type = parent.split("::")[2] if parent else STACK_TYPE
        qualified = resource_type if parent_type == STACK_TYPE else f"{parent_type}${resource_type}"
        return f"urn:pulumi:{self._stack}::{self._project}::{qualified}::{name}"


def _invoke_results(function: str) -> tuple[str, ...] | None:
    """Result properties of the functions that the program may call: those that make a value rather than look one up."""
    return {"aws:secretsmanager/getRandomPassword:getRandomPassword": ("randomPassword",)}.get(function)


def _options(request: Any) -> Options:
    return Options(
        protect=request.protect,
        retain_on_delete=request.retainOnDelete,
        delete_before_replace=request.deleteBeforeReplace,
        ignore_changes=tuple(request.ignoreChanges),
        replace_on_changes=tuple(request.replaceOnChanges),
        aliases=tuple(sorted(_alias(alias) for alias in request.aliases if not _is_of_sdk(alias, request.custom))),
        provider=str(request.provider).rsplit("::", 1)[0] if request.provider else "",
        depends_on=tuple(sorted(request.dependencies)),
        deleted_with=request.deletedWith,
    )


def _is_of_sdk(alias: alias_pb2.Alias, custom: bool) -> bool:
    """Whether an alias is one that every Kubernetes class carries for its API's older versions."""
    spec = alias.spec
    return custom and not alias.urn and bool(spec.type) and not (spec.name or spec.parentUrn or spec.noParent or spec.stack)


def _alias(alias: alias_pb2.Alias) -> str:
    if alias.urn:
        return alias.urn
    spec = alias.spec
    parts = {"name": spec.name, "type": spec.type, "stack": spec.stack, "project": spec.project, "parent": spec.parentUrn}
    return " ".join(f"{key}={value}" for key, value in parts.items() if value) or "no parent"


def _in_order(resources: Mapping[str, Resource]) -> tuple[Resource, ...]:
    """Parents, providers and dependencies first; otherwise by URN, so that equal programs give equal graphs.

    The order of registration would not do: it follows the event loop's sets, which are ordered by address.
    """
    ordered: dict[str, Resource] = {}

    def add(urn: str) -> None:
        resource = resources.get(urn)
        if resource is None or urn in ordered:
            return
        options = resource.options
        for earlier in sorted({resource.parent, options.provider, options.deleted_with, *options.depends_on}):
            if earlier != urn:
                add(earlier)
        ordered.setdefault(urn, resource)

    for urn in sorted(resources):
        add(urn)
    return tuple(ordered.values())
