"""Runs one function over many items in threads, and stops at the first failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item], concurrency: int) -> list[Result]:
    """Results in the order of `items`. After a failure no further item is begun; it is raised once the running ones end."""
    with ThreadPoolExecutor(max_workers=concurrency) as pool:
        futures = [pool.submit(function, item) for item in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failure = next((future.exception() for future in done if future.exception()), None)
        if failure is not None:
            pool.shutdown(cancel_futures=True)
            raise failure
        return [future.result() for future in futures]
