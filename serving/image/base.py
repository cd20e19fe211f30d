"""The root file system below our code: files of pinned Debian packages, unpacked and nothing more.

No package manager, no maintainer script and, on GPUs, no shell. A base image from a registry would be pinned by digest; this is
pinned by the digest of every package in it, needs no registry, and is the same wherever it is made: packages are read here, by
Python, on any system.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.errors import UserError

HERE = Path(__file__).parent
PACKAGES, LOCK = HERE / "packages.txt", HERE / "debian.lock"
MIRROR = "https://deb.debian.org"
MIRROR_VARIABLE = "FLOTILLA_DEBIAN_MIRROR"
"""Environment variable with another mirror; digests are checked all the same."""
DOWNLOAD_TIMEOUT_S = 120
USER_ID = 10001
UNWANTED = re.compile(
    r"usr/share/(man|locale|lintian|bug|info)/|usr/share/doc/.*(?<!copyright)$|etc/(cron|logrotate)\.|usr/lib/python3\.11/(test|idlelib|turtledemo|ensurepip|lib2to3|config-3.*)/"
)
"""Left out: nobody reads a manual in a container, and its tests test Python. Copyright notices stay."""
LINKS = {
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "usr/bin/python": "python3.11",
    "usr/bin/python3": "python3.11",
    "usr/lib/ssl/cert.pem": "../../../etc/ssl/certs/ca-certificates.crt",  # where OpenSSL looks
}
_LINE = re.compile(r"^(?:(?P<variant>[a-z]+):\s+)?(?P<name>[a-z0-9][a-z0-9.+-]*)(?:\s+(?P<file>[^\s#]+))?\s*(?:#.*)?$")


@dataclass(frozen=True)
class Wanted:
    """A line of packages.txt."""

    name: str
    variant: str
    """Empty for all."""
    file: str
    """The one file that is taken; empty for all."""


@dataclass(frozen=True)
class Package:
    """A package as the lock pins it."""

    name: str
    version: str
    sha256: str
    path: str
    """Below the mirror."""


def wanted(variant: str) -> list[Wanted]:
    """What an image of `variant` holds, in the order in which it is unpacked."""
    found: list[Wanted] = []
    for number, line in enumerate(PACKAGES.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise UserError(f"{PACKAGES.name}, line {number}: {line!r} names no package", "write `[variant:] name [file] # why`")
        if match["variant"] in (None, variant):
            found.append(Wanted(match["name"], match["variant"] or "", match["file"] or ""))
    return found


def locked() -> dict[str, Package]:
    """The lock's packages by name."""
    lines = [line.split() for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return {name: Package(name, version, sha256, path) for name, version, sha256, path in lines}


def write_lock(names: Sequence[str]) -> None:
    """Pins the newest version of each package, as this machine's apt knows them.

    Raises:
        UserError: apt is not there, or knows a package not.
    """
    try:
        command = ["apt-get", "download", "--print-uris", *names]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError as error:
        raise UserError("apt-get is not here", "write the lock on Debian 12, as root after `apt-get update`") from error
    if asked.returncode:
        raise UserError(f"apt-get: {asked.stderr.strip().splitlines()[-1]}", "run `apt-get update`, or correct packages.txt")
    packages: list[Package] = []
    for line in asked.stdout.splitlines():
        address, archive, _, digest = line.split()
        path = urllib.parse.urlsplit(address.strip("'")).path.lstrip("/")
        name, version, _ = urllib.parse.unquote(archive).rsplit("_", 2)
        packages.append(Package(name, version, digest.removeprefix("SHA256:"), path))
    lines = [f"{item.name} {item.version} {item.sha256} {item.path}" for item in sorted(packages, key=lambda item: item.name)]
    LOCK.write_text(
        "\n".join(
            ["# Written by `make image-lock` from packages.txt: name, version, SHA-256, path below a Debian mirror.", *lines, ""]
        )
    )


def unpack(variant: str, root: Path, cache: Path) -> list[Package]:
    """Makes the base of `variant` in the empty folder `root`; packages are kept in `cache`.

    Raises:
        UserError: a package is not in the lock, cannot be had, or is not the one that was pinned.
    """
    pins, used = locked(), []
    for target in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "tmp", "var/tmp", "proc", "sys", "dev"):
        (root / target).mkdir(parents=True, exist_ok=True)
    for name, target in LINKS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    for item in wanted(variant):
        if item.name not in pins:
            raise UserError(f"{LOCK.name}: lacks {item.name}", "run `make image-lock`")
        package = pins[item.name]
        _extract(_download(package, cache), root, item.file)
        used.append(package)
    _finish(root)
    return used


def _download(package: Package, cache: Path) -> bytes:
    kept = cache / f"{package.sha256}.deb"
    if not kept.is_file():
        mirror = os.environ.get(MIRROR_VARIABLE, MIRROR).rstrip("/")
        try:
            with urllib.request.urlopen(f"{mirror}/{package.path}", timeout=DOWNLOAD_TIMEOUT_S) as answer:  # noqa: S310
                content = answer.read()
        except (urllib.error.URLError, TimeoutError) as error:
            raise UserError(
                f"{package.name} {package.version} cannot be had from {mirror}: {error}",
                f"mirrors drop what is superseded: run `make image-lock`; {MIRROR_VARIABLE} names another mirror",
            ) from error
        cache.mkdir(parents=True, exist_ok=True)
        kept.with_suffix(".new").write_bytes(content)
        kept.with_suffix(".new").replace(kept)
    content = kept.read_bytes()
    if hashlib.sha256(content).hexdigest() != package.sha256:
        kept.unlink()
        raise UserError(
            f"{package.name} {package.version}: is not what {LOCK.name} pins", "a mirror or a proxy changed it; do not go on"
        )
    return content


def members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Members of an `ar` archive, which a .deb is: 60-byte headers, contents padded to even lengths."""
    offset = len(b"!<arch>\n")
    while offset + 60 <= len(archive):
        header = archive[offset : offset + 60]
        size = int(header[48:58])
        yield header[:16].decode().strip().rstrip("/"), archive[offset + 60 : offset + 60 + size]
        offset += 60 + size + size % 2


def _extract(archive: bytes, root: Path, only: str) -> None:
    content = next(body for name, body in members(archive) if name.startswith("data.tar"))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for entry in tar:
            name = entry.name.removeprefix("./").rstrip("/")
            if not name or (only and name != only) or UNWANTED.search(f"{name}/" if entry.isdir() else name):
                continue
            entry.mode &= 0o755  # no set-user-id: nobody here becomes somebody else
            target = root / name
            if entry.isdir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                entry.name = name
                if entry.islnk():
                    entry.linkname = entry.linkname.removeprefix("./")
                tar.extract(entry, root, set_attrs=False, filter="fully_trusted")
                if entry.isreg():
                    target.chmod(entry.mode)


def _finish(root: Path) -> None:
    """What maintainer scripts would have made: users, the bundle of certificates, the linker's cache."""
    (root / "etc/passwd").write_text(f"root:x:0:0::/:/sbin/nologin\nflotilla:x:{USER_ID}:{USER_ID}::/tmp:/sbin/nologin\n")
    (root / "etc/group").write_text(f"root:x:0:\nflotilla:x:{USER_ID}:\n")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(path.read_text() for path in certificates))
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    # Libraries in Debian's own folders are found without a cache; making one would need a linker for the image's system.
    (root / "etc/ld.so.cache").unlink(missing_ok=True)
