"""The decision of `limits.py` as one Valkey script, so that several gateways decide on one state without a race.

One script for all limits and operations: one round trip, and all or nothing. The keys of a tenant share a hash tag, so they lie
in one slot. Time is the server's own (TIME), the same for every gateway; a test may pass its own. Arithmetic is in doubles,
operation by operation as in Python, and numbers are stored with 17 digits, so both give equal results. Money is whole numbers
below 2^53, which doubles hold exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

from policies.admission.limits import NANO_PER_MICRO, Cost, Decision, Limits, Spent, Window

SCRIPT = """
-- KEYS: rates, leases by when they run out, what each holds, budget.
-- ARGV: operation, now_us or '', lease, lease_us, four limits a minute, concurrency, budgets of day and month in nano-dollars
-- (-1 is unlimited), day, month, what is left of each in us, four costs (or their change), nano-dollars wanted (or spent), the
-- least of them.
local PERIOD = 60000000
local operation, lease, lease_us = ARGV[1], ARGV[3], tonumber(ARGV[4])
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local function number(at) return tonumber(ARGV[at]) end
local function text(value) return string.format('%.17g', value) end
local concurrency, budgets, lefts_us = number(9), {number(10), number(11)}, {number(14), number(15)}
local has_budget = budgets[1] >= 0 or budgets[2] >= 0
local has_leases = has_budget or concurrency >= 0
local NAMES = {'requests', 'tokens', 'input_tokens', 'output_tokens', 'concurrency', 'budget_day', 'budget_month'}
local caps, costs, has_rates = {}, {}, false
for i = 1, 4 do
  caps[i], costs[i] = number(4 + i), number(15 + i)
  has_rates = has_rates or caps[i] >= 0
end

local old, new = {0, 0, 0, 0}, {0, 0, 0, 0}
if has_rates then
  local stored = redis.call('HMGET', KEYS[1], '1', '2', '3', '4')
  for i = 1, 4 do
    old[i] = tonumber(stored[i] or '0')
    new[i] = old[i]
    if caps[i] >= 0 then new[i] = math.max(old[i], now) + costs[i] * PERIOD / caps[i] end
  end
end
local function store_rates()
  if not has_rates then return end
  local latest = now
  for i = 1, 4 do latest = math.max(latest, new[i]) end
  redis.call('HSET', KEYS[1], '1', text(new[1]), '2', text(new[2]), '3', text(new[3]), '4', text(new[4]))
  redis.call('PEXPIRE', KEYS[1], math.max(1, math.ceil((latest - now) / 1000)))
end
local function release(name)
  redis.call('ZREM', KEYS[2], name)
  local held = redis.call('HGET', KEYS[3], name)
  if held then
    redis.call('HDEL', KEYS[3], name)
    redis.call('HINCRBY', KEYS[3], '', '-' .. held)
  end
end
-- Both live as long as their newest lease: then all of them have run out.
local function keep()
  redis.call('PEXPIRE', KEYS[2], math.ceil(lease_us / 1000))
  redis.call('PEXPIRE', KEYS[3], math.ceil(lease_us / 1000))
end
local function take(name, holds)
  redis.call('ZADD', KEYS[2], text(now + lease_us), name)
  if holds > 0 then
    redis.call('HSET', KEYS[3], name, string.format('%.0f', holds))
    redis.call('HINCRBY', KEYS[3], '', string.format('%.0f', holds))
  end
  keep()
end

-- The budget as it is on this day, or nil where it is not known. A clock that is behind does not turn it back.
local spent, has_turned = nil, false
local function read_budget()
  local day, month = number(12), number(13)
  local stored = redis.call('HMGET', KEYS[4], 'day', 'month', 'day_spent', 'month_spent')
  if not stored[1] then return end
  spent = {tonumber(stored[1]), tonumber(stored[2]), tonumber(stored[3]), tonumber(stored[4])}
  has_turned = day > spent[1] or month > spent[2]
  if day > spent[1] then spent[1], spent[3] = day, 0 end
  if month > spent[2] then spent[2], spent[4] = month, 0 end
end
local function store_budget()
  local function whole(value) return string.format('%.0f', value) end
  redis.call('HSET', KEYS[4], 'day', spent[1], 'month', spent[2], 'day_spent', whole(spent[3]), 'month_spent', whole(spent[4]))
  redis.call('PEXPIRE', KEYS[4], 3456000000)
end

if operation == 'renew' then
  keep()
  return redis.call('ZADD', KEYS[2], 'XX', 'CH', text(now + lease_us), lease)
end
if operation == 'adopt' then
  if has_leases then
    release(lease)  -- a cache that only hung may have taken it after all
    take(lease, has_budget and number(20) or 0)
  end
  return 1
end
if operation == 'seed' then
  read_budget()
  local day, month = number(12), number(13)
  if not spent then spent = {day, month, 0, 0} end
  if spent[1] == day then spent[3] = math.max(spent[3], number(20)) end
  if spent[2] == month then spent[4] = math.max(spent[4], number(21)) end
  store_budget()
  return 1
end
if operation == 'recall' then
  for i = 1, 4 do if caps[i] >= 0 then new[i] = math.max(old[i], now + costs[i] * PERIOD / caps[i]) end end
  store_rates()
  return 1
end
if operation == 'settle' then
  if has_leases and lease ~= '' then release(lease) end
  for i = 1, 4 do if caps[i] >= 0 then new[i] = math.max(new[i], now) end end
  store_rates()
  if has_budget then
    read_budget()
    if spent then
      spent[3], spent[4] = spent[3] + number(20), spent[4] + number(20)
      store_budget()
    end
  end
  return 1
end

if has_leases then
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', text(now))) do release(name) end
end
local held = 0
if has_budget then
  held = tonumber(redis.call('HGET', KEYS[3], '') or '0')
  read_budget()
  if has_turned then store_budget() end
end
local function left(i)
  if budgets[i] < 0 then return -1 end
  return math.max(0, budgets[i] - (spent and spent[2 + i] or 0) - held)
end
local function answer(reason, wait, tats, granted, bound_by)
  local result = {reason, text(wait)}
  for i = 1, 4 do
    local remains = -1
    if caps[i] >= 0 then remains = math.max(0, math.floor((now + PERIOD - math.max(tats[i], now)) * caps[i] / PERIOD)) end
    result[2 + i] = remains
  end
  result[7], result[8], result[9], result[10], result[11] = granted, left(1), left(2), bound_by, held
  return result
end
if has_budget and not spent then return answer('unseeded', 0, old, 0, 'admitted') end

local waits = {0, 0, 0, 0, 0, 0, 0}
for i = 1, 4 do if caps[i] >= 0 then waits[i] = math.max(0, new[i] - PERIOD - now) end end
if concurrency >= 0 and redis.call('ZCARD', KEYS[2]) >= concurrency then waits[5] = 1000000 end
local granted, bound_by, least = number(20), 'admitted', number(21)
for i = 1, 2 do
  local remains = left(i)
  if remains >= 0 then
    if remains < granted then granted, bound_by = remains, NAMES[5 + i] end
    if remains < least then waits[5 + i] = (remains + held < least) and lefts_us[i] or 1000000 end
  end
end
local reason, longest = 'admitted', 0
for i = 7, 1, -1 do
  if waits[i] > 0 then reason = NAMES[i] end
  longest = math.max(longest, waits[i])
end
if reason ~= 'admitted' then return answer(reason, longest, old, 0, 'admitted') end
store_rates()
if has_leases then take(lease, has_budget and granted or 0) end
if has_budget then held = held + granted end
return answer('admitted', 0, new, granted, bound_by)
"""


def keys(tenant: str) -> tuple[str, str, str, str]:
    """The keys of `tenant`, in the script's order, all in one hash slot."""
    return (
        f"flotilla:{{{tenant}}}:rates",
        f"flotilla:{{{tenant}}}:leases",
        f"flotilla:{{{tenant}}}:held",
        f"flotilla:{{{tenant}}}:budget",
    )


def arguments(
    operation: str,
    limits: Limits,
    cost: Cost,
    window: Window,
    *,
    lease: str = "",
    lease_us: float = 0,
    now_us: float | None = None,
    rated: Sequence[int] | None = None,
) -> list[str | int]:
    """The script's arguments, in its order. `rated` where tokens are not the sum of the cost's two kinds."""
    budgets = (limits.budget_day_micro_usd, limits.budget_month_micro_usd)
    return [
        operation,
        "" if now_us is None else f"{now_us:.17g}",
        lease,
        int(lease_us),
        *(-1 if cap is None else cap for cap in (*limits.per_min, limits.concurrency)),
        *(-1 if cap is None else cap * NANO_PER_MICRO for cap in budgets),
        window.day,
        window.month,
        f"{window.day_left_us:.17g}",
        f"{window.month_left_us:.17g}",
        *(cost.rated if rated is None else rated),
        cost.nano_usd,
        cost.least_nano_usd,
    ]


def seed_arguments(limits: Limits, spent: Spent) -> list[str | int]:
    """The arguments of the operation `seed`."""
    cost = Cost(nano_usd=spent.day_nano_usd, least_nano_usd=spent.month_nano_usd)
    return arguments("seed", limits, cost, Window(spent.day, spent.month, 0, 0))


def decision(answer: list[str | int]) -> Decision:
    """What the script answers to `reserve`, as the function does."""
    reason, wait_us, *remaining, granted, day, month, bound_by, held = answer
    return Decision(
        reason=reason,  # type: ignore[arg-type]
        retry_after_s=float(wait_us) / 1e6,
        remaining=tuple(int(value) for value in remaining),
        granted_nano_usd=int(granted),
        day_left_nano_usd=int(day),
        month_left_nano_usd=int(month),
        held_nano_usd=int(held),
        bound_by=bound_by,  # type: ignore[arg-type]
    )
