"""KEDA on a control plane: the real operator and metrics adapter, and what answers for Prometheus.

A ScaledObject is used as our program renders it, its Prometheus address included. Nobody resolves that name here, so the
operator is given an HTTP proxy, as its own documentation describes, and the proxy is the answer: `PromAnswers`, which knows no
PromQL. It gives the number that a test set for exactly this query at exactly this address, and refuses any other.
"""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from control_plane import HOST, ControlPlane, answers, free_port, until
from kube import has_condition

NAMESPACE = "keda"
OPERATOR_NAME = f"keda-operator.{NAMESPACE}.svc.cluster.local"
METRICS_SERVICE = "keda-metrics-apiserver"
METRICS_API = "v1beta1.external.metrics.k8s.io"


@dataclass
class PromAnswers:
    """Stands for Prometheus. `values` has numbers by address and query; None is an empty answer, as of a series not there."""

    port: int
    values: dict[tuple[str, str], float | None] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """What was asked that no test has set."""
    asked_s: list[float] = field(default_factory=list)
    """When anything was asked, by the monotonic clock."""


@contextmanager
def prom_answers() -> Iterator[PromAnswers]:
    """A server on loopback, gone after the block."""
    state = PromAnswers(0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server wants
            url = urlsplit(self.path)
            state.asked_s.append(time.monotonic())
            asked = f"{url.scheme}://{url.netloc}", parse_qs(url.query).get("query", [""])[0]
            if asked not in state.values:
                state.refused.append(asked)
                self.send_error(404)
                return
            value = state.values[asked]
            result = [] if value is None else [{"metric": {}, "value": [0, str(value)]}]
            body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing: what is asked is in `refused`, or was expected."""

    server = ThreadingHTTPServer((HOST, 0), Handler)
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def start(plane: ControlPlane, prometheus: PromAnswers) -> None:
    """Starts operator and adapter, and registers the external metrics API; they end with the control plane.

    Raises:
        RuntimeError: a part did not start; the message ends with its log.
    """
    certificates = plane.folder / "keda-certificates"
    certificates.mkdir()
    pair = plane.authority.sign("keda", hosts=(OPERATOR_NAME, f"{METRICS_SERVICE}.{NAMESPACE}.svc"))
    for name, source in (("ca.crt", plane.authority.pair.certificate), ("tls.crt", pair.certificate), ("tls.key", pair.key)):
        (certificates / name).write_bytes(source.read_bytes())

    plane.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    port = free_port()
    _register(plane, port)
    grpc_port = free_port()
    environment = {
        "KUBECONFIG": str(plane.kubeconfig),
        "KEDA_CLUSTER_OBJECT_NAMESPACE": NAMESPACE,
        "POD_NAMESPACE": NAMESPACE,
        "POD_NAME": "keda-operator",
        "WATCH_NAMESPACE": "",
        "HTTP_PROXY": f"http://{HOST}:{prometheus.port}",  # Go never sends loopback through it, so not the API server either
    }
    operator = _operator(plane, certificates, grpc_port, environment)
    plane.run(
        "keda-adapter",
        [
            f"--bind-address={HOST}",
            f"--secure-port={port}",
            f"--port={free_port()}",
            f"--cert-dir={certificates}",
            f"--tls-cert-file={pair.certificate}",
            f"--tls-private-key-file={pair.key}",
            *(f"--{use}kubeconfig={plane.kubeconfig}" for use in ("", "lister-", "authentication-", "authorization-")),
            f"--metrics-service-address={HOST}:{grpc_port}",
            f"--metrics-service-grpc-authority={OPERATOR_NAME}",
        ],
        environment,
    )

    def is_available() -> bool:
        return has_condition(plane.kube.get("APIService", METRICS_API, version="apiregistration.k8s.io/v1"), "Available")

    until(is_available, operator, plane.folder / "keda-adapter.log")


def _operator(plane: ControlPlane, certificates: object, grpc_port: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    health_port = free_port()
    process = plane.run(
        "keda-operator",
        [
            "--leader-elect=false",
            f"--cert-dir={certificates}",
            "--enable-webhook-patching=false",
            "--enable-apiservice-patching=false",
            f"--metrics-bind-address={HOST}:{free_port()}",
            f"--health-probe-bind-address={HOST}:{health_port}",
            f"--metrics-service-bind-address={HOST}:{grpc_port}",
        ],
        environment,
    )
    until(lambda: answers(f"http://{HOST}:{health_port}/readyz"), process, plane.folder / "keda-operator.log")
    return process


def _register(plane: ControlPlane, port: int) -> None:
    """The external metrics API is the adapter's, which listens on this machine: a Service may be a name elsewhere."""
    plane.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": METRICS_SERVICE, "namespace": NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
        }
    )
    plane.kube.apply(
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": METRICS_API},
            "spec": {
                "group": "external.metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "caBundle": base64.b64encode(plane.authority.pair.certificate.read_bytes()).decode(),
                "service": {"name": METRICS_SERVICE, "namespace": NAMESPACE, "port": port},
            },
        }
    )
