"""The decision of `limits.py` as one Valkey script, so that several gateways decide on one state without a race.

One script for all limits and operations, of a tenant and of its key: one round trip, and all or nothing. The keys of a tenant
share a hash tag, so they lie in one slot. Time is the server's own (TIME), the same for every gateway; a test may pass its own.
Arithmetic is in doubles, operation by operation as in Python, and numbers are stored with 17 digits, so both give equal results.
Money is whole numbers below 2^53, which doubles hold exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

from policies.admission.limits import NANO_PER_MICRO, Cost, Decision, Limits, Spent, Window

SCRIPT = """
-- KEYS, four for each account: rates, leases by when they run out, what each holds, budget.
-- ARGV: operation, now_us or '', lease, lease_us, day, month, what is left of each in us, four costs (or their change),
-- nano-dollars wanted (or spent), the least of them; then for each account four limits a minute, concurrency, budgets of day and
-- month in nano-dollars (-1 is unlimited).
local PERIOD = 60000000
local function number(at) return tonumber(ARGV[at]) end
local operation, lease, lease_us = ARGV[1], ARGV[3], number(4)
local day, month, lefts_us = number(5), number(6), {number(7), number(8)}
local costs, money, least = {number(9), number(10), number(11), number(12)}, number(13), number(14)
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local function text(value) return string.format('%.17g', value) end
local function whole(value) return string.format('%.0f', value) end
local NAMES = {'requests', 'tokens', 'input_tokens', 'output_tokens', 'concurrency', 'budget_day', 'budget_month'}

-- Does the operation for one account. A reservation is only weighed: it gives its reason, its wait, what it grants, and a
-- function that takes so much or, of nil, nothing, and gives the account's answer.
local function account(rates_key, leases_key, held_key, budget_key, at)
  local caps, has_rates = {}, false
  for i = 1, 4 do
    caps[i] = number(at + i)
    has_rates = has_rates or caps[i] >= 0
  end
  local concurrency, budgets = number(at + 5), {number(at + 6), number(at + 7)}
  local has_budget = budgets[1] >= 0 or budgets[2] >= 0
  local has_leases = has_budget or concurrency >= 0

  local old, new = {0, 0, 0, 0}, {0, 0, 0, 0}
  if has_rates then
    local stored = redis.call('HMGET', rates_key, '1', '2', '3', '4')
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
    redis.call('HSET', rates_key, '1', text(new[1]), '2', text(new[2]), '3', text(new[3]), '4', text(new[4]))
    redis.call('PEXPIRE', rates_key, math.max(1, math.ceil((latest - now) / 1000)))
  end
  local function release(name)
    redis.call('ZREM', leases_key, name)
    local held = redis.call('HGET', held_key, name)
    if held then
      redis.call('HDEL', held_key, name)
      redis.call('HINCRBY', held_key, '', '-' .. held)
    end
  end
  -- Both live as long as their newest lease: then all of them have run out.
  local function keep()
    redis.call('PEXPIRE', leases_key, math.ceil(lease_us / 1000))
    redis.call('PEXPIRE', held_key, math.ceil(lease_us / 1000))
  end
  local function take(name, holds)
    redis.call('ZADD', leases_key, text(now + lease_us), name)
    if holds > 0 then
      redis.call('HSET', held_key, name, whole(holds))
      redis.call('HINCRBY', held_key, '', whole(holds))
    end
    keep()
  end

  -- The budget as it is on this day, or nil where it is not known. A clock that is behind does not turn it back.
  local spent, has_turned = nil, false
  local function read_budget()
    local stored = redis.call('HMGET', budget_key, 'day', 'month', 'day_spent', 'month_spent')
    if not stored[1] then return end
    spent = {tonumber(stored[1]), tonumber(stored[2]), tonumber(stored[3]), tonumber(stored[4])}
    has_turned = day > spent[1] or month > spent[2]
    if day > spent[1] then spent[1], spent[3] = day, 0 end
    if month > spent[2] then spent[2], spent[4] = month, 0 end
  end
  local function store_budget()
    redis.call(
      'HSET', budget_key, 'day', spent[1], 'month', spent[2], 'day_spent', whole(spent[3]), 'month_spent', whole(spent[4])
    )
    redis.call('PEXPIRE', budget_key, 3456000000)
  end

  if operation == 'renew' then
    keep()
    redis.call('ZADD', leases_key, 'XX', 'CH', text(now + lease_us), lease)
    return
  end
  if operation == 'adopt' then
    if has_leases then
      release(lease)  -- a cache that only hung may have taken it after all
      take(lease, has_budget and money or 0)
    end
    return
  end
  if operation == 'seed' then
    read_budget()
    if not spent then spent = {day, month, 0, 0} end
    if spent[1] == day then spent[3] = math.max(spent[3], money) end
    if spent[2] == month then spent[4] = math.max(spent[4], least) end
    store_budget()
    return
  end
  if operation == 'recall' then
    for i = 1, 4 do if caps[i] >= 0 then new[i] = math.max(old[i], now + costs[i] * PERIOD / caps[i]) end end
    store_rates()
    return
  end
  if operation == 'settle' then
    if has_leases and lease ~= '' then release(lease) end
    for i = 1, 4 do if caps[i] >= 0 then new[i] = math.max(new[i], now) end end
    store_rates()
    if has_budget then
      read_budget()
      if spent then
        spent[3], spent[4] = spent[3] + money, spent[4] + money
        store_budget()
      end
    end
    return
  end

  if has_leases then
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', leases_key, '-inf', text(now))) do release(name) end
  end
  local held, running = 0, 0
  if has_budget then
    held = tonumber(redis.call('HGET', held_key, '') or '0')
    read_budget()
    if has_turned then store_budget() end
  end
  if concurrency >= 0 then running = redis.call('ZCARD', leases_key) end
  local function left(i)
    if budgets[i] < 0 then return -1 end
    return math.max(0, budgets[i] - (spent and spent[2 + i] or 0) - held)
  end

  local reason, longest, granted, bound_by = 'admitted', 0, money, 'admitted'
  if has_budget and not spent then
    reason = 'unseeded'
  else
    local waits = {0, 0, 0, 0, 0, 0, 0}
    for i = 1, 4 do if caps[i] >= 0 then waits[i] = math.max(0, new[i] - PERIOD - now) end end
    if concurrency >= 0 and running >= concurrency then waits[5] = 1000000 end
    for i = 1, 2 do
      local remains = left(i)
      if remains >= 0 then
        if remains < granted then granted, bound_by = remains, NAMES[5 + i] end
        if remains < least then waits[5 + i] = (remains + held < least) and lefts_us[i] or 1000000 end
      end
    end
    for i = 7, 1, -1 do
      if waits[i] > 0 then reason = NAMES[i] end
      longest = math.max(longest, waits[i])
    end
  end
  local function conclude(takes)
    local tats = old
    if takes then
      tats = new
      store_rates()
      if has_leases then take(lease, has_budget and takes or 0) end
      if has_budget then held = held + takes end
      running = running + 1
    end
    local result = {reason, text(longest)}
    for i = 1, 4 do
      local remains = -1
      if caps[i] >= 0 then remains = math.max(0, math.floor((now + PERIOD - math.max(tats[i], now)) * caps[i] / PERIOD)) end
      result[2 + i] = remains
    end
    result[7], result[8], result[9] = takes or 0, left(1), left(2)
    result[10], result[11] = takes and bound_by or 'admitted', held
    result[12] = concurrency >= 0 and math.max(0, concurrency - running) or -1
    return result
  end
  return reason, granted, conclude
end

local concludes, takes = {}, money
for number = 1, #KEYS / 4 do
  local k = 4 * (number - 1)
  local reason, granted, conclude = account(KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], KEYS[k + 4], 14 + 7 * (number - 1))
  if operation == 'reserve' then
    concludes[number] = conclude
    if reason ~= 'admitted' then takes = nil end
    if takes then takes = math.min(takes, granted) end
  end
end
local answers = {}
for number, conclude in ipairs(concludes) do answers[number] = conclude(takes) end
return answers
"""


def keys(*accounts: str) -> tuple[str, ...]:
    """The keys of accounts, in the script's order. An account is a tenant, or a tenant's key as `tenant/key`; all of a tenant lie
    in one hash slot."""
    found: list[str] = []
    for account in accounts:
        tenant, _, key = account.partition("/")
        start = f"flotilla:{{{tenant}}}:{key}:" if key else f"flotilla:{{{tenant}}}:"
        found += [start + kind for kind in ("rates", "leases", "held", "budget")]
    return tuple(found)


def arguments(
    operation: str,
    limits: Sequence[Limits],
    cost: Cost,
    window: Window,
    *,
    lease: str = "",
    lease_us: float = 0,
    now_us: float | None = None,
    rated: Sequence[int] | None = None,
) -> list[str | int]:
    """The script's arguments, in its order. `rated` where tokens are not the sum of the cost's two kinds."""
    found: list[str | int] = [
        operation,
        "" if now_us is None else f"{now_us:.17g}",
        lease,
        int(lease_us),
        window.day,
        window.month,
        f"{window.day_left_us:.17g}",
        f"{window.month_left_us:.17g}",
        *(cost.rated if rated is None else rated),
        cost.nano_usd,
        cost.least_nano_usd,
    ]
    for one in limits:
        found += [-1 if cap is None else cap for cap in (*one.per_min, one.concurrency)]
        budgets = (one.budget_day_micro_usd, one.budget_month_micro_usd)
        found += [-1 if cap is None else cap * NANO_PER_MICRO for cap in budgets]
    return found


def seed_arguments(spent: Spent) -> list[str | int]:
    """The arguments of the operation `seed` for one account."""
    cost = Cost(nano_usd=spent.day_nano_usd, least_nano_usd=spent.month_nano_usd)
    return arguments("seed", [Limits()], cost, Window(spent.day, spent.month, 0, 0))


def decisions(answers: list[list[str | int]]) -> list[Decision]:
    """What the script answers to `reserve`, as the function does: one for each account."""
    return [_decision(answer) for answer in answers]


def _decision(answer: list[str | int]) -> Decision:
    reason, wait_us, *remaining, granted, day, month, bound_by, held, seats = answer
    return Decision(
        reason=reason,  # type: ignore[arg-type]
        retry_after_s=float(wait_us) / 1e6,
        remaining=tuple(int(value) for value in remaining),
        granted_nano_usd=int(granted),
        day_left_nano_usd=int(day),
        month_left_nano_usd=int(month),
        held_nano_usd=int(held),
        seats_left=int(seats),
        bound_by=bound_by,  # type: ignore[arg-type]
    )
