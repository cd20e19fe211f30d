"""What containers wrote, of one workload or of all, as it stands or as it grows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from infra.embedded.state import State
from serving.errors import UserError

POLL_S = 0.25
CHUNK_BYTES = 256 * 1024


def log_files(state: State, workload: str) -> dict[str, Path]:
    """Log files by `pod/container`, oldest change first: those whose workload, pod or container is `workload`; empty means all.

    Raises:
        UserError: there is none such.
    """
    found = {}
    for path in sorted(state.logs.glob("*.log"), key=lambda path: path.stat().st_mtime):
        parts = path.name.removesuffix(".log").split(".")
        if len(parts) == 1:
            label, names = parts[0], {parts[0]}
        else:
            region, _, pod, container = parts
            label, names = f"{pod}/{container}" if region == "global" else f"{region}/{pod}/{container}", {pod, container}
        if not workload or workload in names or any(name.startswith(f"{workload}-") for name in names):
            found[label] = path
    if not found:
        raise UserError(f"no logs of {workload or 'anything'} in {state.logs}", "`flotilla status` lists what runs")
    return found


def tail(path: Path, num_lines: int) -> list[str]:
    """The last lines of a file, as many as were asked for or as the last 256 KiB hold."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - CHUNK_BYTES))
        text = file.read().decode(errors="replace")
    return text.splitlines()[-num_lines:] if num_lines else []


def follow(files: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """(label, line) for every line written from now on, for ever. A file that starts anew, after a restart, is read from its
    start."""
    offsets = {label: path.stat().st_size for label, path in files.items()}
    inodes = {label: path.stat().st_ino for label, path in files.items()}
    while True:
        for label, path in files.items():
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            if stat.st_ino != inodes[label] or stat.st_size < offsets[label]:
                inodes[label], offsets[label] = stat.st_ino, 0
            if stat.st_size > offsets[label]:
                with path.open("rb") as file:
                    file.seek(offsets[label])
                    data = file.read()
                whole, newline, _ = data.rpartition(b"\n")
                offsets[label] += len(whole) + len(newline)
                if newline:
                    yield from ((label, line) for line in whole.decode(errors="replace").split("\n"))
        time.sleep(POLL_S)
