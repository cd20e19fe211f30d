"""The state folder of one local region set: where each thing lies, and who may write.

```
lock           held by the one `up` or `down` that is at work     agent.lock     held by the node agent for as long as it lives
instance.json  port offset and ports, chosen once                  access.json    addresses and keys, for the other commands
desired.json   what `up` asks of the agent                         status.json    what the agent answers
graphs/        the stacks as last brought up                       logs/          a file a container, and its previous one
aws/           the emulated AWS                                    endpoints/     a file a Service
volumes/       retained volumes                                    pods/          scratch folders
faults/        what a drill does to a region
```
Every file is replaced whole, and private: some hold keys.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from infra.embedded.desired import Desired, Status
from serving.errors import UserError

MIN_FREE_BYTES = 2 * 1024**3
LOOKS = 10
"""Whoever looks at a lock has it for an instant, so one refusal says nothing."""
T = TypeVar("T")


class Instance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was chosen when the folder was first used, and is kept."""

    port_offset: int = 0
    aws_port: int = 0


class State:
    """A state folder. Making one touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.lock_file = self.root / "lock"
        self.agent_lock = self.root / "agent.lock"
        self.instance_file = self.root / "instance.json"
        self.access_file = self.root / "access.json"
        self.desired_file = self.root / "desired.json"
        self.status_file = self.root / "status.json"
        self.graphs = self.root / "graphs"
        self.logs = self.root / "logs"
        self.aws = self.root / "aws"
        self.endpoints = self.root / "endpoints"
        self.volumes = self.root / "volumes"
        self.pods = self.root / "pods"
        self.faults = self.root / "faults"
        self._digest = hashlib.sha256(str(self.root).encode()).digest()
        self.tag = self._digest.hex()[:12]
        """Tells this folder's processes from those of another."""
        self.shortcut = Path(tempfile.gettempdir()) / f"flotilla-{self.tag}"
        """Where `pods` can be reached by a short path; see `short_pods`."""

    @property
    def short_pods(self) -> Path:
        """The `pods` folder by a path that leaves room for a socket's name: Linux takes 107 characters for both together."""
        return self.shortcut if self.shortcut.is_symlink() and self.shortcut.readlink() == self.pods else self.pods

    def address(self, index: int) -> str:
        """The `index`-th loopback address of this folder, 1 to 4094. The block of 4096 follows from the folder's path, so that
        two folders have different ones but for one chance in 4,000."""
        assert 0 < index < 4095
        return f"127.{self._digest[0] % 254 + 1}.{(self._digest[1] & 0xF0) | index >> 8}.{index & 0xFF}"

    def prepare(self) -> None:
        """Makes the folders.

        Raises:
            UserError: no write access, or too little space.
        """
        try:
            for folder in (self.root, self.graphs, self.logs, self.aws, self.endpoints, self.volumes, self.pods, self.faults):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _explained(error, self.root) from error
        free_bytes = shutil.disk_usage(self.root).free
        if free_bytes < MIN_FREE_BYTES:
            raise UserError(
                f"{self.root}: {free_bytes / 1024**3:.1f} GiB free on its disk, must be {MIN_FREE_BYTES / 1024**3:.0f} or more",
                "free some space, or choose another folder with --state",
            )

    def instance(self) -> Instance:
        """What was chosen before; the defaults in a new folder."""
        return read(self.instance_file, Instance) or Instance()

    def desired(self) -> Desired:
        """The last desired state; empty in a new folder."""
        return read(self.desired_file, Desired) or Desired()

    def status(self) -> Status | None:
        """What the agent last wrote; only true while `agent_pid` answers."""
        return read(self.status_file, Status)

    def agent_pid(self) -> int:
        """The living agent's process id, or 0. The kernel drops its lock with it, so a stale file deceives nobody."""
        return holder(self.agent_lock)


def read(path: Path, model: type[T]) -> T | None:
    """The JSON document at `path`, or None where there is none.

    Raises:
        UserError: it is unreadable or not such a document.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=model)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(
            f"{path}: cannot be read: {error}", "if another version wrote it: `flotilla down`, then `flotilla up`"
        ) from error


def write(path: Path, data: bytes) -> None:
    """Replaces the file at `path` whole, readable by its owner alone.

    Raises:
        UserError: the disk is full or the folder not writable; the old file stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _explained(error, path) from error


def write_json(path: Path, document: object) -> None:
    """Replaces the JSON document at `path`; see `write`."""
    write(path, msgspec.json.format(msgspec.json.encode(document)) + b"\n")


@contextmanager
def exclusively(state: State) -> Iterator[None]:
    """Holds the folder for one `up` or `down`.

    Raises:
        UserError: another holds it; the message names its process.
    """
    with state.lock_file.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(
                f"another flotilla (pid {file.read().strip() or '?'}) is bringing {state.root} up or down",
                "wait for it, or use another folder with --state and --port-offset",
            ) from error
        _sign(file.fileno())
        try:
            yield
        finally:
            file.truncate(0)


def hold(path: Path) -> int | None:
    """Takes the lock file at `path` for the life of this process: its descriptor, or None if another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(LOOKS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            _sign(descriptor)
            return descriptor
    os.close(descriptor)
    return None


def holder(path: Path) -> int:
    """The process that holds the lock file at `path`, or 0."""
    try:
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read().strip() or 0)
    except FileNotFoundError:
        pass
    return 0


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def _explained(error: OSError, path: Path) -> UserError:
    if error.errno == errno.ENOSPC:
        return UserError(f"{path}: the disk is full", "free some space, or choose another folder with --state")
    return UserError(f"{path}: {error.strerror}", "mend its permissions, or choose another folder with --state")
