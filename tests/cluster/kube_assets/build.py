"""A real Kubernetes for the tests, built from Go modules: control plane, etcd, KWOK, KEDA, and the CRDs that our manifests need.

No package registry has these binaries, but Go's module proxy has their sources. Each program is a module here, whose `go.mod`
and `go.sum` pin every source by its hash; CRDs come out of further modules, pinned in CRD_MODULES. What is built goes to a cache
folder outside the tree, named by a digest of all these pins: a change of one builds anew, and nothing else does. A build that was
interrupted goes on where it stopped.

    python3 build.py              builds what is missing, prints the folder last
    FLOTILLA_KUBE_ASSETS=DIR …    builds nothing, and refuses a DIR that lacks something

Only the standard library is used, so that it runs before anything is set up.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
VARIABLE = "FLOTILLA_KUBE_ASSETS"
KUBERNETES_VERSION = "v1.37.2"
COMPLETE = "complete"
"""Written last; a folder without it is still being built, or its build was interrupted."""
VERSION_PACKAGE = "k8s.io/component-base/version"


class AssetsError(Exception):
    """Nothing can be built, or the folder named lacks something; one line with the remedy."""


@dataclass(frozen=True)
class Program:
    """A binary, and the module of ours that pins its sources."""

    name: str
    module: str
    package: str
    linker_flags: str = ""


@dataclass(frozen=True)
class CrdModule:
    """A Go module that carries CRDs as YAML."""

    path: str
    version: str
    sum: str
    """As `go.sum` has it."""
    folder: str
    pattern: str


def _kubernetes(name: str) -> Program:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    told = {
        "gitVersion": KUBERNETES_VERSION,
        "gitMajor": major,
        "gitMinor": minor,
    }  # without it the API server says v0.0.0-master
    flags = " ".join(f"-X {VERSION_PACKAGE}.{key}={value}" for key, value in told.items())
    return Program(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", flags)


PROGRAMS = (
    _kubernetes("kube-apiserver"),
    _kubernetes("kube-controller-manager"),
    _kubernetes("kube-scheduler"),
    Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    Program("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    Program("keda-operator", "keda", "github.com/kedacore/keda/v2/cmd/operator"),
    Program("keda-adapter", "keda", "github.com/kedacore/keda/v2/cmd/adapter"),
)
CRD_MODULES = (
    CrdModule(
        "github.com/aws/karpenter-provider-aws",
        "v1.14.1",
        "h1:WGtIQTQcxpElYMdWfWuPwaF2+9muR+hYhPZsTtoY8Gs=",
        "pkg/apis/crds",
        "karpenter.*.yaml",
    ),
    CrdModule(
        "github.com/prometheus-operator/prometheus-operator",
        "v0.93.0",
        "h1:AohlYJT+En8TmNpAcEUJ3GsaJTAqfEBwHmGTVpRm/Io=",
        "example/prometheus-operator-crd",
        "*monitors.yaml",
    ),
)
KEDA_CRDS = ("github.com/kedacore/keda/v2", "config/crd/bases", "keda.sh_*.yaml")
KWOK_STAGES = ("sigs.k8s.io/kwok", "kustomize/stage", ("node/fast", "node/heartbeat-with-lease", "pod/fast"))
"""How a fake node and a fake pod become ready, stay so, and go."""


def digest() -> str:
    """Of everything that decides what is built."""
    tables = repr((PROGRAMS, CRD_MODULES, KEDA_CRDS, KWOK_STAGES)).encode()
    pins = [path.read_bytes() for path in sorted(HERE.glob("*/go.*"))]
    return hashlib.sha256(b"\0".join([tables, *pins])).hexdigest()[:16]


def default_folder() -> Path:
    """Where these versions are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "flotilla" / "kube" / digest()


def locate() -> Path:
    """The folder with the assets.

    Raises:
        AssetsError: there is none, or it lacks something.
    """
    named = os.environ.get(VARIABLE)
    folder = Path(named) if named else default_folder()
    if not named and not (folder / COMPLETE).is_file():
        raise AssetsError(f"{folder}: no Kubernetes there; build it once with `make kube-assets`")
    missing = [program.name for program in PROGRAMS if not os.access(folder / program.name, os.X_OK)]
    missing += [f"{part}/*.yaml" for part in ("crds", "stages") if not any((folder / part).glob("*.yaml"))]
    if missing:
        raise AssetsError(f"{folder} ({VARIABLE}): lacks {', '.join(missing)}; unset {VARIABLE} and run `make kube-assets`")
    return folder


def build(folder: Path) -> None:
    """Makes `folder` hold the assets.

    Raises:
        AssetsError: no Go, a hash differs, or a build failed.
    """
    if (folder / COMPLETE).is_file():
        return
    _require_go()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder.with_suffix(".lock")):
        for number, program in enumerate(PROGRAMS, 1):
            if not (folder / program.name).exists():
                started = time.monotonic()
                _say(f"{number}/{len(PROGRAMS)} {program.name}: building")
                _build(program, folder)
                _say(f"{number}/{len(PROGRAMS)} {program.name}: built in {time.monotonic() - started:.0f} s")
        _copy_manifests(folder)
        (folder / COMPLETE).write_text(f"{KUBERNETES_VERSION}\n")


def _require_go() -> None:
    wanted = max(_go_line(path) for path in HERE.glob("*/go.mod"))
    remedy = f"install Go {'.'.join(map(str, wanted))} or later (https://go.dev/dl), or name a folder of built ones by {VARIABLE}"
    if not shutil.which("go"):
        raise AssetsError(f"go: not found, and the Kubernetes of the tests is built with it; {remedy}")
    # Asked outside any module: inside one, `go` would first fetch the version that the module asks for.
    found = subprocess.run(
        ["go", "env", "GOVERSION"],
        cwd="/",
        env={**os.environ, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    numbers = found.removeprefix("go").partition(" ")[0].partition("rc")[0]
    if tuple(int(part) for part in numbers.split(".") if part.isdigit()) < wanted:
        raise AssetsError(f"go: this is {found}; {remedy}")


def _go_line(path: Path) -> tuple[int, ...]:
    line = next(line for line in path.read_text().splitlines() if line.startswith("go "))
    return tuple(int(part) for part in line.removeprefix("go ").split("."))


def _build(program: Program, folder: Path) -> None:
    """Builds beside the final name, so that what has that name is whole."""
    partial = folder / f"{program.name}.partial"
    flags = f"-s -w {program.linker_flags}".strip()
    _go(program.module, ["build", "-trimpath", f"-ldflags={flags}", "-o", str(partial), program.package])
    partial.rename(folder / program.name)


def _copy_manifests(folder: Path) -> None:
    crds, stages = (folder / part for part in ("crds", "stages"))
    for part in (crds, stages):
        part.mkdir(exist_ok=True)
    for module in CRD_MODULES:
        found = json.loads(_go("", ["mod", "download", "-json", f"{module.path}@{module.version}"]))
        if found["Sum"] != module.sum:
            raise AssetsError(f"{module.path} {module.version}: its hash is {found['Sum']}, must be {module.sum}; do not use it")
        _copy(Path(found["Dir"]) / module.folder, module.pattern, crds)
    name, inside, pattern = KEDA_CRDS
    _copy(_source("keda", name) / inside, pattern, crds)
    name, inside, kinds = KWOK_STAGES
    for kind in kinds:
        _copy(_source("kwok", name) / inside / kind, "[!k]*.yaml", stages, f"{kind.replace('/', '-')}-")  # no kustomization.yaml
    _say(f"{len(list(crds.iterdir()))} CRDs, {len(list(stages.iterdir()))} stages")


def _source(module: str, path: str) -> Path:
    """Folder of the sources of `path` in the version that our `module` pins."""
    return Path(_go(module, ["list", "-m", "-f", "{{.Dir}}", path]).strip())


def _copy(source: Path, pattern: str, target: Path, prefix: str = "") -> None:
    files = sorted(source.glob(pattern))
    if not files:
        raise AssetsError(f"{source}: no file is named {pattern}; correct the table in {Path(__file__).name}")
    for file in files:
        (target / f"{prefix}{file.name}").write_bytes(file.read_bytes())


def _go(module: str, arguments: Sequence[str]) -> str:
    """What `go` prints in our `module`, or outside any."""
    # Read-only: a source that go.sum does not name fails the build instead of being added.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
    if not module:
        environment["GOFLAGS"] = "-mod=mod"
    done = subprocess.run(
        ["go", *arguments], cwd=HERE / module if module else "/", env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        print(said, file=sys.stderr)
        raise AssetsError(f"go {' '.join(arguments[:2])} in {module or 'no module'} failed; what it said is above")
    return done.stdout


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One build at a time in this folder: a second waits, and then finds everything there."""
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another build ({lock})")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(f"kube-assets: {line}", flush=True)


def main() -> int:
    """Builds what is missing; 2 where that cannot be."""
    try:
        if not os.environ.get(VARIABLE):
            build(default_folder())
        _say(str(locate()))
    except AssetsError as error:
        print(f"kube-assets: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
