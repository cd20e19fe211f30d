"""Whose limits a request counts against: its tenant's, and those of the key that it came with, if that has any.

A key that was rotated goes on with its predecessor's account: rotating would else double what it may.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.admission.limits import Limits
from serving.gateway.tenants import Key, Tenant


@dataclass(frozen=True)
class Account:
    """One holder of limits."""

    name: str
    """The tenant, or `tenant/key`."""
    limits: Limits
    tenant: str
    key_ids: tuple[str, ...] = ()
    """The key and all that it was rotated from; none for a tenant."""


def accounts_of(tenant: Tenant, key: Key | None = None) -> tuple[Account, ...]:
    """The accounts that have limits: the tenant's first; empty where nothing is limited."""
    found = [Account(tenant.id, tenant.limits, tenant.id)]
    if key is not None:
        ids = (*key.rotated_from, key.key_id)
        found.append(Account(f"{tenant.id}/{ids[0]}", key_limits(key, tenant), tenant.id, ids))
    return tuple(account for account in found if not account.limits.is_unlimited)


def key_limits(key: Key, tenant: Tenant) -> Limits:
    """The key's own limits, and its share of its tenant's budgets; of a millionth of a dollar, at least one."""

    def share(budget: int | None) -> int | None:
        percent = key.budget_share_percent
        return None if budget is None or percent is None else max(1, budget * percent // 100)

    return Limits(
        key.requests_per_min,
        key.tokens_per_min,
        key.concurrency,
        budget_day_micro_usd=share(tenant.budget_day_micro_usd),
        budget_month_micro_usd=share(tenant.budget_month_micro_usd),
    )
