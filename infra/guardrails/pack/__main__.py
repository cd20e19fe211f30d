"""The guardrails as a policy pack. Needs `pulumi-policy` beside the project: requirements/dev.txt has it."""

from __future__ import annotations

from pulumi_policy import EnforcementLevel, PolicyPack

from infra import config
from infra.guardrails.engine import policies
from infra.guardrails.graphs import load_waivers
from policies.guardrails.rules import RULES

PolicyPack(
    name="flotilla",
    enforcement_level=EnforcementLevel.MANDATORY,
    policies=policies(RULES, config.load_catalog(), load_waivers(), config.today),
)
