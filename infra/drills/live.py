"""What a person sees while a drill runs: its phase, the last half minute of requests, and what was done when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from infra.drills.load import Asked, Load

WINDOW_S = 40
BARS = " ▁▂▃▄▅▆▇█"
LINE_EVERY_S = 5.0
NUM_LINES = 12


class LiveView:
    """Where there is no terminal it prints a line for each thing done, and one every `LINE_EVERY_S`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render) if console.is_terminal else None
        self._lines: list[str] = []
        self._began_s = time.monotonic()
        self._next_line_s = 0.0
        self.load: Load | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Something was done or seen."""
        told = f"{time.monotonic() - self._began_s:6.1f} s  {line}"
        self._lines.append(told)
        if self._live is None:
            self._console.print(told, highlight=False, markup=False, soft_wrap=True)

    def tick(self) -> None:
        """Called now and then: without a terminal, says how requests fare."""
        now_s = time.monotonic()
        if self._live is None and self.load is not None and now_s >= self._next_line_s:
            self._next_line_s = now_s + LINE_EVERY_S
            recent = [one for one in reversed(self.load.asked[-5000:]) if now_s - one.ended_s < LINE_EVERY_S]
            bad = sum(not one.is_served for one in recent)
            self.say(f"  {len(recent) / LINE_EVERY_S:.0f} answers/s, {bad} not served, {self.load.num_running} running")

    def _render(self) -> Group:
        parts = [Text(line) for line in self._lines[-NUM_LINES:]]
        if self.load is not None:
            parts += _bars(self.load.asked, time.monotonic())
            parts.append(Text(f"{len(self.load.asked):,} asked, {self.load.num_running} running", style="dim"))
        return Group(*parts)


def _bars(asked: Sequence[Asked], now_s: float) -> list[Text]:
    served, failed = [0] * WINDOW_S, [0] * WINDOW_S
    for one in asked[-5000:]:
        place = WINDOW_S - 1 - int(now_s - one.ended_s)
        if 0 <= place < WINDOW_S:
            (served if one.is_served else failed)[place] += 1
    most = max(*served, *failed, 1)
    return [_line("served    ", served, most, "green"), _line("not served", failed, most, "bold red")]


def _line(name: str, counts: Sequence[int], most: int, style: str) -> Text:
    bars = "".join(BARS[0 if not count else max(1, round(count / most * (len(BARS) - 1)))] for count in counts)
    return Text(f"{name} ", style="dim").append(bars, style=style).append(f" {counts[-2]}/s", style="dim")
