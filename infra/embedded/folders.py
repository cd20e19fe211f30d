"""A pod's folders and environment: what a container runtime would mount and set, as paths of this machine.

A process cannot have a mount of its own here, so a mount path at the start of an environment value or an argument becomes
the real folder. The program never sees the difference, because it reads every path from its environment.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from infra.embedded.desired import MARKER, Container, Template, Volume
from infra.embedded.processes import Membership
from infra.embedded.state import State

_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_FIELD = re.compile(r"\{field:([A-Za-z.]+)\}")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class PodIdentity:
    """Who a pod is and where it lives."""

    state: State
    region: str
    namespace: str
    name: str
    address: str

    @property
    def key(self) -> str:
        """Its name among all pods of the state folder."""
        return f"{self.region or 'global'}.{self.namespace}.{self.name}"

    @property
    def folder(self) -> Path:
        """Scratch folder, removed with the pod. Its name is short and, like the address, no other living pod's."""
        return self.state.pods / "-".join(self.address.split(".")[2:])

    def log(self, container: str) -> Path:
        """Log file of a container's current run."""
        return self.state.logs / f"{self.key}.{container}.log"

    def membership(self, container: str, session: int = 0) -> Membership:
        """Tells the processes of a container from all others."""
        return Membership(f"{self.state.tag}/{self.key}/{container}", self.folder / container, session)

    def field(self, path: str) -> str:
        """Value of a `fieldRef`."""
        return {"metadata.name": self.name, "metadata.namespace": self.namespace, "status.podIP": self.address}[path]


FIELDS = frozenset({"metadata.name", "metadata.namespace", "status.podIP"})
"""The fieldRefs that `PodIdentity.field` answers."""


def command_line(container: Container, template: Template, pod: PodIdentity) -> tuple[list[str], dict[str, str]]:
    """The arguments and the whole environment of a container's process. Makes the folders that they name.

    Raises:
        OSError: a folder or file cannot be made.
    """
    (pod.folder / container.name).mkdir(mode=0o700, parents=True, exist_ok=True)
    folders = {name: _folder(name, volume, pod) for name, volume in template.volumes.items()}
    mounts = {mount.path.rstrip("/"): folders[mount.volume] / mount.sub_path for mount in container.mounts}
    venv_bin = container.venv or str(Path(sys.executable).parent)
    env = {
        "PATH": f"{venv_bin}:{SYSTEM_PATH}",
        "HOME": str(pod.folder / container.name),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "HOSTNAME": pod.name,
        **container.host_env,
    }
    for name, value in container.env.items():
        env[name] = _expanded(_mounted(_FIELD.sub(lambda match: pod.field(match[1]), value), mounts), env)
    # Last, because a process that changes its title overwrites its environment from the front.
    env[MARKER] = pod.membership(container.name).marker
    return [_expanded(_mounted(argument, mounts), env) for argument in container.command], env


def _expanded(value: str, env: dict[str, str]) -> str:
    """`$(NAME)` replaced by the variable, left alone when there is none, as Kubernetes does."""
    return _REFERENCE.sub(lambda match: env.get(match[1], match[0]), value)


def _mounted(value: str, mounts: dict[str, Path]) -> str:
    """`value` with the longest mount path that it begins with replaced by that mount's folder."""
    for path in sorted(mounts, key=len, reverse=True):
        if value == path or value.startswith(f"{path}/"):
            return f"{mounts[path]}{value[len(path) :]}"
    return value


def _folder(name: str, volume: Volume, pod: PodIdentity) -> Path:
    if volume.kind == "retained":
        folder = pod.state.volumes / volume.key.format(pod=pod.name)
    else:
        folder = pod.state.short_pods / pod.folder.name / "volumes" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file, text in volume.files.items():
        target = folder / file
        if not target.exists() or target.read_text() != text:
            temporary = target.with_name(f".{file}.new")
            temporary.touch(mode=0o600)
            temporary.write_text(text)
            temporary.replace(target)
    return folder
