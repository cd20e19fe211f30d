"""Whatever ends a drill, its regions do not outlive it."""

from __future__ import annotations

import signal
import subprocess
from typing import Any

import pytest

from infra.drills.two_regions import TwoRegions, two_regions


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_takes_both_regions_down(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """The incident: a time limit ended drills by SIGTERM, and their gateways and engines ran on for hours."""
    events: list[str] = []
    monkeypatch.setattr(TwoRegions, "run", lambda self, *arguments: events.append(arguments[0]))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: events.append(" ".join(command[3:])))
    before: Any = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), two_regions() as regions:
        signal.raise_signal(number)  # to this thread: to the process it may reach another one, and nothing wakes this one
        pytest.fail("the drill went on")
    assert events == ["up", "down --purge"]
    assert not regions.root.parent.exists()
    assert signal.getsignal(signal.SIGTERM) == before
