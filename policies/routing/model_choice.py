"""Which model class answers a request that leaves it to us (`model: "auto"`): the smallest that should do. Pure.

The rule is the system design's: short and simple goes to the small class, coding or long context to the large one, all else to
the medium one. What is not declared is told from features that anyone can check: no model guesses here, so a decision can be
explained, repeated, and priced before it is made. The first line that holds decides:

    declared_coding, declared_long_context   large   the client said so
    long_prompt                              large   `Thresholds.long_prompt_tokens` or more
    code_fence                               large   the prompt holds a fenced block of code
    declared_reasoning                       medium  the client said so
    tools, response_format                   medium  the answer has a form to keep
    long_answer                              medium  `max_tokens` over `Thresholds.long_answer_tokens`
    not_short                                medium  `Thresholds.short_prompt_tokens` or more
    short_and_simple                         small

Then the tenant's floor and ceiling, and which classes there are for it: an answer comes from the nearest class that may give it,
the larger of two that are as near. What changed the rule's class is part of the reason: `code_fence+ceiling`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, get_args

ModelClass = Literal["small", "medium", "large"]
Need = Literal["coding", "long_context", "reasoning"]

SIZES: tuple[ModelClass, ...] = get_args(ModelClass)
"""From the smallest on."""
NEEDS: tuple[Need, ...] = get_args(Need)
BYTES_PER_TOKEN = 4
"""Of prompts that are too long to be counted only to choose by; what English takes with today's tokenizers, roughly."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where the rule's lines are, in tokens."""

    short_prompt_tokens: int = 250
    """A prompt of fewer is short: the system design's 1000 characters, at four to a token."""
    long_prompt_tokens: int = 4096
    """A prompt of so many is long context: the whole window of the 7B and 13B models that the system design names."""
    long_answer_tokens: int = 1024
    """Whoever asks for more than this does not ask for a short answer."""


THRESHOLDS = Thresholds()


@dataclass(frozen=True, slots=True)
class Features:
    """What of a request decides."""

    prompt_tokens: int
    """As the smallest class counts them, or bytes by `BYTES_PER_TOKEN`; classes' tokenizers differ, so another's count may."""
    needs: frozenset[Need] = frozenset()
    has_code_fence: bool = False
    has_tools: bool = False
    has_response_format: bool = False
    """A form other than plain text."""
    max_tokens: int | None = None
    """The most that the client wants, where it said so."""

    def __str__(self) -> str:
        """`prompt_tokens=12 needs=coding tools`, for a header."""
        parts = [f"prompt_tokens={self.prompt_tokens}"]
        if self.needs:
            parts.append(f"needs={'+'.join(sorted(self.needs))}")
        if self.max_tokens is not None:
            parts.append(f"max_tokens={self.max_tokens}")
        flags = {"code_fence": self.has_code_fence, "tools": self.has_tools, "response_format": self.has_response_format}
        return " ".join([*parts, *(name for name, is_there in flags.items() if is_there)])


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The class that answers, why, and who is next where the prompt does not fit its window."""

    model_class: ModelClass
    reason: str
    """`long_prompt`, `code_fence+ceiling`, `short_and_simple+window`."""
    features: Features
    others: tuple[ModelClass, ...] = ()
    """Classes that may answer instead, the next larger ones first, then the next smaller ones."""

    def next(self) -> ModelChoice | None:
        """The choice after the prompt did not fit; None where nobody is left."""
        if not self.others:
            return None
        reason = self.reason if self.reason.endswith("+window") else f"{self.reason}+window"
        return replace(self, model_class=self.others[0], others=self.others[1:], reason=reason)


def decide_model(
    features: Features,
    available: Collection[str],
    *,
    floor: ModelClass | None = None,
    ceiling: ModelClass | None = None,
    thresholds: Thresholds = THRESHOLDS,
) -> ModelChoice | None:
    """The class for a request with these features, of those `available` to its tenant from `floor` to `ceiling`; None where no
    class is both. A floor above the ceiling gives way to it, since the ceiling is about money."""
    wanted, reason = _rule(features, thresholds)
    top = len(SIZES) - 1 if ceiling is None else SIZES.index(ceiling)
    bottom = 0 if floor is None else min(SIZES.index(floor), top)
    rank = SIZES.index(wanted)
    if rank < bottom:
        rank, reason = bottom, f"{reason}+floor"
    elif rank > top:
        rank, reason = top, f"{reason}+ceiling"
    usable = [size for size in range(bottom, top + 1) if SIZES[size] in available]
    if not usable:
        return None
    nearest = min(usable, key=lambda size: (abs(size - rank), -size))
    if nearest != rank:
        reason = f"{reason}+not_available"
    others = [size for size in usable if size > nearest] + [size for size in reversed(usable) if size < nearest]
    return ModelChoice(SIZES[nearest], reason, features, tuple(SIZES[size] for size in others))


def _rule(features: Features, thresholds: Thresholds) -> tuple[ModelClass, str]:
    for need in ("coding", "long_context"):
        if need in features.needs:
            return "large", f"declared_{need}"
    if features.prompt_tokens >= thresholds.long_prompt_tokens:
        return "large", "long_prompt"
    if features.has_code_fence:
        return "large", "code_fence"
    if "reasoning" in features.needs:
        return "medium", "declared_reasoning"
    if features.has_tools:
        return "medium", "tools"
    if features.has_response_format:
        return "medium", "response_format"
    if features.max_tokens is not None and features.max_tokens > thresholds.long_answer_tokens:
        return "medium", "long_answer"
    if features.prompt_tokens >= thresholds.short_prompt_tokens:
        return "medium", "not_short"
    return "small", "short_and_simple"
