"""The document is the code's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.recovery import failback, failover, runbook
from infra.recovery.step import Step

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "runbook.md"


def test_the_runbook_is_what_the_steps_say() -> None:
    assert DOCUMENT.read_text() == runbook.text(), "python -m infra.recovery.runbook > docs/runbook.md"


@pytest.mark.parametrize("step", [*failover.STEPS, *failback.STEPS], ids=lambda step: step.name)
def test_every_step_says_all_that_an_operator_asks(step: Step) -> None:
    told = (step.does, step.why, step.expect, step.if_it_fails, step.to_undo, step.takes)
    assert all(told) and all(text.endswith(".") for text in told[:-1])
