"""What `up` asks of the node agent, and what the agent answers: two JSON documents in the state folder.

The desired state is the Kubernetes objects of the chosen regions, reduced to what one machine can honour, with every token
resolved; it may hold secrets, so its file is private. A pod template's digest names its revision: equal digest, nothing to do.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from policies.autoscaling.pace import Pace

MARKER = "FLOTILLA_CONTAINER"
"""Environment variable that every process of a container inherits: `<state tag>/<pod key>/<container>`."""


class Action(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing to do to a container: a probe's question or a hook. `kind` says which of the other fields count."""

    kind: Literal["http", "tcp", "exec", "sleep"]
    path: str = "/"
    port: int = 0
    command: tuple[str, ...] = ()
    sleep_s: float = 0


class Probe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Kubernetes probe; the defaults are Kubernetes' own."""

    action: Action
    initial_delay_s: float = 0
    period_s: float = 10
    timeout_s: float = 1
    success_threshold: int = 1
    failure_threshold: int = 3


class Mount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A volume's folder, which replaces `path` at the start of the container's environment values and arguments."""

    path: str
    volume: str
    sub_path: str = ""


class Volume(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder. `files` come from a ConfigMap or Secret; `scratch` goes with its pod; `retained` outlives it.

    A retained volume's `key` is its path below the volumes folder, where `{pod}` stands for the pod's name.
    """

    kind: Literal["files", "scratch", "retained"]
    files: dict[str, str] = {}
    key: str = ""


class Container(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One container: a process of the environment `venv` (empty: the agent's own)."""

    name: str
    command: tuple[str, ...]
    venv: str = ""
    env: dict[str, str] = {}
    """In order, as later values may use earlier ones by `$(NAME)`. `{field:status.podIP}` stands for a fieldRef."""
    host_env: dict[str, str] = {}
    """What the realiser sets: paths of this machine, in which no mount path is looked for."""
    mounts: tuple[Mount, ...] = ()
    ports: dict[str, int] = {}
    startup: Probe | None = None
    readiness: Probe | None = None
    liveness: Probe | None = None
    pre_stop: Action | None = None


class Template(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pod template: what every pod of a workload is made from."""

    containers: tuple[Container, ...]
    volumes: dict[str, Volume] = {}
    grace_s: float = 30

    @property
    def revision(self) -> str:
        """Digest of everything in the template, mounted files included."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:10]


class Scaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a workload is sized, as its ScaledObject has it: by a number that gateways export."""

    minimum: int
    maximum: int
    series: str
    labels: dict[str, str]
    source: str
    """Key of the workload that exports it."""
    port: int
    pace: Pace


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Deployment, a StatefulSet, or a part of the machine's own furniture such as the cache."""

    region: str
    """Empty for what serves every region."""
    namespace: str
    name: str
    kind: Literal["Deployment", "StatefulSet", "Infrastructure"]
    replicas: int
    template: Template
    max_surge: int = 1
    max_unavailable: int = 0
    is_parallel: bool = False
    """A StatefulSet's ordinals need not wait for each other when they start."""
    address: str = ""
    """Fixed address of an Infrastructure pod; others get a free one."""
    scaling: Scaling | None = None
    """With it, `replicas` is how many there are at first."""

    @property
    def key(self) -> str:
        """Its name among all regions."""
        return f"{self.region or 'global'}.{self.namespace}.{self.name}"


class Service(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Service: which workloads' pods answer, on which ports, and on which ports of 127.0.0.1."""

    region: str
    namespace: str
    name: str
    workloads: tuple[str, ...]
    """Keys of the workloads that its selector matches."""
    ports: dict[str, int]
    host_ports: dict[str, int] = {}
    has_unready: bool = False
    """Pods that are not ready are reached through it too."""


class Desired(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that this machine is asked to run."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()

    @property
    def digest(self) -> str:
        """Names this desired state in the agent's answer."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


class ContainerStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container as it is."""

    name: str
    state: Literal["waiting", "starting", "running", "stopped"]
    ready: bool
    restarts: int
    pid: int = 0
    reason: str = ""
    """Why it is not ready, in words; empty when it is."""
    last_end: str = ""
    """How its last run ended, if it is not the first."""


class PodStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pod as it is. `started_at_ms` is in milliseconds since the epoch."""

    region: str
    namespace: str
    workload: str
    name: str
    address: str
    revision: str
    phase: Literal["starting", "running", "back_off", "stopping"]
    ready: bool
    restarts: int
    started_at_ms: int
    containers: tuple[ContainerStatus, ...]


class WorkloadStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a workload is: done when `ready` and `updated` reach `replicas` and no other pod is left."""

    key: str
    replicas: int
    ready: int
    updated: int
    pods: int
    desired: int | None = None
    """Of a workload that is scaled: what its region's leading gateway says."""
    reason: str = ""

    @property
    def is_settled(self) -> bool:
        """Every wanted pod is of the wanted revision and ready, and no other is left."""
        return self.ready >= self.replicas and self.updated == self.pods == self.replicas


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A Service as it is; `host_addresses` by port name, such as `127.0.0.1:8080`."""

    region: str
    namespace: str
    name: str
    host_addresses: dict[str, str]
    ready: int
    total: int


class Status(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the agent last saw. `digest` is that of the desired state it works on."""

    pid: int
    started_at_ms: int
    digest: str = ""
    error: str = ""
    """Why it cannot do what is asked; empty when it can."""
    workloads: tuple[WorkloadStatus, ...] = ()
    pods: tuple[PodStatus, ...] = ()
    services: tuple[ServiceStatus, ...] = ()
