"""All guardrails, in the order of their modules."""

from __future__ import annotations

from policies.guardrails import identity, network, nodes, operations, pods, storage
from policies.guardrails.rule import Rule

RULES: tuple[Rule, ...] = tuple(
    rule for module in (storage, identity, network, nodes, pods, operations) for rule in module.book.rules
)
