"""Two engines asked for one first event: whoever has it first answers, and the other is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from serving.gateway.dispatch import EngineFailed, Upstream

Asking = Coroutine[Any, Any, Upstream]


async def first_of(
    first: Asking, after_s: float, second: Callable[[], Asking | None], on_failure: Callable[[int, EngineFailed], None]
) -> tuple[int, Upstream]:
    """Who has answered (0 or 1), and the answer. `second` is asked when `first` has none after `after_s`; it may decline. When
    one fails and the other may still answer, `on_failure` is told.

    Raises:
        EngineFailed: of the last to fail.
        ApiError: one of them says what every engine would say.
    """
    tasks = [asyncio.create_task(first)]
    winner: asyncio.Task[Upstream] | None = None
    try:
        done, pending = await asyncio.wait(tasks, timeout=after_s)
        if not done and (other := second()) is not None:
            tasks.append(asyncio.create_task(other))
            pending.add(tasks[1])
        while True:
            for number, task in enumerate(tasks):
                if task not in done:
                    continue
                error = task.exception()
                if error is None:
                    winner = task
                    return number, task.result()
                if not pending or not isinstance(error, EngineFailed):
                    raise error
                on_failure(number, error)
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    finally:
        losers = [task for task in tasks if task is not winner]
        for task in losers:
            task.cancel()
        for answer in await asyncio.gather(*losers, return_exceptions=True):
            if isinstance(answer, Upstream):
                answer.abort()
