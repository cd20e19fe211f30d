"""What a file of a release may be: a safe relative path, of a kind that no loader executes.

Publisher and fetcher ask the same questions, so a release that could not be served is never published, and one that was
tampered with is refused before a byte of it is written.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from serving.models.manifest import ReleaseFile

ALLOWED_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".jinja", ".model", ".tiktoken", ".md"})
"""Weights as safetensors, tokenizers and settings as data. Pickles (`.bin`, `.pt`, `.pkl`) and `.py` run code when loaded."""

MAX_PATH_CHARS = 255


class ReleaseFileError(Exception):
    """A file that no release may hold; the message names it and says why."""


class Progress(msgspec.Struct, frozen=True):
    """How far a stage of converting, publishing or fetching is. `total` is 0 where it is not known yet."""

    stage: str
    done: int
    total: int
    unit: str = "bytes"
    """`bytes` or `steps`."""
    detail: str = ""


def check_release_path(path: str) -> None:
    """Passes for `model-00001.safetensors` and `tokenizer/vocab.json`.

    Raises:
        ReleaseFileError: the path is absolute, leaves the release, is not in its plainest form, or is of a kind that is refused.
    """
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or len(path) > MAX_PATH_CHARS or any(part in ("", ".", "..") for part in parts):
        raise ReleaseFileError(f"{path!r:.300} is not a plain relative path inside the release")
    if any(part.startswith(".") for part in parts) or parts[0] == "canaries" or path == "manifest.json":
        raise ReleaseFileError(f"{path!r} is a name that a release keeps for itself")
    if Path(path).suffix not in ALLOWED_SUFFIXES:
        raise ReleaseFileError(f"{path!r} is of a kind that is refused; allowed: {', '.join(sorted(ALLOWED_SUFFIXES))}")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_folder(folder: Path) -> tuple[ReleaseFile, ...]:
    """Every file below `folder` with its size and digest, by path.

    Raises:
        ReleaseFileError: a file is there that no release may hold, or none is.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            check_release_path(name)
            found.append(ReleaseFile(name, path.stat().st_size, digest(path)))
    if not found:
        raise ReleaseFileError(f"{folder} holds no files")
    return tuple(found)
