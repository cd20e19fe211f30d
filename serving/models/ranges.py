"""Files out of a bucket in parallel ranges, each part written to its place; a part that has arrived is not fetched again.

    <folder>/.partial/<name>         a file on its way, at its full length
    <folder>/.partial/<name>.parts   the size of its parts, then the number of each that has arrived

<name> is a digest of path and content, so parts of another release, or of another attempt at it, never mix.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from serving.models.documents import FetchError, reason
from serving.models.files import Progress
from serving.models.manifest import ReleaseFile
from serving.models.parallel import in_parallel

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

READ_CHUNK_BYTES = 1024 * 1024
PART_ATTEMPTS = 3
RETRY_DELAY_S = 0.2
REPORT_EVERY_S = 0.2


class FetchStoppedError(FetchError):
    """The caller asked to stop; what has arrived stays for the next time."""


@dataclass
class RangeFetcher:
    """Fetches files of one release into one folder, and counts what arrives."""

    client: S3Client
    bucket: str
    prefix: str
    folder: Path
    part_bytes: int
    concurrency: int
    on_progress: Callable[[Progress], None]
    stop: threading.Event
    fetched_bytes: int = 0
    expected_bytes: int = 0
    _reported_at_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fetch(self, files: Sequence[ReleaseFile]) -> None:
        """Brings all of `files`; each takes its own name once all its parts are there. Their digests are not looked at.

        Raises:
            FetchStoppedError: `stop` was set.
            FetchError: an object is missing or not as long as it should be, or the disk is too small.
            OSError: the folder cannot be written to.
        """
        self._partial.mkdir(parents=True, exist_ok=True)
        parts = [part for file in files for part in self._missing_parts(file)]
        missing_bytes = sum(part.size_bytes for part in parts)
        free_bytes = shutil.disk_usage(self.folder).free
        if missing_bytes > free_bytes:
            raise FetchError(f"{self.folder}: {missing_bytes / 1e9:.1f} GB are to come, {free_bytes / 1e9:.1f} GB are free")
        self.expected_bytes = self.fetched_bytes + missing_bytes
        in_parallel(self._fetch_part, parts, self.concurrency)
        for file in files:
            target = self.folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            self._partial_file(file).replace(target)
            self._parts_log(file).unlink()

    def forget_partial(self) -> None:
        """Removes what is left of files on their way."""
        shutil.rmtree(self._partial, ignore_errors=True)

    @property
    def _partial(self) -> Path:
        return self.folder / ".partial"

    def _partial_file(self, file: ReleaseFile) -> Path:
        return self._partial / hashlib.sha256(f"{file.path}\0{file.sha256}".encode()).hexdigest()

    def _parts_log(self, file: ReleaseFile) -> Path:
        return self._partial_file(file).with_suffix(".parts")

    def _missing_parts(self, file: ReleaseFile) -> list[_Part]:
        """The parts of `file` still to come, its partial file prepared. Parts cut to another size are forgotten."""
        partial, log = self._partial_file(file), self._parts_log(file)
        header = f"part_bytes {self.part_bytes}"
        lines = log.read_text().splitlines() if log.is_file() and partial.is_file() else []
        if not lines or lines[0] != header:
            lines = [header]
            partial.write_bytes(b"")
            log.write_text(f"{header}\n")
        os.truncate(partial, file.size_bytes)
        arrived = {int(line) for line in lines[1:] if line.isdigit()}
        offsets = range(0, file.size_bytes, self.part_bytes)
        return [
            _Part(file, number, offset, min(self.part_bytes, file.size_bytes - offset))
            for number, offset in enumerate(offsets)
            if number not in arrived
        ]

    def _fetch_part(self, part: _Part) -> None:
        """One range into its place. A broken connection is tried again; an object of another length is not."""
        where = f"s3://{self.bucket}/{self.prefix}{part.file.path}"
        for attempt in range(1, PART_ATTEMPTS + 1):
            try:
                self._read_range(part, where)
                break
            except ClientError as error:
                raise FetchError(f"{where}: {reason(error)}") from error
            except BotoCoreError as error:
                if attempt == PART_ATTEMPTS:
                    raise FetchError(f"{where}: {reason(error)}") from error
                time.sleep(RETRY_DELAY_S * attempt)
        with self._lock, self._parts_log(part.file).open("a") as log:
            log.write(f"{part.number}\n")

    def _read_range(self, part: _Part, where: str) -> None:
        last = part.offset + part.size_bytes - 1
        answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + part.file.path, Range=f"bytes={part.offset}-{last}")
        total = answer.get("ContentRange", "").rpartition("/")[2]
        if total != str(part.file.size_bytes):
            raise FetchError(f"{where}: has {total or 'an unknown number of'} bytes, the manifest says {part.file.size_bytes}")
        offset = part.offset
        descriptor = os.open(self._partial_file(part.file), os.O_WRONLY)
        try:
            for chunk in answer["Body"].iter_chunks(READ_CHUNK_BYTES):
                if self.stop.is_set():
                    raise FetchStoppedError(f"stopped while fetching {part.file.path}")
                _write_at(descriptor, chunk, offset)
                offset += len(chunk)
                self._count(len(chunk))
        finally:
            os.close(descriptor)
            answer["Body"].close()
        if offset != last + 1:
            raise FetchError(f"{where}: the range {part.offset}-{last} ended at byte {offset}")

    def _count(self, num_bytes: int) -> None:
        """Counts bytes, and tells the caller now and then."""
        with self._lock:
            self.fetched_bytes += num_bytes
            now = time.monotonic()
            if now - self._reported_at_s >= REPORT_EVERY_S or self.fetched_bytes >= self.expected_bytes:
                self._reported_at_s = now
                self.on_progress(Progress("fetch", self.fetched_bytes, self.expected_bytes))


@dataclass(frozen=True)
class _Part:
    file: ReleaseFile
    number: int
    offset: int
    size_bytes: int


def _write_at(descriptor: int, chunk: bytes, offset: int) -> None:
    view = memoryview(chunk)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
