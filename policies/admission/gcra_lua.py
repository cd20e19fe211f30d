"""The decision of `gcra.py` as one Valkey script, so that several gateways decide on one state without a race.

One script for all limits and operations: one round trip, and all or nothing. The keys of a tenant share a hash tag, so they lie
in one slot. Time is the server's own (TIME), the same for every gateway; a test may pass its own. Arithmetic is in doubles,
operation by operation as in Python, and numbers are stored with 17 digits, so both give equal results.
"""

from __future__ import annotations

SCRIPT = """
-- KEYS: requests TAT, tokens TAT, leases.
-- ARGV: operation, now_us or '', requests_per_min, tokens_per_min, concurrency (0 is unlimited), tokens (or, to settle, their
-- change), lease, lease_us.
local PERIOD = 60000000
local operation, lease = ARGV[1], ARGV[7]
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local requests_limit, tokens_limit, concurrency = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local tokens, lease_us = tonumber(ARGV[6]), tonumber(ARGV[8])

local function charged(key, limit, cost)
  local stored = tonumber(redis.call('GET', key) or '0')
  if limit == 0 then return stored, stored end
  return math.max(stored, now) + cost * PERIOD / limit, stored
end
local function store(key, tat)
  redis.call('SET', key, string.format('%.17g', tat), 'PX', math.max(1, math.ceil((tat - now) / 1000)))
end
local function remaining(tat, limit)
  if limit == 0 then return -1 end
  return math.max(0, math.floor((now + PERIOD - math.max(tat, now)) * limit / PERIOD))
end
local function wait(tat, limit)
  if limit == 0 then return 0 end
  return math.max(0, tat - PERIOD - now)
end

if operation == 'renew' then
  redis.call('PEXPIRE', KEYS[3], math.ceil(lease_us / 1000))
  return redis.call('ZADD', KEYS[3], 'XX', 'CH', string.format('%.17g', now + lease_us), lease)
end
if operation == 'settle' then
  redis.call('ZREM', KEYS[3], lease)
  if tokens_limit > 0 then store(KEYS[2], math.max(charged(KEYS[2], tokens_limit, tokens), now)) end
  return 1
end

redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.17g', now))
local requests_tat, requests_old = charged(KEYS[1], requests_limit, 1)
local tokens_tat, tokens_old = charged(KEYS[2], tokens_limit, tokens)
local waits = {wait(requests_tat, requests_limit), wait(tokens_tat, tokens_limit), 0}
if concurrency > 0 and redis.call('ZCARD', KEYS[3]) >= concurrency then waits[3] = 1000000 end
local names, reason = {'requests', 'tokens', 'concurrency'}, 'admitted'
for i = 3, 1, -1 do if waits[i] > 0 then reason = names[i] end end
if reason ~= 'admitted' then
  local longest = math.max(waits[1], waits[2], waits[3])
  return {reason, string.format('%.17g', longest), remaining(requests_old, requests_limit), remaining(tokens_old, tokens_limit)}
end
if requests_limit > 0 then store(KEYS[1], requests_tat) end
if tokens_limit > 0 then store(KEYS[2], tokens_tat) end
if concurrency > 0 then
  redis.call('ZADD', KEYS[3], string.format('%.17g', now + lease_us), lease)
  redis.call('PEXPIRE', KEYS[3], math.ceil(lease_us / 1000))
end
return {'admitted', '0', remaining(requests_tat, requests_limit), remaining(tokens_tat, tokens_limit)}
"""


def keys(tenant: str) -> tuple[str, str, str]:
    """The three keys of `tenant`, in the script's order, all in one hash slot."""
    return (f"flotilla:{{{tenant}}}:requests", f"flotilla:{{{tenant}}}:tokens", f"flotilla:{{{tenant}}}:leases")
