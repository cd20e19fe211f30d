"""Asks the limits' script in the cache: whatever is asked while an answer is awaited goes out together, in the next round trip.

One round trip at a time for each gateway, so under load the cost of a round trip is shared, and nobody waits for company when
there is none. What has been put is sent, even if who asked has left: a settlement must not be lost with its request. When the
cache fails, all that waits fails with it, so nobody learns it one after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

MAX_BATCH = 128
"""Questions in a round trip: some 5 ms of the cache's time, a tenth of what an answer may take."""

CacheFailure = (RedisError, OSError, TimeoutError)

_Ask = tuple[Sequence[str], Sequence[str | int], "asyncio.Future[Any]"]


class ScriptCalls:
    """Calls of one script."""

    def __init__(self, redis: Redis, script: str, timeout_s: float) -> None:
        self._redis = redis
        self._script = script
        self._timeout_s = timeout_s
        self._digest = ""
        self._waiting: list[_Ask] = []
        self._sender: asyncio.Task[None] | None = None

    def put(self, keys: Sequence[str], arguments: Sequence[str | int]) -> asyncio.Future[Any]:
        """The script's answer to come, or why there is none.

        The future raises RedisError, OSError or TimeoutError: the cache did not answer in time.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((keys, arguments, answer))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return answer

    async def load(self) -> None:
        """Give the script to the cache.

        Raises:
            RedisError, OSError: the cache does not answer.
        """
        self._digest = str(await self._redis.script_load(self._script))

    async def aclose(self) -> None:
        """Wait for what has been put; not longer than the cache may take."""
        if self._sender is not None:
            await asyncio.gather(self._sender, return_exceptions=True)

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            try:
                async with asyncio.timeout(self._timeout_s):
                    answers = await self._answers(batch)
            except BaseException as error:
                failed, self._waiting = [*batch, *self._waiting], []
                for _, _, answer in failed:
                    if not answer.done():
                        answer.set_exception(error) if isinstance(error, CacheFailure) else answer.cancel()
                if not isinstance(error, CacheFailure):
                    raise
                return
            for (_, _, answer), told in zip(batch, answers, strict=True):
                if answer.done():
                    continue
                if isinstance(told, Exception):
                    answer.set_exception(told)
                else:
                    answer.set_result(told)

    async def _answers(self, batch: Sequence[_Ask]) -> list[Any]:
        if not self._digest:
            await self.load()
        answers = await self._execute(batch)
        # A cache that was started anew does not know the script, and has done nothing of what it refused.
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            await self.load()
            for at, answer in zip(unknown, await self._execute([batch[at] for at in unknown]), strict=True):
                answers[at] = answer
        return answers

    async def _execute(self, batch: Sequence[_Ask]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for keys, arguments, _ in batch:
                pipe.evalsha(self._digest, len(keys), *keys, *arguments)
            return await pipe.execute(raise_on_error=False)
