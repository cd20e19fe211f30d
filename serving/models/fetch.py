"""Brings a release from the region's bucket to this machine and proves that it is the one that was named.

    <cache>/releases/<model>/<release_id>/            the files, as the engine reads them
                                          .verified   written last: what was verified, and as which files
                                          .partial/   files on their way

Nothing is trusted before its SHA-256 is right: the manifest's must be the release's name, and each file's must be the
manifest's. A file that is wrong is fetched once more; if it is wrong again then the object is, and the fetch fails naming it.

A copy that was verified before is accepted without hashing when every file still has the size, the modification time and the
inode that it was verified with, since the last boot of the machine: after a crash of the machine, pages that never reached
the disk read as zeros under an unchanged time, so everything is hashed again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from serving.models.documents import FetchError, fetch_manifest, parse_manifest
from serving.models.files import Progress, digest
from serving.models.manifest import MANIFEST_NAME, Manifest, ReleaseFile, release_prefix
from serving.models.parallel import in_parallel
from serving.models.ranges import FetchStoppedError, RangeFetcher

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MARKER_NAME = ".verified"
MAX_HASHERS = 8
LOCK_POLL_S = 0.5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class FetchedRelease:
    """A verified release on this machine, and what it took."""

    folder: Path
    manifest: Manifest
    fetch_s: float
    fetched_bytes: int
    """Bytes that came over the network this time."""
    verify_s: float
    verified_bytes: int
    """Bytes that were hashed this time; 0 when the earlier verification was accepted."""


def fetch_release(
    client: S3Client,
    bucket: str,
    model: str,
    release_id: str,
    cache: Path,
    *,
    part_bytes: int,
    concurrency: int,
    on_progress: Callable[[Progress], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> FetchedRelease:
    """The release's files under `cache`, every one verified. Processes that ask for the same release take turns.

    Raises:
        FetchStoppedError: `stop` was set.
        FetchError: the release is not in the bucket, is not what its name says, holds what no release may, or does not fit
            on the disk.
    """
    folder = cache / "releases" / model / release_id
    prefix = release_prefix(model, release_id)
    fetcher = RangeFetcher(client, bucket, prefix, folder, part_bytes, concurrency, on_progress, stop or threading.Event())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock", fetcher.stop):
            manifest = _manifest(fetcher, model, release_id)
            if _is_verified(folder, manifest):
                return FetchedRelease(folder, manifest, 0.0, 0, 0.0, 0)
            began_s = time.monotonic()
            fetcher.fetch([file for file in manifest.files if not _has_size(folder, file)])
            fetched_s = time.monotonic()
            verified_bytes = _verify(fetcher, manifest)
            _write_whole(folder / MARKER_NAME, msgspec.json.encode(_fingerprint(folder, manifest)))
            fetcher.forget_partial()
            verify_s = time.monotonic() - fetched_s
            return FetchedRelease(folder, manifest, fetched_s - began_s, fetcher.fetched_bytes, verify_s, verified_bytes)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FetchError(f"no space left in {cache} for release {release_id[:12]} of {model}") from error
        raise FetchError(f"{error.filename or cache}: {error.strerror or error}") from error


def _manifest(fetcher: RangeFetcher, model: str, release_id: str) -> Manifest:
    """The local copy if it is there and right, which its digest alone decides; else the bucket's."""
    local = fetcher.folder / MANIFEST_NAME
    try:
        return parse_manifest(local.read_bytes(), model, release_id, str(local))
    except (FileNotFoundError, FetchError):
        manifest = fetch_manifest(fetcher.client, fetcher.bucket, model, release_id)
        _write_whole(local, manifest.encode())
        return manifest


def _verify(fetcher: RangeFetcher, manifest: Manifest) -> int:
    """Bytes hashed. A file that is wrong is fetched once more."""
    wrong = _wrong_files(fetcher, manifest.files)
    if wrong:
        _remove(fetcher.folder, wrong)
        fetcher.fetch(wrong)
        still_wrong = _wrong_files(fetcher, wrong)
        if still_wrong:
            _remove(fetcher.folder, still_wrong)
            names = ", ".join(f"{fetcher.prefix}{file.path}" for file in still_wrong)
            raise FetchError(f"s3://{fetcher.bucket}: corrupt, twice not the bytes that the manifest names: {names}")
    return sum(file.size_bytes for file in (*manifest.files, *wrong))


def _wrong_files(fetcher: RangeFetcher, files: Sequence[ReleaseFile]) -> list[ReleaseFile]:
    def is_wrong(file: ReleaseFile) -> bool:
        if fetcher.stop.is_set():
            raise FetchStoppedError(f"stopped while verifying {file.path}")
        return not _has_size(fetcher.folder, file) or digest(fetcher.folder / file.path) != file.sha256

    fetcher.on_progress(Progress("verify", 0, sum(file.size_bytes for file in files)))
    verdicts = in_parallel(is_wrong, files, MAX_HASHERS)
    return [file for file, wrong in zip(files, verdicts, strict=True) if wrong]


def _has_size(folder: Path, file: ReleaseFile) -> bool:
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.size_bytes


def _remove(folder: Path, files: Sequence[ReleaseFile]) -> None:
    for file in files:
        (folder / file.path).unlink(missing_ok=True)


def _fingerprint(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What tells a file that was verified from one that was touched since."""
    stats = {file.path: (folder / file.path).stat() for file in manifest.files}
    files = {path: [stat.st_size, stat.st_mtime_ns, stat.st_ino] for path, stat in stats.items()}
    return {"boot_id": _BOOT_ID.read_text().strip(), "files": files}


def _is_verified(folder: Path, manifest: Manifest) -> bool:
    try:
        return bool(msgspec.json.decode((folder / MARKER_NAME).read_bytes()) == _fingerprint(folder, manifest))
    except (OSError, msgspec.MsgspecError):
        return False


def _write_whole(path: Path, content: bytes) -> None:
    """All of `content` or, after a crash, nothing of it."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


@contextmanager
def _locked(path: Path, stop: threading.Event) -> Iterator[None]:
    """Holds the lock of a release's folder; the kernel gives it back if this process dies."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stop.wait(LOCK_POLL_S):
                    raise FetchStoppedError(f"stopped while another process fetches into {path.parent}") from None
        yield
