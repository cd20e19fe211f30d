"""Reads `stacks/budgets.yaml`, and holds it against the stacks that there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from infra import config
from infra.documents import parse, raise_all, read_yaml
from infra.embedded.recorder import every_stack
from policies.costs.budgets import Budget, BudgetsFile

BUDGETS_SHOWN = "stacks/budgets.yaml"


def load_budgets(stacks_dir: Path = config.STACKS_DIR) -> Mapping[str, Budget]:
    """The budgets, by environment or stack.

    Raises:
        ConfigError: the file cannot be read or does not fit, or a budget is of no environment and no stack.
    """
    file, faults = parse(BudgetsFile, read_yaml(stacks_dir / "budgets.yaml", BUDGETS_SHOWN), BUDGETS_SHOWN)
    raise_all(faults)
    assert file is not None
    stacks = every_stack(stacks_dir=stacks_dir)
    known = {*stacks, *(stack.partition(".")[0] for stack in stacks)}
    raise_all(
        f"{BUDGETS_SHOWN}: `budgets.{scope}` is no environment and no stack; known are {', '.join(sorted(known))}"
        for scope in file.budgets
        if scope not in known
    )
    return file.budgets
