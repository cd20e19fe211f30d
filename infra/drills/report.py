"""The report of a drill: a picture of its timeline, what was done when, and every figure; and the machine that made them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.drills.figures import Part
from infra.drills.timeline import Mark, timeline


def machine() -> dict[str, Any]:
    """What figures depend on."""
    return {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}


def write(
    folder: Path, heading: str, title: str, begun: Sequence[tuple[float, bool]], marks: Sequence[Mark], parts: Sequence[Part]
) -> None:
    """`report.md` and `timeline.svg` in `folder`. `begun` has, for each request, when it began and whether it was served."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{what.strip()}: {shown}" for part in parts for what, shown, holds in part.rows if holds is not None]
    (folder / "timeline.svg").write_text(timeline(title, begun, marks, lines))
    table = ["| part | what | shown | holds |", "|---|---|---|---|"]
    for part in parts:
        for what, shown, holds in part.rows:
            table.append(f"| {part.name} | {what.strip()} | {shown} | {'' if holds is None else 'yes' if holds else 'NO'} |")
    figures = ", ".join(f"{name} {value}" for name, value in machine().items())
    told = [f"- {mark.at_s:+.1f} s: {mark.what}" for mark in marks]
    text = [f"# Drill: {heading}", "", "![timeline](timeline.svg)", "", *told, "", *table, "", f"Machine: {figures}.", ""]
    (folder / "report.md").write_text("\n".join(text))
