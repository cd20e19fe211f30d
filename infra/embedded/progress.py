"""What a person sees while `up` and `down` work: one line a step, with a bar and rates where there is something to count."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

MIB = 1024 * 1024


class Steps:
    """Shows steps, each until the next begins. Where there is no terminal, a step is a line as it begins and one as it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}", style="dim"),
            console=console,
            transient=True,
        )
        self._title = ""
        self._result = ""
        self._began = 0.0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end("[red]✗[/]" if kind else "[green]✓[/]")
        if self._console.is_terminal:
            self._bar.stop()

    def step(self, title: str, done: int = 0, total: int = 0, unit: str = "", detail: str = "") -> None:
        """Shows `title` as what goes on now; called again with the same title it moves the bar. `total` 0 means unknown."""
        if title != self._title:
            self._end("[green]✓[/]")
            self._title, self._began = title, time.monotonic()
            self._bar.add_task(escape(title), total=None, numbers="")
            if not self._console.is_terminal:
                self._console.print(f"… {escape(title)}", highlight=False)
        self._result = " ".join(filter(None, (self._numbers(done, total, unit), detail)))
        self._bar.update(self._bar.task_ids[-1], completed=done, total=total or None, numbers=escape(self._result))

    def result(self, text: str) -> None:
        """What the current step has come to; stands behind its title when it ends."""
        self._result = text

    def _numbers(self, done: int, total: int, unit: str) -> str:
        if unit != "bytes":
            return f"{done}/{total}" if total else ""
        rate = done / MIB / max(time.monotonic() - self._began, 0.1)
        of = f"/{total / MIB:.0f}" if total else ""
        return f"{done / MIB:.0f}{of} MiB, {rate:.0f} MiB/s"

    def _end(self, mark: str) -> None:
        if not self._title:
            return
        took_s = time.monotonic() - self._began
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._console.print(
            f"{mark} {escape(self._title)}  [dim]{escape(self._result)}  {took_s:.1f} s[/]", highlight=False, soft_wrap=True
        )
        self._title = self._result = ""
