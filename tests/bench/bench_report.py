"""What benchmarks share: the machine in words, and a section each in docs/benchmarks.md that the benchmark itself writes."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def machine() -> str:
    """Processor, cores, memory, system, Python and the day, in one line."""
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    return (
        f"{models[0] if models else platform.machine()}, {cores} cores, {memory_gib:.0f} GiB, {platform.system()}"
        f" {platform.release()}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
    )


def write_section(name: str, text: str) -> None:
    """Puts `text` between the markers of section `name`, which the document must have."""
    document = DOCUMENT.read_text()
    begin, end = f"<!-- {name}: written by make {name} ARGS=--write -->\n", f"<!-- end of {name} -->"
    before, _, rest = document.partition(begin)
    _, _, after = rest.partition(end)
    if not rest:
        raise SystemExit(f"{DOCUMENT}: has no line `{begin.strip()}`")
    DOCUMENT.write_text(f"{before}{begin}{text.rstrip()}\n{end}{after}")
