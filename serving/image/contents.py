"""What is in the image, for people who must answer for it: components and licences (CycloneDX), and of what it was made (SLSA).

Both documents depend on the content alone: two builds of one revision give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from serving.errors import UserError
from serving.image.base import Package

ALLOWED = re.compile(
    r"apache|\bmit\b|mit-|bsd|isc\b|\bpsf|python software foundation|unlicense|0bsd|cc0|mpl|mozilla|zlib|lgpl|hpnd"
    r"|nvidia|intel|osi approved",
    re.IGNORECASE,
)
"""Licences under which this software may be used and passed on commercially. LGPL: used as a library, unchanged. NVIDIA and
Intel: run-time libraries that their own terms let one pass on."""
REVIEWED: Mapping[str, str] = {
    # Packages whose metadata names no licence, or none that a rule can read; read by hand in November 2026.
    "setuptools": "MIT",
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "oss-harmony": "Apache-2.0",
}
PROPRIETARY = {"Other/Proprietary License": "LicenseRef-NVIDIA-Proprietary"}


@dataclass(frozen=True)
class Component:
    """A part of the image."""

    name: str
    version: str
    licence: str
    purl: str
    """https://github.com/package-url/purl-spec"""


def python_components(site: Path) -> list[Component]:
    """Every Python package below `site`, by name.

    Raises:
        UserError: a licence is unknown or not allowed; every such package is named.
    """
    found: list[Component] = []
    refused: list[str] = []
    for distribution in metadata.distributions(path=[str(site)]):
        name, version = distribution.metadata["Name"].lower().replace("_", "-"), distribution.version
        licence = licence_of(name, distribution.metadata)
        if not ALLOWED.search(licence):
            refused.append(f"{name} {version}: licence {licence or 'not stated'}")
        found.append(Component(name, version, licence, f"pkg:pypi/{name}@{version}"))
    if refused:
        raise UserError("\n".join(sorted(refused)), "leave it out, or read its licence and note it in serving/image/contents.py")
    return sorted(found, key=lambda item: item.name)


def licence_of(name: str, told: Any) -> str:
    """The licence that a package's metadata names; the expression first, then classifiers, then the free text's first line."""
    if name in REVIEWED:
        return REVIEWED[name]
    classifiers = [item.rpartition(" :: ")[2] for item in told.get_all("Classifier") or () if item.startswith("License ::")]
    free = (told.get("License") or "").strip().splitlines()
    licence = told.get("License-Expression") or "; ".join(classifiers) or (free[0] if free else "")
    return PROPRIETARY.get(licence, licence) if name.startswith(("nvidia", "cuda", "intel")) else licence


def debian_components(packages: Iterable[Package]) -> list[Component]:
    """The packages of the base; their licences are the files of /usr/share/doc/<name>/copyright in the image."""
    return [
        Component(
            item.name, item.version, f"LicenseRef-debian-{item.name}", f"pkg:deb/debian/{item.name}@{item.version}?arch=amd64"
        )
        for item in packages
    ]


def sbom(image: str, version: str, components: Sequence[Component], epoch: int) -> str:
    """A CycloneDX 1.6 document."""
    listed = [
        {
            "type": "library",
            "bom-ref": item.purl,
            "name": item.name,
            "version": item.version,
            "purl": item.purl,
            "licenses": [{"license": {"name": item.licence}}],
        }
        for item in components
    ]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, ' '.join(item.purl for item in components))}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "container", "bom-ref": image, "name": image, "version": version},
        },
        "components": listed,
    }
    return json.dumps(document, indent=1) + "\n"


def provenance(image: str, digest: str, revision: str, parameters: Mapping[str, str], materials: Mapping[str, Path]) -> str:
    """An in-toto statement with SLSA provenance 1.0: what was made, by what, of which files."""
    resolved = [
        {"uri": f"file:{name}", "digest": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}
        for name, path in sorted(materials.items())
    ]
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": image, "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://flotilla.dev/image/v1",
                "externalParameters": dict(parameters),
                "resolvedDependencies": [{"uri": "git", "digest": {"gitCommit": revision}}, *resolved],
            },
            "runDetails": {"builder": {"id": "make image"}},
        },
    }
    return json.dumps(document, indent=1) + "\n"


def save_components(path: Path, components: Sequence[Component]) -> None:
    """Keeps what the lower layers hold, for builds that find them there."""
    path.write_bytes(msgspec.json.encode(components))


def load_components(path: Path) -> list[Component]:
    """What `save_components` kept."""
    return msgspec.json.decode(path.read_bytes(), type=list[Component])


def licence_table(components: Sequence[Component]) -> str:
    """Licence and package, a line each."""
    width = max(len(item.name) for item in components)
    return "".join(f"{item.name:<{width}}  {item.version:<24}  {item.licence}\n" for item in components)
