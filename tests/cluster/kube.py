"""What the tests ask of a Kubernetes API, over the `kubernetes` package's dynamic client."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kubernetes import client, config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ResourceNotFoundError
from urllib3.exceptions import HTTPError

T = TypeVar("T")
Manifest = Mapping[str, Any]
FIELD_MANAGER = "flotilla-tests"
POLL_S = 0.2
REQUEST_TIMEOUT_S = 20


@dataclass(frozen=True)
class Refusal:
    """An API server's answer to what it does not take."""

    status: int
    reason: str
    message: str


class RefusedError(Exception):
    """The API server refused a request; `refusal` says why."""

    def __init__(self, what: str, refusal: Refusal) -> None:
        super().__init__(f"{what}: {refusal.status} {refusal.message}")
        self.refusal = refusal


class Kube:
    """One user's way to one API server. Objects are plain dictionaries, as JSON has them."""

    def __init__(self, api: client.ApiClient | None) -> None:
        self._api = api
        self._dynamic: DynamicClient | None = None

    @classmethod
    def unconnected(cls) -> Kube:
        """Stands where no API server runs yet."""
        return cls(None)

    @classmethod
    def connect(cls, kubeconfig: Path) -> Kube:
        """As the user whom a kubeconfig names."""
        return cls(config.new_client_from_config(str(kubeconfig)))

    def close(self) -> None:
        """Closes its connections."""
        if self._api:
            self._api.close()

    @property
    def api(self) -> client.ApiClient:
        """The typed client below."""
        if self._api is None:
            raise RuntimeError("no API server yet")
        return self._api

    def is_ready(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            self.call("GET", "/readyz")
        except (HTTPError, RefusedError):  # not up yet, or up and not ready
            return False
        return True

    def call(
        self, method: str, path: str, body: Any = None, query: Sequence[tuple[str, str]] = (), content_type: str = ""
    ) -> Any:
        """The decoded answer and its warnings.

        Raises:
            RefusedError: any status but a good one.
        """
        return self._call(method, path, body, query, content_type)[0]

    def apply(self, manifest: Manifest, *, dry_run: bool = False) -> tuple[dict[str, Any], list[str]]:
        """Server-side applies `manifest`, refusing fields that the schema does not have; the object, and the server's warnings.

        Raises:
            RefusedError: the API server does not take it.
        """
        query = [("fieldManager", FIELD_MANAGER), ("fieldValidation", "Strict")]
        if dry_run:
            query.append(("dryRun", "All"))
        return self._call("PATCH", self.path(manifest), manifest, query, "application/apply-patch+yaml")

    def create(self, manifest: Manifest) -> dict[str, Any]:
        """Creates it.

        Raises:
            RefusedError: the API server does not take it.
        """
        path = self.path(manifest).rpartition("/")[0]
        created: dict[str, Any] = self.call("POST", path, manifest, [("fieldValidation", "Strict")])
        return created

    def get(self, kind: str, name: str, namespace: str = "", version: str = "v1") -> dict[str, Any]:
        """One object."""
        found: dict[str, Any] = self.call("GET", self._path(version, kind, namespace, name))
        return found

    def list(
        self, kind: str, namespace: str = "", version: str = "v1", labels: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Objects, of all namespaces where none is named."""
        query = [("labelSelector", ",".join(f"{key}={value}" for key, value in labels.items()))] if labels else []
        items: list[dict[str, Any]] = self.call("GET", self._path(version, kind, namespace), query=query)["items"]
        return items

    def delete(self, kind: str, name: str, namespace: str = "", version: str = "v1") -> None:
        """Deletes it, as its owner would: what it owns goes too."""
        self.call("DELETE", self._path(version, kind, namespace, name), query=[("propagationPolicy", "Background")])

    def patch(self, kind: str, name: str, patch: Manifest, namespace: str = "", version: str = "v1", part: str = "") -> None:
        """Merges `patch` into an object, or into its sub-resource `part`."""
        path = self._path(version, kind, namespace, name) + (f"/{part}" if part else "")
        self.call("PATCH", path, patch, content_type="application/merge-patch+json")

    def scale(self, kind: str, name: str, namespace: str, replicas: int) -> None:
        """Sets `replicas` through the sub-resource that an autoscaler uses."""
        self.patch(kind, name, {"spec": {"replicas": replicas}}, namespace, "apps/v1", "scale")

    def evict(self, name: str, namespace: str) -> bool:
        """Asks for a pod's eviction, as a drain does; False where a disruption budget refuses it."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
        try:
            self.call("POST", f"/api/v1/namespaces/{namespace}/pods/{name}/eviction", body)
        except RefusedError as error:
            if error.refusal.status == 429:
                return False
            raise
        return True

    def may(self, user: str, verb: str, resource: str, namespace: str = "", group: str = "", groups: Sequence[str] = ()) -> bool:
        """Whether RBAC lets `user` do this (a SubjectAccessReview)."""
        attributes = {"verb": verb, "resource": resource, "namespace": namespace, "group": group}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": list(groups), "resourceAttributes": attributes},
        }
        return bool(self.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)["status"]["allowed"])

    def install_crds(self, files: Sequence[Path]) -> None:
        """Applies CRDs and waits until each is served."""
        crds = [crd for file in files for crd in yaml.safe_load_all(file.read_text()) if crd]
        for crd in crds:
            self.apply(crd)
        for crd in crds:
            name = crd["metadata"]["name"]
            eventually(lambda name=name: self._is_established(name), f"the API of {name} is served")  # type: ignore[misc]
        self._dynamic = None

    def path(self, manifest: Manifest) -> str:
        """Where an object lies."""
        metadata = manifest["metadata"]
        return self._path(manifest["apiVersion"], manifest["kind"], metadata.get("namespace", ""), metadata["name"])

    def _path(self, version: str, kind: str, namespace: str, name: str = "") -> str:
        if self._dynamic is None:
            self._dynamic = DynamicClient(self.api)
        try:
            resource = self._dynamic.resources.get(api_version=version, kind=kind)
        except ResourceNotFoundError as error:
            raise RefusedError(f"{version} {kind}", Refusal(404, "NotFound", "the API server knows no such kind")) from error
        path: str = resource.path(name=name or None, namespace=namespace or None)
        return path

    def _is_established(self, name: str) -> bool:
        return has_condition(self.get("CustomResourceDefinition", name, version="apiextensions.k8s.io/v1"), "Established")

    def _call(
        self, method: str, path: str, body: Any = None, query: Sequence[tuple[str, str]] = (), content_type: str = ""
    ) -> tuple[Any, list[str]]:
        content_type = content_type or "application/json"
        headers = {"Accept": "application/json", "Content-Type": content_type}
        # The client encodes what is JSON by its type, and an apply is YAML by its.
        sent = body if body is None or content_type.endswith("json") else json.dumps(body)
        request = self.api.param_serialize(method, path, query_params=list(query), header_params=headers, body=sent)
        response = self.api.call_api(*request, _request_timeout=REQUEST_TIMEOUT_S)
        data: bytes = response.read()
        if not 200 <= response.status <= 299:
            raise RefusedError(f"{method} {path}", _refusal(response.status, data))
        warnings = response.getheaders().getlist("Warning")
        return (json.loads(data) if data.startswith(b"{") else data.decode()), warnings


def _refusal(status: int, data: bytes) -> Refusal:
    try:
        said = json.loads(data)
        return Refusal(status, said.get("reason", ""), said.get("message", ""))
    except (ValueError, AttributeError):
        return Refusal(status, "", data.decode(errors="replace"))


def has_condition(found: Manifest, kind: str) -> bool:
    """Whether an object's status says so; one that says nothing yet does not."""
    conditions = found.get("status", {}).get("conditions") or ()
    return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)


def eventually(condition: Callable[[], T], what: str, timeout_s: float = 60, hint: Callable[[], str] = str) -> T:
    """The first true answer of `condition`; what a controller does takes a moment.

    Raises:
        AssertionError: it was not so in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"within {timeout_s} s it did not become true that {what} {hint()}"
        time.sleep(POLL_S)
