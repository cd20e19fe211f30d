"""What `make kube-assets` says where it cannot build, and that its pins agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from kube_assets import build

from infra import versions


def _run(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, build.__file__],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_go_one_line_says_what_is_needed(tmp_path: Path) -> None:
    done = _run(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"kube-assets: go: not found.*install Go 1\.\d+.*FLOTILLA_KUBE_ASSETS\n", done.stderr)


def test_an_older_go_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho go1.21.5\n")
    go.chmod(0o755)
    done = _run(tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"kube-assets: go: this is go1\.21\.5; install Go 1\.\d+.*\n", done.stderr)


def test_a_named_folder_that_lacks_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etcd").touch(mode=0o755)
    done = _run(tmp_path, FLOTILLA_KUBE_ASSETS=str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "lacks kube-apiserver, kube-controller-manager" in done.stderr
    assert "etcd" not in done.stderr


def test_a_build_that_was_interrupted_is_not_taken_for_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(build.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = build.default_folder()
    folder.mkdir(parents=True)
    for program in build.PROGRAMS:
        (folder / program.name).touch(mode=0o755)
    with pytest.raises(build.AssetsError, match="make kube-assets"):
        build.locate()


def test_the_version_that_the_api_server_says_is_the_one_that_is_built() -> None:
    pinned = (build.HERE / "kubernetes" / "go.mod").read_text()
    assert re.search(rf"^\s*k8s\.io/kubernetes {re.escape(build.KUBERNETES_VERSION)}\b", pinned, re.MULTILINE)


def test_a_change_of_a_pin_is_built_into_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.digest()
    monkeypatch.setattr(build, "PROGRAMS", build.PROGRAMS[1:])
    assert build.digest() != before


def test_definitions_are_those_of_the_charts_that_a_region_installs() -> None:
    """Objects that fit one version's definitions may be refused by another's, and only in a real cluster."""
    crds = {module.path: module.version for module in build.CRD_MODULES}
    keda = re.search(r"github\.com/kedacore/keda/v2 (v\S+)", (build.HERE / "keda" / "go.mod").read_text())
    assert crds["github.com/aws/karpenter-provider-aws"] == f"v{versions.KARPENTER.version}"
    assert keda and keda[1] == f"v{versions.KEDA.version}"
    operator = crds["github.com/prometheus-operator/prometheus-operator"].removeprefix("v").rpartition(".")[0]
    assert versions.PROMETHEUS.note == f"Prometheus operator {operator}."
