"""A review as the comment on a pull request: Markdown, the same for equal reviews, short first and whole below.

Nothing in it is trusted: names and values come from the reviewed code, and are shown as code, with what could end it taken out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infra.embedded.diff import PropertyChange, ResourceChange, Verdict
from infra.embedded.preview import MARKS, StackPreview
from infra.embedded.property_paths import ABSENT
from infra.reviews.review import Review
from policies.costs.prices import HOURS_PER_MONTH
from policies.guardrails.rule import Severity

MARKER = "<!-- flotilla: preview -->"
"""By which the comment is found again and written over."""
COLUMNS = (Verdict.CREATED, Verdict.UPDATED, Verdict.REPLACED, Verdict.DELETED)
MAX_VALUE_CHARS = 80
PLAIN = " .,:;-–_/()%×'=$"
"""What may stand in plain words beside letters and digits."""
MAX_CHARS = 60_000
"""GitHub takes 65,536."""


def comment(review: Review) -> str:
    """The comment, ending in a newline. Detail that would not fit is left out, and said to be."""
    head = "\n".join(_head(review))
    details: list[str] = []
    left_out = 0
    for stack in review.preview.stacks:
        if stack.diff.is_empty:
            continue
        detail = "\n".join(_detail(stack))
        if len(head) + sum(map(len, details)) + len(detail) > MAX_CHARS:
            left_out += 1
        else:
            details.append(detail)
    tail = (
        [f"_{left_out} stacks more would not fit: run `flotilla preview --all --against` the same commit._"] if left_out else []
    )
    return "\n".join([head, *details, *tail]).rstrip() + "\n"


def _head(review: Review) -> Iterator[str]:
    yield MARKER
    yield "## Preview"
    yield ""
    yield (
        f"Against {_code(review.against)}. Flotilla's own preview, from the program alone and without credentials:"
        " the engine's, which knows what runs, is another check."
    )
    yield ""
    if review.preview.is_empty:
        yield "**Nothing would change.**"
        yield ""
        return
    yield from _summary(review)
    yield from _costs(review)
    yield from _budgets(review)
    yield from _guardrails(review)
    yield from _replacements(review)
    yield from _scaling(review)


def _summary(review: Review) -> Iterator[str]:
    reach = "; ".join(f"{environment}: {', '.join(regions)}" for environment, regions in review.reach.items())
    yield f"**Reach**: {reach}."
    yield ""
    deltas = {item.stack: item.delta_usd_per_h for item in review.cost.stacks}
    new = dict.fromkeys(deltas, 0)
    for finding in review.broken:
        new[finding.stack] = new.get(finding.stack, 0) + 1
    yield "| stack | created | updated | replaced | deleted | $ an hour | rules broken |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    unchanged = 0
    for stack in review.preview.stacks:
        if stack.diff.is_empty:
            unchanged += 1
            continue
        counts = stack.diff.counts()
        numbers = [str(counts[verdict] or "") for verdict in COLUMNS]
        dollars = f"{deltas.get(stack.stack, 0.0):+,.2f}"
        yield f"| {_code(stack.stack)} | {' | '.join(numbers)} | {dollars} | {new.get(stack.stack) or ''} |"
    yield ""
    if unchanged:
        yield f"{unchanged} stacks do not change."
        yield ""


def _costs(review: Review) -> Iterator[str]:
    delta = sum(item.delta_usd_per_h for item in review.cost.stacks)
    floor = review.cost.floor_usd_per_h
    unpriced = sorted({kind for bill in review.cost.bills for kind in bill.unpriced})
    yield (
        f"**Cost** of what always runs: ${floor:,.2f} an hour, {delta:+,.2f} by this change"
        f" ({delta * HOURS_PER_MONTH:+,.0f} a month). What is billed by use is in no sum."
    )
    if unpriced:
        yield f"Unpriced, in no sum: {', '.join(map(_code, unpriced))}."
    yield ""


def _budgets(review: Review) -> Iterator[str]:
    """Every budget that is exceeded, and those that this change comes nearer to or further from."""
    changed = {item.stack for item in review.cost.stacks if item.delta_usd_per_h}
    changed |= {stack.partition(".")[0] for stack in changed}
    exceeded = sum(verdict.is_exceeded for verdict in review.budgets)
    yield f"**Budgets**: {exceeded} exceeded." if exceeded else "**Budgets**: none exceeded."
    yield ""
    for verdict in review.budgets:
        if verdict.is_exceeded or verdict.scope in changed:
            yield f"- {'**' if verdict.is_exceeded else ''}{_text(verdict.message)}{'**' if verdict.is_exceeded else ''}."
    yield ""


def _guardrails(review: Review) -> Iterator[str]:
    if review.broken:
        mandatory = sum(finding.severity is Severity.MANDATORY for finding in review.broken)
        yield f"**Rules**: {len(review.broken)} broken by this change, {mandatory} of them mandatory."
        yield ""
        for finding in review.broken:
            yield (
                f"- {_code(finding.rule)} {_code(finding.stack)} {_code(finding.name)}: {_text(finding.message)}."
                f" Remedy: {_text(finding.remedy)}."
            )
    else:
        yield "**Rules**: none broken by this change."
    if review.mended:
        yield f"- {len(review.mended)} kept again that were broken before."
    if review.num_known:
        yield f"- {review.num_known} were broken before and still are."
    yield ""


def _replacements(review: Review) -> Iterator[str]:
    for title, changes in (("Replaced", review.replaced), ("Deleted", review.deleted)):
        if not changes:
            continue
        yield f"**{title}**: {len(changes)}."
        yield ""
        for stack, change in changes:
            why = f" for {', '.join(map(_code, change.forced_by))}" if change.forced_by else ""
            refused = " **The engine will refuse it: it is protected.**" if change.refusal else ""
            yield f"- {_code(stack)} {_code(change.resource.type)} {_code(change.resource.name)}{why}.{refused}"
        yield ""


def _scaling(review: Review) -> Iterator[str]:
    if not review.scaling:
        return
    yield "**Scaling**"
    yield ""
    yield "| stack | workload | | before | after |"
    yield "|---|---|---|--:|--:|"
    for change in review.scaling:
        sides = f"{_side(change.before)} | {_side(change.after)}"
        yield f"| {_code(change.stack)} | {_code(change.workload)} | {change.what} | {sides} |"
    yield ""


def _detail(stack: StackPreview) -> Iterator[str]:
    yield f"<details><summary>{_text(stack.stack)}</summary>"
    yield ""
    yield "| | resource | property | before | after |"
    yield "|---|---|---|---|---|"
    for change in stack.diff.of(*MARKS):
        yield from _rows(change)
    yield ""
    yield "</details>"
    yield ""


def _rows(change: ResourceChange) -> Iterator[str]:
    named = f"{_code(change.resource.type.rpartition(':')[2])} {_code(change.resource.name)}"
    mark = change.verdict.value
    if not change.properties:
        yield f"| {mark} | {named} | | | |"
    for item in change.properties:
        yield f"| {mark} | {named} | {_code(item.path)} | {_value(item, 'before')} | {_value(item, 'after')} |"


def _value(item: PropertyChange, side: str) -> str:
    value = getattr(item, side)
    return "" if value is ABSENT else _code(_short(value))


def _side(value: Any) -> str:
    return "–" if value is None else _code(_short(value))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[: MAX_VALUE_CHARS - 1]}…"


def _code(text: str) -> str:
    """As code in a table's cell: no backtick, bar or line break can end it."""
    kept = text.replace("`", "'").replace("|", "∣").replace("\n", " ").replace("\r", " ")
    return f"`{kept}`" if kept else ""


def _text(text: str) -> str:
    """As plain words: no Markdown, HTML, mention or link comes through."""
    return "".join(letter if letter.isalnum() or letter in PLAIN else f"&#{ord(letter)};" for letter in text)
