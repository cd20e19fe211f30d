"""Whether a checkpoint of Pulumi's is whole: what the engine would refuse it for, found before anybody depends on it.

A checkpoint is JSON, plain or gzipped, that a backend of one's own keeps at `.pulumi/stacks/<project>/<stack>.json`. Rules are
those by which the engine verifies a snapshot (`pkg/resource/deploy/snapshot.go`): the manifest's magic is the SHA-256 of its
version; what a resource refers to (parent, dependencies, provider) comes before it; one URN stands for one resource that is not
being deleted.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of its stack."""

    time: str
    """When the engine wrote it; "" where a stack was never updated."""
    num_resources: int
    num_pending: int
    """Operations that were begun and not ended: an update was killed. `pulumi refresh` settles them."""
    secrets_provider: str
    faults: tuple[str, ...]
    """Empty: the engine takes it."""


def read_checkpoint(data: bytes) -> Checkpoint:
    """What `data` says; one that cannot be read has a fault and nothing else.

    >>> read_checkpoint(b"{}").faults
    ('it has no checkpoint',)
    """
    try:
        document = json.loads(gzip.decompress(data) if data.startswith(GZIP) else data)
    except (ValueError, OSError, EOFError) as error:
        return _damaged(f"it cannot be read: {error}")
    checkpoint = document.get("checkpoint") if isinstance(document, Mapping) else None
    if not isinstance(checkpoint, Mapping):
        return _damaged("it has no checkpoint")
    latest = checkpoint.get("latest") or {}
    manifest, resources = latest.get("manifest") or {}, latest.get("resources") or []
    return Checkpoint(
        time=str(manifest.get("time", "")),
        num_resources=len(resources),
        num_pending=len(latest.get("pending_operations") or []),
        secrets_provider=_secrets_provider(latest),
        faults=(*_manifest_faults(manifest), *_resource_faults(resources)),
    )


def _damaged(fault: str) -> Checkpoint:
    return Checkpoint("", 0, 0, "", (fault,))


def _secrets_provider(latest: Mapping[str, Any]) -> str:
    provider = latest.get("secrets_providers") or {}
    return str((provider.get("state") or {}).get("url") or provider.get("type") or "")


def _manifest_faults(manifest: Mapping[str, Any]) -> list[str]:
    version = str(manifest.get("version", ""))
    magic = hashlib.sha256(version.encode()).hexdigest() if version else ""
    return [] if str(manifest.get("magic", "")) == magic else ["its magic is not that of its version: it was changed or cut"]


def _resource_faults(resources: Iterable[Mapping[str, Any]]) -> list[str]:
    faults: list[str] = []
    before: set[str] = set()
    alive: set[str] = set()
    for resource in resources:
        urn = str(resource.get("urn", ""))
        if not urn:
            faults.append("a resource has no URN")
            continue
        provider = str(resource.get("provider", "")).rpartition("::")[0]
        named = [("parent", resource.get("parent")), ("provider", provider)]
        named += [("dependency", dependency) for dependency in resource.get("dependencies") or ()]
        faults += [f"{urn}: its {what} {its} does not come before it" for what, its in named if its and its not in before]
        if not resource.get("delete"):
            if urn in alive:
                faults.append(f"{urn}: it is there twice")
            alive.add(urn)
        before.add(urn)
    return faults
