"""Copies of the stack files that a test may change."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from infra.config import STACKS_DIR

sys.path.insert(0, str(Path(__file__).parent))  # for golden_files and workload_support, which importlib mode would not find


@pytest.fixture
def stacks_dir(tmp_path: Path) -> Path:
    """The repository's stack files, copied for one test."""
    return Path(shutil.copytree(STACKS_DIR, tmp_path / "stacks"))


@pytest.fixture(scope="module")
def copy_of_stacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's stack files, copied for one module."""
    return Path(shutil.copytree(STACKS_DIR, tmp_path_factory.mktemp("program") / "stacks"))
