"""`make image`: builds the serving image of a variant, and writes beside it what it holds and of what it was made.

    .image/<variant>/oci/              the image, as an OCI layout: `skopeo copy oci:… docker://<repository>` sends it
                     digest            for `flotilla image pin`
                     sbom.cdx.json     CycloneDX
                     licences.txt
                     provenance.json   in-toto, SLSA 1.0

Each layer below our code (Debian, torch, other packages) is built once for what its lock says; a change of our code builds and
moves the last one alone.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

from serving.errors import UserError
from serving.image import base, contents, tree
from serving.image.builders import Builder, Layer, Recipe, choose, graft
from serving.image.secrets import find_secrets
from serving.image.tree import REPOSITORY, SitePart, Variant

HERE = Path(__file__).parent
Part = Literal["debian", SitePart]
PARTS: Mapping[Part, str] = {
    "debian": "Debian: C library, Python, certificates",
    "torch": "torch and NVIDIA's libraries",
    "packages": "vLLM and other packages",
}
"""The layers below our code, lowest first, and what each holds."""
OWN_LAYER = "Flotilla"
COMPONENTS = "components.json"
PYTHON_VERSION = (3, 11)
"""Of Debian's package; wheels and byte code must be for it."""
_NS_PER_S = 10**9
HEALTH_CHECK = {
    "Test": ["CMD", "python", "-m", "serving.health"],
    "Interval": 10 * _NS_PER_S,
    "Timeout": 4 * _NS_PER_S,
    "StartPeriod": 60 * _NS_PER_S,
}
"""Kubernetes asks each container itself; this is for whoever runs the image by hand, and asks the ops port of the role that runs.
It is not in the Containerfile because buildah leaves HEALTHCHECK out of OCI images."""


@dataclass(frozen=True)
class Image:
    """An image that was built."""

    variant: Variant
    digest: str
    layers: tuple[Layer, ...]
    took_s: float

    @property
    def compressed_bytes(self) -> int:
        """What a node pulls."""
        return sum(layer.compressed_bytes for layer in self.layers)


def build(variant: Variant, work: Path, repository: Path = REPOSITORY) -> Image:
    """Builds the image of `repository` below `work`.

    Raises:
        UserError: there is no builder, a part cannot be had, or something is in the image that must not be.
    """
    if sys.version_info[:2] != PYTHON_VERSION:
        raise UserError(
            f"this is Python {sys.version_info[0]}.{sys.version_info[1]}, the image's is 3.11", "run it with Python 3.11"
        )
    began_s = time.monotonic()
    builder = choose(work / "storage")
    folder = work / variant
    folder.mkdir(parents=True, exist_ok=True)
    revision, epoch = source_state()
    lower = [_lower_layer(builder, variant, part, work) for part in PARTS]
    for old in {path for part in PARTS for path in folder.glob(f"{part}-*")} - set(lower):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        context = Path(made)
        wheel = tree.make_app(context / "app", epoch, repository)
        _refuse_secrets(context / "app")
        arguments = {
            "VARIANT": variant,
            "VERSION": metadata.version("flotilla"),
            "REVISION": revision,
            "CREATED": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        builder.build(Recipe(HERE / "Containerfile", context, arguments, epoch), context / "layout")
        further = {"Healthcheck": HEALTH_CHECK}
        digest, layers = graft([layer / "oci" for layer in lower], context / "layout", folder / "oci", further)
        components = [item for layer in lower for item in contents.load_components(layer / COMPONENTS)]
        _describe(variant, folder, components, digest, revision, epoch, wheel)
    (folder / "digest").write_text(f"{digest}\n")
    return Image(variant, digest, layers, time.monotonic() - began_s)


def layer_key(variant: Variant, part: Part) -> str:
    """Digest of all that a lower layer is made of."""
    names = ("Containerfile.layer", "base.py", "tree.py", "contents.py", "secrets.py")
    content = [variant.encode(), part.encode(), *((HERE / name).read_bytes() for name in names)]
    if part == "debian":
        content += [base.PACKAGES.read_bytes(), base.LOCK.read_bytes()]
    else:
        content += [tree.requirements_of(variant, part).encode()]
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:16]


def source_state() -> tuple[str, int]:
    """The revision that is built, and the time of its commit, which every file gets."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"git: {done.stderr.strip()}", "build from a clone: the image names its revision and takes its time")
        return done.stdout.strip()

    is_changed = bool(git("status", "--porcelain", "--", "serving", "policies", "requirements", "pyproject.toml"))
    return f"{git('rev-parse', 'HEAD')}{'-changed' if is_changed else ''}", int(git("log", "-1", "--format=%ct"))


def _lower_layer(builder: Builder, variant: Variant, part: Part, work: Path) -> Path:
    """The folder of a layer below our code: an OCI layout, and the list of what it holds. It is there whole or not at all."""
    kept = work / variant / f"{part}-{layer_key(variant, part)}"
    if kept.is_dir():
        return kept
    with tempfile.TemporaryDirectory(dir=kept.parent) as made:
        context = Path(made)
        root = context / "layer"
        root.mkdir()
        if part == "debian":
            components = contents.debian_components(base.unpack(variant, root, work / "debs"))
        else:
            tree.make_site(variant, part, root)
            components = contents.python_components(root / tree.HOME / "site")
        _refuse_secrets(root)
        finished = context / "finished"
        finished.mkdir()
        # One time whatever the revision is, or each commit would move gigabytes.
        builder.build(Recipe(HERE / "Containerfile.layer", context, {}, epoch=0), finished / "oci")
        contents.save_components(finished / COMPONENTS, components)
        finished.rename(kept)
    return kept


def _refuse_secrets(root: Path) -> None:
    found = list(find_secrets(root))
    if found:
        raise UserError("\n".join(f"in the image: {line}" for line in found), "remove it from what is packed, and revoke it")


def _describe(
    variant: Variant, folder: Path, lower: Sequence[contents.Component], digest: str, revision: str, epoch: int, wheel: Path
) -> None:
    version = metadata.version("flotilla")
    components = [contents.Component("flotilla", version, "Apache-2.0", f"pkg:pypi/flotilla@{version}"), *lower]
    name = f"flotilla-serving-{variant}"
    materials = {path.name: path for path in (base.LOCK, tree.lock_of(variant), HERE / "Containerfile", wheel)}
    (folder / "sbom.cdx.json").write_text(contents.sbom(name, version, components, epoch))
    (folder / "licences.txt").write_text(contents.licence_table(components))
    (folder / "provenance.json").write_text(contents.provenance(name, digest, revision, {"variant": variant}, materials))


def size_table(image: Image) -> str:
    """Layers and sizes, as a table of Markdown."""
    names = [*PARTS.values(), OWN_LAYER]
    rows = [*zip(names, (layer.compressed_bytes for layer in image.layers), strict=True), ("together", image.compressed_bytes)]
    return "\n".join(["| layer | MB as pulled |", "|---|---:|", *(f"| {name} | {size / 1e6:,.1f} |" for name, size in rows)])


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="make image", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--variant", choices=get_args(Variant), default="cpu")
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".image", help="where images and their storage are kept")
    parser.add_argument("--lock", action="store_true", help="pin the newest Debian packages in debian.lock, and build nothing")
    given = parser.parse_args(arguments)
    try:
        if given.lock:
            base.write_lock(sorted({item.name for variant in get_args(Variant) for item in base.wanted(variant)}))
            return 0
        image = build(given.variant, given.work.absolute())
    except UserError as error:
        print(f"{error.message}\n  → {error.hint}", file=sys.stderr)  # noqa: T201
        return 2
    print(size_table(image))  # noqa: T201
    print(f"{image.digest}  {image.variant}, {image.took_s:.0f} s")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
