"""The folders that become the image's layers: `site` (Python packages) and `app` (this project), each the same every time.

Nothing in them depends on the machine, the hour or the user: packages come from hashed locks, byte code is checked against no
time stamp, and what an installer notes about itself is removed. The builder gives every file one time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Literal

from serving.errors import UserError

Variant = Literal["cpu", "gpu"]
SitePart = Literal["torch", "packages"]
"""torch with NVIDIA's libraries is gigabytes and changes once a quarter; the rest changes with any requirement of ours."""
REPOSITORY = Path(__file__).resolve().parents[2]
HOME = Path("opt/flotilla")
"""Where `site` and `app` lie in the image."""
INSTALLER_NOTES = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json", "uv_build.json")
NOT_SHIPPED = ("infra", "serving/image")
"""Parts of the distribution that run outside the image: the program that deploys it, and this."""
INSTALL_TIMEOUT_S = 3600
_TORCH = re.compile(r"(torch|torchvision|torchaudio|torchcodec|triton|nvidia-.+|cuda-.+)==")


def make_site(variant: Variant, part: SitePart, folder: Path) -> None:
    """Installs one part of the variant's hashed requirements below the empty `folder`.

    Raises:
        UserError: the installer is not there, or refuses.
    """
    site = folder / HOME / "site"
    command = ["uv", "pip", "install", "--quiet", "--no-config", "--require-hashes", "--no-deps", "--no-compile-bytecode"]
    command += ["--python", sys.executable, "--target", str(site), "-r", "-"]
    _run(command, "the hashed requirements cannot be installed", _installer_environment(), requirements_of(variant, part))
    shutil.rmtree(site / "bin", ignore_errors=True)  # commands of packages; roles start by module
    for path in sorted(site.rglob("*.dist-info")):
        for note in INSTALLER_NOTES:
            (path / note).unlink(missing_ok=True)
    for folder_name in ("tests", "__pycache__"):
        for path in sorted(site.rglob(folder_name), reverse=True):
            shutil.rmtree(path)
    for path in site.rglob("*.a"):
        path.unlink()
    if variant == "cpu":  # on GPUs, kernels are compiled against these as they are met
        shutil.rmtree(site / "torch/include", ignore_errors=True)
        for path in sorted((site / "nvidia").rglob("include"), reverse=True):
            shutil.rmtree(path)
    compile_folder(folder)


def make_app(folder: Path, epoch: int, repository: Path = REPOSITORY) -> Path:
    """Builds the wheel of `repository`, unpacks what runs in the image below the new `folder`, and returns the wheel."""
    # From a copy: a build folder that lies about would be packed too, with files that are gone since.
    wheels, source = folder.parent / "wheel", folder.parent / "source"
    for name in ("serving", "policies", "infra"):
        shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements/serving.in"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    _run([*command, "-w", str(wheels), str(source)], "the wheel cannot be built", {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)})
    (wheel,) = wheels.glob("*.whl")
    app = folder / HOME / "app"
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if not name.startswith(tuple(f"{part}/" for part in NOT_SHIPPED)) and Path(name).name not in INSTALLER_NOTES:
                archive.extract(name, app)
    compile_folder(folder)
    return wheel


def compile_folder(folder: Path) -> None:
    """Byte code for every module: the root file system is read-only, so Python could not keep what it compiles.

    It is valid whatever the time stamps say (PEP 552), and names the paths of the image.
    """
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    command += ["-s", str(folder), "-p", "/", str(folder / HOME)]
    done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: some file is a template or of another Python, and is no module
        raise UserError(f"byte code cannot be made: {done.stderr.strip()[-200:]}", "see the message")


def requirements_of(variant: Variant, part: SitePart) -> str:
    """The requirements of `part` with their hashes, as the variant's lock has them."""
    text = "".join(line for line in lock_of(variant).read_text().splitlines(keepends=True) if not line.startswith("#"))
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    return "".join(block for block in blocks if bool(_TORCH.match(block)) == (part == "torch"))


def lock_of(variant: Variant) -> Path:
    """The variant's hashed requirements."""
    return REPOSITORY / "requirements" / f"image-{variant}.txt"


def _installer_environment() -> dict[str, str]:
    """The installer reads pip's index settings, as set-up does, so a mirror that pip uses is used here too."""
    environment = dict(os.environ)
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    index = environment.get("PIP_INDEX_URL") or asked.stdout.strip()
    if index:
        environment.setdefault("UV_DEFAULT_INDEX", index)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    return environment


def _run(command: list[str], what: str, environment: dict[str, str], told: str = "") -> None:
    try:
        done = subprocess.run(
            command, env=environment, input=told, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise UserError(f"{what}: {command[0]} is not here", "run `make setup`") from error
    if done.returncode:
        raise UserError(f"{what}: {(done.stderr or done.stdout).strip()[-400:]}", "see the message above")
