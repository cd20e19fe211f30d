"""The tables of docs/image.md: each stands between two marks, and is written by the command that its first mark names.

<!-- table: layers, by make drill-image -->
…
<!-- end of table -->
"""

from __future__ import annotations

import re
from pathlib import Path

from infra.catalog import Model
from infra.config import load_catalog
from policies.cold_start import model_cold_start

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/image.md"
IMAGE_GB = 10.76
"""vLLM's own image for GPUs, with which the rate of the pull was measured (policies/cold_start.py)."""
NUM_FILES = {"Qwen2.5-7B-Instruct": 4, "Qwen2.5-14B-Instruct": 8, "Llama-3.3-70B-Instruct": 30}
"""Safetensors files of each release on the hub."""


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table: the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- table: {name}, by [^>]+ -->\n)(.*?)(\n<!-- end of table -->)", re.DOTALL)


def read(name: str) -> str:
    """The table called `name`, as the document has it."""
    found = _block(name).search(DOCUMENT.read_text())
    assert found, f"docs/image.md has no table {name!r}"
    return found[2]


def write(name: str, table: str) -> None:
    """Puts `table` where the document has the one called `name`."""
    read(name)
    DOCUMENT.write_text(_block(name).sub(lambda found: f"{found[1]}{table}{found[3]}", DOCUMENT.read_text()))


def modelled_cold_start() -> str:
    """Every class of `prod`: on a node that has nothing, then on one that lacks the weights alone."""
    catalog = load_catalog()
    header = ["model", "weights GiB", "pull s", "fetch s", "verify s", "load s", "compile s", "warm-up s", "together s"]
    return markdown(
        header,
        [_row(catalog.models[name], is_new) for name in catalog.environments["prod"].models.values() for is_new in (True, False)],
    )


def _row(model: Model, is_new: bool) -> list[str]:
    assert model.gpus, "classes of prod run on GPUs"
    start = model_cold_start(
        IMAGE_GB if is_new else 0, model.weights_gib, NUM_FILES[model.model_name], model.gpus.count, is_compiled=not is_new
    )
    phases = (start.pull_s, start.fetch_s, start.verify_s, start.load_s, start.compile_s, start.warm_up_s, start.total_s)
    where = "new node" if is_new else "image and kernels there"
    return [
        f"{model.model_name}, {model.gpus.count} × {model.gpus.kind}, {where}",
        f"{model.weights_gib:.1f}",
        *(f"{phase:.0f}" for phase in phases),
    ]


if __name__ == "__main__":
    write("modelled cold start", modelled_cold_start())
