"""Which gateway of a region leads: the holder of a lease in the region's cache, and what leaders tell each other there.

A lease ends by itself unless it is renewed, so a gateway that dies is followed after `ttl_s`. What a leader remembers is written
only while its lease is its own, by one script, so one that was overtaken writes nothing. The cache may be lost, and with it lease
and memory: then nobody leads, nothing is exported, and scaling falls back to the engines' queues. After a failover of the cache
two may lead for as long as the older one's lease was to last; readers take the larger number.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

CALL_TIMEOUT_S = 1.0
_FAILURES = (RedisError, OSError, TimeoutError)
# Braces keep the keys of one script on one shard.
_KEYS = ("{scaling}lease", "{scaling}term", "{scaling}memory")

_HOLD = """
local held = redis.call('GET', KEYS[1])
if held == false then
  held = ARGV[1] .. '|' .. redis.call('INCR', KEYS[2])
  redis.call('SET', KEYS[1], held, 'PX', ARGV[2])
elseif string.sub(held, 1, #ARGV[1] + 1) == ARGV[1] .. '|' then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  return {'', ''}
end
return {held, redis.call('GET', KEYS[3]) or ''}
"""
_REMEMBER = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


@dataclass(frozen=True)
class Held:
    """The lease, as it is ours."""

    term: str
    """Of this holder and this time of holding it: nobody else ever has it."""
    until_s: float
    """By the monotonic clock; nothing may be said on the lease's strength after it."""
    memory: bytes
    """What the last leader wrote, or nothing."""


class Lease:
    """One gateway's way to the lease. No call raises for a cache that does not answer: then the lease is not held."""

    def __init__(self, cache_url: str, gateway: str, ttl_s: float, memory_s: float) -> None:
        # A gateway that restarts under its old name is another holder.
        self._holder = f"{gateway}#{secrets.token_hex(4)}"
        self._ttl_s, self._memory_s = ttl_s, memory_s
        self._redis = Redis.from_url(cache_url, driver_info=None, retry=Retry(NoBackoff(), 0), protocol=2)
        self._hold, self._remember, self._release = map(self._redis.register_script, (_HOLD, _REMEMBER, _RELEASE))
        self._term = ""

    async def hold(self) -> Held | None:
        """Take or renew the lease; None where another has it or the cache does not answer."""
        began_s = time.monotonic()  # before the call, so that ours never outlasts the cache's own
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                held, memory = await self._hold(keys=_KEYS, args=[self._holder, int(self._ttl_s * 1000)])
        except _FAILURES:
            return None
        self._term = held.decode()
        return Held(self._term, began_s + self._ttl_s, memory) if self._term else None

    async def remember(self, memory: bytes) -> bool:
        """Write for the next leader, and say whether the lease was still ours."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return bool(await self._remember(keys=_KEYS, args=[self._term, memory, int(self._memory_s * 1000)]))
        except _FAILURES:
            return False

    async def aclose(self) -> None:
        """Give the lease back, so that another need not wait for its end."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                if self._term:
                    await self._release(keys=_KEYS, args=[self._term])
                await self._redis.aclose()
        except _FAILURES:  # then it ends by itself
            pass
