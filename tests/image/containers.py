"""Runs processes in the image's root file system: unpacked layers, runc, not root, read-only, this machine's network."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

USER_ID = 10001


def unpack(layout: Path, root: Path) -> None:
    """The layers of the image in `layout`, one over the other. Ours add files and take none away, so no layer has whiteouts."""
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((layout / "blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_text())
    root.mkdir(parents=True)
    for layer in manifest["layers"]:
        with tarfile.open(layout / "blobs" / layer["digest"].replace(":", "/")) as tar:
            tar.extractall(root, filter="fully_trusted", numeric_owner=True)


def config_of(layout: Path) -> dict[str, object]:
    """How the image starts: `Env`, `User`, `Cmd` and so on."""
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((layout / "blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_text())
    document = json.loads((layout / "blobs" / manifest["config"]["digest"].replace(":", "/")).read_text())
    config: dict[str, object] = document["config"]
    return config


@dataclass
class Container:
    """One process of the image."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    log: Path
    started_s: float = field(default_factory=time.monotonic)

    def signal(self, name: str) -> None:
        subprocess.run(["runc", "--root", str(self.folder / "runc"), "kill", self.name, name], check=False, capture_output=True)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command beside it, as its user."""
        line = ["runc", "--root", str(self.folder / "runc"), "exec", self.name, *command]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    def wait(self, timeout_s: float) -> int:
        return self.process.wait(timeout_s)

    def end(self) -> None:
        if self.process.poll() is None:
            self.signal("KILL")
            self.process.wait(20)


def start(
    name: str,
    root: Path,
    folder: Path,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    writable: Sequence[Path] = (),
    readable: Sequence[Path] = (),
) -> Container:
    """Starts `command`; folders of the machine are seen in the container under their own paths."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["runc", "spec", "--bundle", str(folder)], check=True)
    spec = json.loads((folder / "config.json").read_text())
    process = spec["process"]
    process.pop("rlimits", None)  # a sandbox may not be allowed to raise them
    process |= {
        "terminal": False,
        "user": {"uid": USER_ID, "gid": USER_ID},
        "args": list(command),
        "env": [f"{key}={value}" for key, value in environment.items()],
        "cwd": "/",
        "noNewPrivileges": True,
        "capabilities": {},
    }
    spec["root"] = {"path": str(root), "readonly": True}
    spec["linux"]["namespaces"] = [item for item in spec["linux"]["namespaces"] if item["type"] not in ("network", "cgroup")]
    spec["linux"].pop("resources", None)
    spec["mounts"] = [item for item in spec["mounts"] if item["type"] not in ("cgroup", "mqueue")]
    shm = next(item for item in spec["mounts"] if item["destination"] == "/dev/shm")
    shm["options"] = ["nosuid", "noexec", "nodev", "mode=1777", "size=1g"]
    spec["mounts"].append(
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]}
    )
    for path in writable:
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, USER_ID, USER_ID)
    for paths, mode in ((writable, "rw"), (readable, "ro")):
        spec["mounts"] += [
            {"destination": str(path), "type": "bind", "source": str(path), "options": ["rbind", mode]} for path in paths
        ]
    (folder / "config.json").write_text(json.dumps(spec))
    log = folder / "log"
    with log.open("wb") as output:
        started = subprocess.Popen(
            ["runc", "--root", str(folder / "runc"), "run", "--bundle", str(folder), name], stdout=output, stderr=output
        )
    return Container(name, folder, started, log)


def wait_until(url: str, container: Container, timeout_s: float) -> float:
    """Seconds since the start until `url` answers 200."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if container.process.poll() is not None:
            raise AssertionError(f"{container.name} ended: {container.log.read_text()[-2000:]}")
        try:
            with urlopen(url, timeout=3) as answer:
                if answer.status == 200:
                    return time.monotonic() - container.started_s
        except (URLError, OSError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"{container.name}: {url} did not answer 200 in {timeout_s:.0f} s: {container.log.read_text()[-2000:]}")
