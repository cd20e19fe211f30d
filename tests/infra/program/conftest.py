"""A copy of the stack files that a test may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from infra.config import STACKS_DIR


@pytest.fixture
def stacks_dir(tmp_path: Path) -> Path:
    """The repository's stack files, copied."""
    return Path(shutil.copytree(STACKS_DIR, tmp_path / "stacks"))
