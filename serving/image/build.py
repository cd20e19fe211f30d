"""`make image`: builds the serving image of a variant, and writes beside it what it holds and of what it was made.

    .image/<variant>/oci/              the image, as an OCI layout: `skopeo copy oci:… docker://<repository>` sends it
                     digest            for `flotilla image pin`
                     sbom.cdx.json     CycloneDX
                     licences.txt
                     provenance.json   in-toto, SLSA 1.0

The lower layers (Debian, Python packages) are built once for what their locks say; a change of our code builds and moves the last
one alone.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import get_args

from serving.errors import UserError
from serving.image import base, contents, tree
from serving.image.builders import Builder, Layer, Recipe, choose, graft
from serving.image.secrets import find_secrets
from serving.image.tree import REPOSITORY, Variant

HERE = Path(__file__).parent
COMPONENTS = "components.json"
RUNTIME_LAYERS, OWN_LAYER = "Debian, Python packages", "Flotilla"
GIB = 2**30


@dataclass(frozen=True)
class Image:
    """An image that was built."""

    variant: Variant
    digest: str
    layers: tuple[Layer, ...]
    took_s: float
    had_runtime: bool
    """Whether the lower layers were there already."""

    @property
    def compressed_bytes(self) -> int:
        """What a node pulls."""
        return sum(layer.compressed_bytes for layer in self.layers)


def build(variant: Variant, work: Path, repository: Path = REPOSITORY) -> Image:
    """Builds the image of `repository` below `work`.

    Raises:
        UserError: there is no builder, a part cannot be had, or something is in the image that must not be.
    """
    began_s = time.monotonic()
    builder = choose(work / "storage")
    folder = work / variant
    folder.mkdir(parents=True, exist_ok=True)
    revision, epoch = source_state()
    runtime = folder / f"runtime-{runtime_key(variant)}"
    had_runtime = runtime.is_dir()
    if not had_runtime:
        _build_runtime(builder, variant, runtime, work / "debs")
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
        digest, layers = graft(runtime / "oci", context / "layout", folder / "oci")
        _describe(variant, folder, runtime / COMPONENTS, digest, revision, epoch, wheel)
    (folder / "digest").write_text(f"{digest}\n")
    return Image(variant, digest, layers, time.monotonic() - began_s, had_runtime)


def runtime_key(variant: Variant) -> str:
    """Digest of all that the lower layers are made of."""
    parts = [base.PACKAGES, base.LOCK, tree.lock_of(variant), HERE / "Containerfile.runtime", HERE / "base.py", HERE / "tree.py"]
    content = b"\0".join(path.read_bytes() for path in parts)
    return hashlib.sha256(content + variant.encode()).hexdigest()[:16]


def source_state() -> tuple[str, int]:
    """The revision that is built, and the time of its commit, which every file gets."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()

    is_changed = bool(git("status", "--porcelain", "--", "serving", "policies", "requirements", "pyproject.toml"))
    return f"{git('rev-parse', 'HEAD')}{'-changed' if is_changed else ''}", int(git("log", "-1", "--format=%ct"))


def _build_runtime(builder: Builder, variant: Variant, runtime: Path, debs: Path) -> None:
    """Makes the folder `runtime`: the lower layers as an OCI layout, and the list of what they hold. It is there whole or not."""
    with tempfile.TemporaryDirectory(dir=runtime.parent) as made:
        context = Path(made)
        (context / "base").mkdir()
        packages = base.unpack(variant, context / "base", debs)
        tree.make_site(variant, context / "site")
        components = [*contents.debian_components(packages), *contents.python_components(context / "site" / tree.HOME / "site")]
        _refuse_secrets(context / "base", context / "site")
        finished = context / "runtime"
        finished.mkdir()
        # One time whatever the revision is, or each commit would move gigabytes.
        builder.build(Recipe(HERE / "Containerfile.runtime", context, {}, epoch=0), finished / "oci")
        contents.save_components(finished / COMPONENTS, components)
        finished.rename(runtime)


def _refuse_secrets(*roots: Path) -> None:
    found = [line for root in roots for line in find_secrets(root)]
    if found:
        raise UserError("\n".join(f"in the image: {line}" for line in found), "remove it from what is packed, and revoke it")


def _describe(variant: Variant, folder: Path, kept: Path, digest: str, revision: str, epoch: int, wheel: Path) -> None:
    version = metadata.version("flotilla")
    own = contents.Component("flotilla", version, "Apache-2.0", f"pkg:pypi/flotilla@{version}")
    components = [own, *contents.load_components(kept)]
    name = f"flotilla-serving-{variant}"
    materials = {path.name: path for path in (base.LOCK, tree.lock_of(variant), HERE / "Containerfile", wheel)}
    (folder / "sbom.cdx.json").write_text(contents.sbom(name, version, components, epoch))
    (folder / "licences.txt").write_text(contents.licence_table(components))
    (folder / "provenance.json").write_text(contents.provenance(name, digest, revision, {"variant": variant}, materials))


def size_table(image: Image) -> str:
    """Layers and sizes, for people."""
    names = [*[RUNTIME_LAYERS] * (len(image.layers) - 1), OWN_LAYER]
    rows = [*zip(names, (layer.compressed_bytes for layer in image.layers), strict=True), ("together", image.compressed_bytes)]
    return "\n".join([f"{'layer':<26}{'MB as pulled':>14}", *(f"{name:<26}{size / 1e6:>14,.1f}" for name, size in rows)])


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
