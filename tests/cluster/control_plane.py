"""A real Kubernetes control plane on loopback: etcd, API server, controllers, scheduler, and KWOK for nodes that are not there.

What is real: admission (Pod Security, service accounts, priorities, NodeRestriction), RBAC, CRD validation, every controller,
the scheduler, eviction. What is not: nodes have no machine, so no container runs and no packet flows. KWOK says that a pod on
such a node is ready, and that it is gone when it is deleted; nobody answers at a pod's IP.

Whoever stops it ends each process by its own id, in the reverse order of start. etcd does not sync to disk:
nothing outlives a run.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

from certificates import Authority, Pair, signing_key
from kube import Kube

HOST = "127.0.0.1"
START_TIMEOUT_S, STOP_TIMEOUT_S = 60, 10
HPA_SYNC_S = 3.0
"""Kubernetes' own is 15."""
SERVICE_CIDR = "172.20.0.0/16"
"""EKS's default."""
ISSUER = "https://kubernetes.default.svc"
ADMINISTRATOR = "administrator"
WITH_US = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()
"""Ends what it starts when the test run is killed, which ends nothing in order; Linux has it."""
FAKE_NODE = ("kwok.x-k8s.io/node", "fake")
"""Annotation of the nodes that KWOK plays."""
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "users": ["system:apiserver"]},
        {"level": "Metadata", "verbs": ["create", "update", "patch", "delete"]},
        {"level": "None"},
    ],
}


@dataclass
class ControlPlane:
    """A running control plane. `folder` holds its keys, its data and a log for each process."""

    assets: Path
    folder: Path
    authority: Authority
    kubeconfig: Path
    """Of its administrator."""
    kube: Kube
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(
        self, program: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts one of the assets; it ends with the control plane."""
        process = _start(self.assets, self.folder, program, arguments, environment)
        self._processes.append(process)
        return process

    def check(self) -> None:
        """Raises RuntimeError where a part has ended by itself: whatever was seen after that is not what it does."""
        for process in self._processes:
            if process.poll() is not None:
                name = Path(str(process.args[len(WITH_US)])).name  # type: ignore[index]  # a list, as we gave it
                raise RuntimeError(f"{name} ended with {process.returncode}\n{tail(self.folder / f'{name}.log')}")


@contextmanager
def control_plane(assets: Path, folder: Path, hpa_sync_s: float = HPA_SYNC_S) -> Iterator[ControlPlane]:
    """A control plane without a node, with every CRD; it is gone after the block. Autoscalers look every `hpa_sync_s`.

    Raises:
        RuntimeError: a part did not start, or ended before the block did; the message ends with its log.
    """
    folder.mkdir(parents=True)
    plane = ControlPlane(
        assets, folder, Authority(folder, "kubernetes-ca"), folder / f"{ADMINISTRATOR}.kubeconfig", Kube.unconnected()
    )
    try:
        _start_all(plane, hpa_sync_s)
        yield plane
        plane.check()
    finally:
        for process in reversed(plane._processes):
            _stop(process)
        plane.kube.close()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns once a part is `ready`.

    Raises:
        RuntimeError: its process ended, or it was not ready in time; the message ends with its log.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"{log.stem} ended with {process.returncode}\n{tail(log)}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{log.stem} was not ready within {START_TIMEOUT_S} s\n{tail(log)}")
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether `url` answers with a good status."""
    try:
        with urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def tail(log: Path, num_lines: int = 30) -> str:
    """The end of a log, under its name."""
    lines = log.read_text(errors="replace").splitlines()[-num_lines:]
    return "\n".join([f"--- {log.name}", *lines])


def _start_all(plane: ControlPlane, hpa_sync_s: float) -> None:
    folder = plane.folder
    authority, front_proxy = plane.authority, Authority(folder, "front-proxy-ca")
    serving = authority.sign("kube-apiserver", hosts=(HOST, "localhost", "kubernetes.default.svc"))
    proxy_client = front_proxy.sign("front-proxy-client")
    accounts_key = signing_key(folder)

    etcd_port, peer_port, port = free_port(), free_port(), free_port()
    etcd = f"http://{HOST}:{etcd_port}"
    process = plane.run("etcd", _etcd(folder, etcd, f"http://{HOST}:{peer_port}"))
    until(lambda: answers(f"{etcd}/health"), process, folder / "etcd.log")

    address = f"https://{HOST}:{port}"
    process = plane.run(
        "kube-apiserver", _api_server(folder, etcd, port, authority.pair, front_proxy.pair, serving, proxy_client, accounts_key)
    )
    administrator = _kubeconfig(folder, ADMINISTRATOR, address, authority, "system:masters")
    plane.kube = Kube.connect(administrator)
    until(plane.kube.is_ready, process, folder / "kube-apiserver.log")
    plane.kube.install_crds(sorted((plane.assets / "crds").glob("*.yaml")) + sorted(Path(__file__).parent.glob("crds/*.yaml")))

    manager = _kubeconfig(folder, "system:kube-controller-manager", address, authority)
    plane.run(
        "kube-controller-manager",
        [
            f"--kubeconfig={manager}",
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={accounts_key}",
            f"--root-ca-file={authority.pair.certificate}",
            f"--horizontal-pod-autoscaler-sync-period={hpa_sync_s:g}s",
            "--horizontal-pod-autoscaler-cpu-initialization-period=1s",
        ],
    )
    scheduler = _kubeconfig(folder, "system:kube-scheduler", address, authority)
    plane.run("kube-scheduler", [f"--kubeconfig={scheduler}", "--leader-elect=false", "--secure-port=0"])
    key, value = FAKE_NODE
    plane.run(
        "kwok",
        [
            f"--kubeconfig={administrator}",
            "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={key}={value}",
            f"--server-address={HOST}:{free_port()}",
            "--node-lease-duration-seconds=120",
            *(f"--config={stage}" for stage in sorted((plane.assets / "stages").glob("*.yaml"))),
        ],
        # It would write to the home folder of whoever runs the tests.
        {"KWOK_WORKDIR": str(folder / "kwok")},
    )


def _etcd(folder: Path, clients: str, peers: str) -> list[str]:
    return [
        f"--data-dir={folder / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={clients}",
        f"--advertise-client-urls={clients}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=default={peers}",
        "--log-level=warn",
    ]


def _api_server(
    folder: Path, etcd: str, port: int, authority: Pair, front_proxy: Pair, serving: Pair, proxy_client: Pair, accounts_key: Path
) -> list[str]:
    policy = folder / "audit-policy.yaml"
    policy.write_text(json.dumps(AUDIT_POLICY))
    return [
        f"--etcd-servers={etcd}",
        f"--bind-address={HOST}",
        f"--secure-port={port}",
        f"--tls-cert-file={serving.certificate}",
        f"--tls-private-key-file={serving.key}",
        f"--client-ca-file={authority.certificate}",
        "--anonymous-auth=false",
        "--allow-privileged",  # as on EKS, so that it is Pod Security that forbids it
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={accounts_key}",
        f"--service-account-signing-key-file={accounts_key}",
        f"--audit-policy-file={policy}",
        f"--audit-log-path={folder / 'audit.log'}",
        # An aggregated API, such as KEDA's metrics, knows the API server by these.
        f"--requestheader-client-ca-file={front_proxy.certificate}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={proxy_client.certificate}",
        f"--proxy-client-key-file={proxy_client.key}",
    ]


def _kubeconfig(folder: Path, user: str, address: str, authority: Authority, group: str = "") -> Path:
    """How `user` reaches the API server, with a certificate of its own."""
    pair = authority.sign(user, group)
    path = folder / f"{pair.certificate.stem}.kubeconfig"
    cluster = {"server": address, "certificate-authority": str(authority.pair.certificate)}
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "tests", "cluster": cluster}],
                "users": [{"name": user, "user": {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}}],
                "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": user}}],
                "current-context": "tests",
            }
        )
    )
    return path


def _start(
    assets: Path, folder: Path, program: str, arguments: Sequence[str], environment: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    # Nothing of the caller's environment: a proxy or a KUBECONFIG of his must not reach these.
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **(environment or {})}
    with (folder / f"{program}.log").open("ab") as log:
        return subprocess.Popen([*WITH_US, str(assets / program), *arguments], cwd=folder, env=variables, stdout=log, stderr=log)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
