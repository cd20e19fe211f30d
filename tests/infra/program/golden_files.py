"""Where goldens lie, and the one way in which they are written anew."""

from __future__ import annotations

import os
from pathlib import Path

GOLDENS = Path(__file__).parent / "goldens"


def check(golden: Path, found: str) -> None:
    """Compares `found` with the file; with FLOTILLA_WRITE_GOLDENS set, writes it instead."""
    if os.environ.get("FLOTILLA_WRITE_GOLDENS"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(found)
    known = golden.read_text() if golden.exists() else ""
    assert found == known, f"{golden.name}: run it again with FLOTILLA_WRITE_GOLDENS=1, and read the difference"
