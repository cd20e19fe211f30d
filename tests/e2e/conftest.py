"""One region on this machine, brought up by the command line as its user would, beside whatever else runs here."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from e2e_support import LocalRegion


@pytest.fixture(scope="session")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegion]:
    """A region of the real vLLM. It is taken down at the end, whatever the tests did to it."""
    state = tmp_path_factory.mktemp("region") / "local"
    region = LocalRegion(state, {**os.environ, "FLOTILLA_STATE": str(state)})
    try:
        region.up()
        yield region
    finally:
        region.run("down", "--purge", check=False)
        shutil.rmtree(state, ignore_errors=True)
