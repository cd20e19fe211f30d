"""The page about the rules, made from the rules themselves, so that it cannot say anything else than they do."""

from __future__ import annotations

from policies.guardrails import identity, network, nodes, operations, pods, storage
from policies.guardrails.rule import Rulebook, Severity

CHAPTERS: tuple[tuple[str, Rulebook], ...] = (
    ("Data", storage.book),
    ("Identity", identity.book),
    ("Network and clusters", network.book),
    ("Nodes", nodes.book),
    ("Pods", pods.book),
    ("Everything", operations.book),
)
HEAD = """# Guardrails

What must hold of everything that the program declares. `flotilla guardrails --all` asks them of the recorded graphs, with no
cloud and no credentials; `pulumi up --policy-pack infra/guardrails/pack` asks the same functions of the real engine. A finding
that somebody answers for is waived in `stacks/waivers.yaml`, with owner, reason and an end.

This page is written by `flotilla guardrails --rules > docs/guardrails.md`.
"""


def handbook() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for title, book in CHAPTERS:
        parts.append(f"\n## {title}\n\n| rule | what must hold | remedy |\n|---|---|---|\n")
        for rule in book.rules:
            advisory = " (advisory)" if rule.severity is Severity.ADVISORY else ""
            text = f"{rule.title} {rule.reason}".strip().replace("|", "\\|")
            parts.append(f"| `{rule.name}`{advisory} | {text} | {rule.remedy} |\n")
    return "".join(parts)
