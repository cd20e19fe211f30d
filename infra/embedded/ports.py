"""Whether the ports that a region needs are free, found out before anything starts, and who has one that is not."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from serving.errors import UserError

HOST = "127.0.0.1"
_LISTENING = "0A"


def check_host_ports(wanted: Mapping[int, str]) -> None:
    """Passes when every port of 127.0.0.1 in `wanted` can be had; the values say what for.

    Raises:
        UserError: one is taken; the message names it and, where the system shows it, the process that has it.
    """
    for port, purpose in sorted(wanted.items()):
        if not is_free(HOST, port):
            raise UserError(
                f"port {port} of {HOST}, wanted for {purpose}, is taken{_by_whom(port)}",
                "end that process, or move all our ports with --port-offset",
            )


def check_pod_ports(address: str, ports: Iterable[int]) -> None:
    """Passes when `address`, one of ours that nobody uses, can have every port in `ports`.

    Raises:
        UserError: somebody listens on one at every address of this machine.
    """
    for port in sorted(set(ports)):
        if not is_free(address, port):
            raise UserError(
                f"port {port} is taken on every address of this machine{_by_whom(port)}, and pods need it on theirs",
                "bind that process to 127.0.0.1, or end it",
            )


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: connections that linger are no obstacle
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def free_port(address: str, preferred: int) -> int:
    """`preferred` if it is free at `address`, else one that is."""
    if is_free(address, preferred):
        return preferred
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _by_whom(port: int) -> str:
    """` by NAME (pid N)`; empty where the system does not show it."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if any(str(entry.readlink()) in inodes for entry in (folder / "fd").iterdir()):
                    return f" by {(folder / 'comm').read_text().strip()} (pid {folder.name})"
            except OSError:
                continue
    return ""
