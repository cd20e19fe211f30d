"""A control plane for each region, shared by the tests that only look; the ends of its logs, where a test fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from datetime import date
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one, which importlib mode would not find

from control_plane import tail
from kube_assets.build import AssetsError, locate
from regions import SERVING_STACKS, Region, running_region

from infra import config

FOLDERS = pytest.StashKey[list[Path]]()
PlaneFolder = Callable[[str], Path]


@pytest.fixture(scope="session", autouse=True)
def _a_fixed_day() -> Iterator[None]:
    """Rules about the end of support must not fail these tests one day for no change of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "today", lambda: date(2026, 11, 23))
        yield


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with Kubernetes' programs."""
    try:
        return locate()
    except AssetsError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def plane_folder(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> PlaneFolder:
    """Makes a folder for a control plane, whose logs a failing test shows."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / "plane"
        pytestconfig.stash.setdefault(FOLDERS, []).append(folder)
        return folder

    return make


@pytest.fixture(scope="session", params=SERVING_STACKS, ids=str)
def region(request: pytest.FixtureRequest, assets: Path, plane_folder: PlaneFolder) -> Iterator[Region]:
    """Each region of each environment in turn, with its objects and no node."""
    with running_region(request.param, assets, plane_folder(str(request.param))) as region:
        yield region


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the end of each log of the control plane that was started last."""
    report = yield
    if report.failed and (folders := item.config.stash.get(FOLDERS, [])):
        report.sections += [(log.stem, tail(log)) for log in sorted(folders[-1].glob("*.log"))]
    return report
