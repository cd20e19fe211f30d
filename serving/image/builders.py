"""The program that turns folders into an image: docker, podman or buildah, whichever is here. None needs a registry.

Each gives every file of a layer one time (`SOURCE_DATE_EPOCH`), and writes an OCI layout: a folder named by digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from serving.errors import UserError

BUILD_TIMEOUT_S = 3600
TAG = "localhost/flotilla-image"
WAYS_OUT = "install buildah (`apt-get install buildah`, no daemon needed), podman, or docker with buildx"


@dataclass(frozen=True)
class Recipe:
    """One Containerfile, the folders it copies, and what it is told."""

    containerfile: Path
    context: Path
    arguments: Mapping[str, str]
    epoch: int


class Builder(Protocol):
    """What `make image` asks of a builder."""

    def build(self, recipe: Recipe, layout: Path) -> None:
        """Builds it, and writes it as an OCI layout to the new folder `layout`."""


@dataclass(frozen=True)
class Buildah:
    """buildah and podman, which share storage and options. `storage` is a folder of ours, so nobody's images are touched."""

    name: str
    storage: Path
    driver: str

    @property
    def _command(self) -> list[str]:
        store = ["--root", str(self.storage / "root"), "--runroot", str(self.storage / "run"), "--storage-driver", self.driver]
        return [self.name, *store]

    def build(self, recipe: Recipe, layout: Path) -> None:
        """Builds it without a network: all that it needs lies in the folders."""
        command = [*self._command, "build", "--timestamp", str(recipe.epoch), "--format", "oci", "--layers=false", "--pull=never"]
        command += ["--disable-compression=false"]  # its own default is for its own storage: layers would be pulled uncompressed
        command += [part for name, value in sorted(recipe.arguments.items()) for part in ("--build-arg", f"{name}={value}")]
        told = ["--file", str(recipe.containerfile), str(recipe.context)]
        if self.name == "buildah":  # straight into the layout; through its own storage, gigabytes are written twice more
            run([*command, "--isolation", "chroot", "--tag", f"oci:{layout}:latest", *told])
            return
        run([*command, "--network", "none", "--tag", TAG, *told])
        run([*self._command, "push", "--quiet", TAG, f"oci:{layout}:latest"])
        run([*self._command, "rmi", "--force", TAG])


@dataclass(frozen=True)
class Docker:
    """docker with buildx: BuildKit sets the times of files as well as of layers."""

    def build(self, recipe: Recipe, layout: Path) -> None:
        """Builds it and writes it in one step."""
        output = f"type=oci,dest={layout},tar=false,rewrite-timestamp=true,force-compression=true,compression=gzip"
        command = ["docker", "buildx", "build", "--provenance=false", "--sbom=false", "--network=none", "--output", output]
        command += [part for name, value in sorted(recipe.arguments.items()) for part in ("--build-arg", f"{name}={value}")]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(recipe.epoch)}
        run([*command, "--file", str(recipe.containerfile), str(recipe.context)], environment)


def choose(storage: Path) -> Builder:
    """The first of buildah, podman and docker that works here.

    Raises:
        UserError: none does.
    """
    for name in ("buildah", "podman"):
        if shutil.which(name):
            return Buildah(name, storage, _driver(name, storage))
    if shutil.which("docker") and _answers(["docker", "buildx", "version"]) and _answers(["docker", "info"]):
        return Docker()
    told = "docker is here, but its daemon or buildx is not" if shutil.which("docker") else "no image builder is here"
    raise UserError(told, WAYS_OUT)


def _driver(name: str, storage: Path) -> str:
    """`overlay` where the kernel and the disk allow it; `vfs` copies every layer whole, and works everywhere."""
    probe = [name, "--root", str(storage / "root"), "--runroot", str(storage / "run"), "--storage-driver", "overlay", "info"]
    return "overlay" if _answers(probe) else "vfs"


def _answers(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Standard output of `command`.

    Raises:
        UserError: it fails; its last words are told.
    """
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, env=environment, check=False)
    if done.returncode:
        raise UserError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-600:]}", "see its message above")
    return done.stdout


@dataclass(frozen=True)
class Layer:
    """A layer as a registry keeps it."""

    digest: str
    compressed_bytes: int


def graft(
    lower: Sequence[Path], upper: Path, layout: Path, further: Mapping[str, Any] | None = None
) -> tuple[str, tuple[Layer, ...]]:
    """Puts the layers of the image in `upper` onto those of `lower`, and returns the digest and the layers, lowest first.

    How the image starts is what `upper` says, and `further`. Blobs are linked, not copied or compressed again: for gigabytes that
    is the difference between a second and minutes.

    Raises:
        UserError: a layer is not compressed.
    """
    blobs = layout / "blobs/sha256"
    shutil.rmtree(layout, ignore_errors=True)
    blobs.mkdir(parents=True)
    manifest, config = _read(upper)
    layers: list[dict[str, Any]] = []
    diff_ids: list[str] = []
    history: list[dict[str, Any]] = []
    for source in (*lower, upper):
        part, part_config = _read(source)
        layers += part["layers"]
        diff_ids += part_config["rootfs"]["diff_ids"]
        history += part_config.get("history", ())
        for layer in part["layers"]:
            if not layer["mediaType"].endswith("gzip"):
                raise UserError(
                    f"a layer is {layer['mediaType']}, must be gzip: nodes would pull it whole", "use another builder"
                )
            name = layer["digest"].removeprefix("sha256:")
            if not (blobs / name).exists():
                os.link(source / "blobs/sha256" / name, blobs / name)
    config |= {"rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history}
    config["config"] |= further or {}
    manifest |= {"layers": layers, "config": {**manifest["config"], **_write_blob(blobs, config)}}
    entry = {"mediaType": manifest["mediaType"], **_write_blob(blobs, manifest)}
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_text(_json({"schemaVersion": 2, "manifests": [entry]}))
    return str(entry["digest"]), tuple(Layer(item["digest"], item["size"]) for item in layers)


def _read(layout: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and configuration of the one image in a layout."""

    def blob(digest: str) -> Any:
        return json.loads((layout / "blobs" / digest.replace(":", "/")).read_text())

    manifest = blob(json.loads((layout / "index.json").read_text())["manifests"][-1]["digest"])
    manifest.setdefault("mediaType", "application/vnd.oci.image.manifest.v1+json")
    return manifest, blob(manifest["config"]["digest"])


def _write_blob(blobs: Path, document: Any) -> dict[str, Any]:
    content = _json(document).encode()
    name = hashlib.sha256(content).hexdigest()
    (blobs / name).write_bytes(content)
    return {"digest": f"sha256:{name}", "size": len(content)}


def _json(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"), sort_keys=True)
