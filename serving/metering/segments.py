"""The files of a journal directory: their names, their states by suffix, and the writes that make a name durable.

    <source>-<epoch>-<seq>.open      being written, or left behind by a writer that died
    <source>-<epoch>-<seq>.seg       sealed: whole, durable, never changed again
    <source>-<epoch>-<seq>.shipped   marker: the archive and the ledger have the segment
    <source>-<epoch>-<seq>.torn      the original of a segment that was sealed without its damaged tail
    <source>-<epoch>-<seq>.corrupt   left behind and unreadable from its first byte
    <source>-<epoch>-<seq>.tmp       never acknowledged, may be deleted
    <source>.lock                    held (flock) by the writer as long as it lives; its text is the last epoch

POSIX makes a rename atomic, and durable once the directory is synced; every step below that others rely on syncs the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from serving.errors import UserError

OPEN = ".open"
SEALED = ".seg"
SHIPPED = ".shipped"
TORN = ".torn"
CORRUPT = ".corrupt"
TEMPORARY = ".tmp"
LOCK = ".lock"

_SOURCE = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_STEM = re.compile(r"(?P<source>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)-(?P<epoch>\d{13})-(?P<seq>\d{6,})")
_LOCK_POLL_S = 0.05


class JournalLocked(UserError):
    """Another process writes this journal."""


class SegmentName(NamedTuple):
    """What a segment's file name says. Names of one source sort by age."""

    source: str
    epoch: int
    seq: int

    @property
    def stem(self) -> str:
        """`gateway-0-0-1763852400000-000007` for source `gateway-0-0`."""
        return f"{self.source}-{self.epoch:013d}-{self.seq:06d}"

    @classmethod
    def of(cls, path: Path) -> SegmentName | None:
        """The name that `path` bears, whatever its suffix; None for other files."""
        match = _STEM.fullmatch(path.stem)
        return cls(match["source"], int(match["epoch"]), int(match["seq"])) if match else None


def check_source(source: str) -> str:
    """`source`, if it may stand in a file name and an object key.

    Raises:
        ValueError: it may not.
    """
    if not _SOURCE.fullmatch(source):
        raise ValueError(f"journal source {source!r} must be lower-case letters, digits, dots and dashes, such as gateway-0-0")
    return source


def list_segments(directory: Path, suffix: str, source: str | None = None) -> list[Path]:
    """The directory's segments in state `suffix`, oldest first within a source; of one writer, or of all."""
    found = []
    for path in directory.glob(f"*{suffix}"):
        name = SegmentName.of(path)
        if name is not None and source in (None, name.source):
            found.append((name, path))
    return [path for _, path in sorted(found)]


def sync_directory(directory: Path) -> None:
    """Make the directory's names durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`: a full disk or a signal may cut a write short.

    Raises:
        OSError: the disk is full or failing; part of `data` may stand in the file.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_durably(path: Path, data: bytes) -> None:
    """Give `path` the content `data`, at once and durably: after a crash it is there whole or not at all.

    Raises:
        OSError: the disk is full or failing; `path` is as it was.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):  # the first error tells what is wrong; what is left is swept at the next start
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


class WriterLock:
    """The right to write one source's segments. Freed by `release`, or by the kernel when the process dies in any way."""

    def __init__(self, directory: Path, source: str, descriptor: int) -> None:
        self.directory = directory
        self.source = source
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, directory: Path, source: str, wait_s: float = 0.0) -> WriterLock:
        """Take the lock, waiting up to `wait_s` for its holder to leave (a shipper holds it for moments while it takes over).

        Raises:
            JournalLocked: someone else still holds it.
            OSError: the directory cannot be written.
        """
        path = directory / f"{check_source(source)}{LOCK}"
        deadline = time.monotonic() + wait_s
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return cls(directory, source, descriptor)
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise JournalLocked(
                        f"journal {source} in {directory} is being written by another process",
                        "stop that gateway first, or give this one its own FLOTILLA_JOURNAL_DIR or pod name",
                    ) from error
                time.sleep(_LOCK_POLL_S)
            except OSError:
                os.close(descriptor)
                raise

    def next_epoch(self, now_ms: int) -> int:
        """An epoch greater than any before, even when the clock has gone back; durable before it is used."""
        text = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
        used = [int(text)] if text.isdecimal() else []
        used += [name.epoch for path in self.directory.iterdir() if (name := SegmentName.of(path)) and name.source == self.source]
        epoch = max([now_ms, *(before + 1 for before in used)])
        os.pwrite(self._descriptor, f"{epoch:013d}\n".encode(), 0)
        os.fsync(self._descriptor)
        return epoch

    def release(self) -> None:
        """Give the right up. The file stays: unlinking it would let two hold one name."""
        os.close(self._descriptor)
