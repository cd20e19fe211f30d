"""Finds the makers beside these tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for restore_makers, which importlib mode would not find
