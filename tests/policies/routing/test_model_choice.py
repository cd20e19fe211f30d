"""Which class answers `auto`: the table of the rule, its edges in tokens, what a tenant may change, and what holds for all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.routing.model_choice import NEEDS, SIZES, THRESHOLDS, Features, ModelChoice, Thresholds, decide_model

CODING, LONG, REASONING = frozenset({"coding"}), frozenset({"long_context"}), frozenset({"reasoning"})
BOTH, ALL = frozenset({"coding", "reasoning"}), frozenset(NEEDS)
FENCE, TOOLS, FORMAT = {"has_code_fence": True}, {"has_tools": True}, {"has_response_format": True}


def chosen(features: Features, available: Any = SIZES, **bounds: Any) -> ModelChoice:
    choice = decide_model(features, available, **bounds)
    assert choice is not None
    return choice


@pytest.mark.parametrize(
    ("prompt_tokens", "fields", "expected"),
    [
        # What is said in a few tokens and needs nothing.
        (1, {}, "small short_and_simple"),
        (12, {}, "small short_and_simple"),
        (100, {}, "small short_and_simple"),
        (248, {}, "small short_and_simple"),
        (249, {}, "small short_and_simple"),
        (12, {"max_tokens": 1}, "small short_and_simple"),
        (12, {"max_tokens": 16}, "small short_and_simple"),
        (12, {"max_tokens": 1023}, "small short_and_simple"),
        (12, {"max_tokens": 1024}, "small short_and_simple"),
        (249, {"max_tokens": 1024}, "small short_and_simple"),
        # A token more, in the prompt or the answer.
        (250, {}, "medium not_short"),
        (1000, {}, "medium not_short"),
        (4094, {}, "medium not_short"),
        (4095, {}, "medium not_short"),
        (250, {"max_tokens": 1}, "medium not_short"),
        (4095, {"max_tokens": 1024}, "medium not_short"),
        (12, {"max_tokens": 1025}, "medium long_answer"),
        (12, {"max_tokens": 32_000}, "medium long_answer"),
        (249, {"max_tokens": 1025}, "medium long_answer"),
        (250, {"max_tokens": 1025}, "medium long_answer"),
        (4095, {"max_tokens": 8192}, "medium long_answer"),
        # Long context is a prompt of 4096 tokens, whatever else is asked.
        (4096, {}, "large long_prompt"),
        (4097, {}, "large long_prompt"),
        (30_000, {}, "large long_prompt"),
        (1_000_000, {}, "large long_prompt"),
        (4096, {"max_tokens": 1}, "large long_prompt"),
        (4096, {"max_tokens": 4096}, "large long_prompt"),
        (4096, TOOLS, "large long_prompt"),
        (4096, FORMAT, "large long_prompt"),
        (4096, FENCE, "large long_prompt"),
        (4096, {"needs": REASONING}, "large long_prompt"),
        # A form that has to be kept.
        (12, TOOLS, "medium tools"),
        (249, TOOLS, "medium tools"),
        (4095, TOOLS, "medium tools"),
        (12, FORMAT, "medium response_format"),
        (4095, FORMAT, "medium response_format"),
        (12, TOOLS | FORMAT, "medium tools"),
        (12, TOOLS | {"max_tokens": 2000}, "medium tools"),
        (12, FORMAT | {"max_tokens": 2000}, "medium response_format"),
        # Code that is seen.
        (12, FENCE, "large code_fence"),
        (249, FENCE, "large code_fence"),
        (4095, FENCE, "large code_fence"),
        (12, FENCE | TOOLS, "large code_fence"),
        (12, FENCE | FORMAT | TOOLS, "large code_fence"),
        (12, FENCE | {"needs": REASONING}, "large code_fence"),
        # What is declared goes before what is seen.
        (1, {"needs": CODING}, "large declared_coding"),
        (12, {"needs": CODING, "max_tokens": 16}, "large declared_coding"),
        (12, {"needs": CODING, "has_tools": True}, "large declared_coding"),
        (12, {"needs": BOTH}, "large declared_coding"),
        (12, {"needs": ALL}, "large declared_coding"),
        (4096, {"needs": CODING}, "large declared_coding"),
        (12, {"needs": LONG}, "large declared_long_context"),
        (12, {"needs": LONG | REASONING}, "large declared_long_context"),
        (4096, {"needs": LONG}, "large declared_long_context"),
        (12, {"needs": REASONING}, "medium declared_reasoning"),
        (4095, {"needs": REASONING}, "medium declared_reasoning"),
        (12, {"needs": REASONING, "has_tools": True}, "medium declared_reasoning"),
        (12, {"needs": REASONING, "max_tokens": 8192}, "medium declared_reasoning"),
    ],
)
def test_sixty_prompts_and_the_class_and_reason_of_each(prompt_tokens: int, fields: dict[str, Any], expected: str) -> None:
    choice = chosen(Features(prompt_tokens, **fields))
    assert f"{choice.model_class} {choice.reason}" == expected


@pytest.mark.parametrize(
    ("features", "available", "bounds", "expected"),
    [
        (Features(12), SIZES, {"floor": "medium"}, "medium short_and_simple+floor"),
        (Features(12), SIZES, {"floor": "large"}, "large short_and_simple+floor"),
        (Features(12), SIZES, {"floor": "small", "ceiling": "large"}, "small short_and_simple"),
        (Features(9000), SIZES, {"ceiling": "medium"}, "medium long_prompt+ceiling"),
        (Features(9000), SIZES, {"ceiling": "small"}, "small long_prompt+ceiling"),
        (Features(300), SIZES, {"floor": "medium", "ceiling": "medium"}, "medium not_short"),
        (Features(12), SIZES, {"floor": "large", "ceiling": "small"}, "small short_and_simple"),  # money goes first
        (Features(12), ["medium", "large"], {}, "medium short_and_simple+not_available"),
        (Features(9000), ["small", "medium"], {}, "medium long_prompt+not_available"),
        (Features(300), ["small", "large"], {}, "large not_short+not_available"),  # as near as small: the larger of the two
        (Features(300), ["small", "large"], {"ceiling": "medium"}, "small not_short+not_available"),
        (Features(12), ["large"], {}, "large short_and_simple+not_available"),
        (Features(12), ["small", "large"], {"floor": "medium"}, "large short_and_simple+floor+not_available"),
    ],
)
def test_a_tenant_bounds_the_choice_and_the_reason_says_so(
    features: Features, available: Any, bounds: dict[str, Any], expected: str
) -> None:
    choice = chosen(features, available, **bounds)
    assert f"{choice.model_class} {choice.reason}" == expected


def test_nobody_answers_where_bounds_leave_no_class() -> None:
    assert decide_model(Features(12), []) is None
    assert decide_model(Features(12), ["small"], floor="medium") is None


def test_a_prompt_that_does_not_fit_goes_up_first_then_down_and_says_so_once() -> None:
    choice: ModelChoice | None = chosen(Features(300))
    seen = []
    while choice is not None:
        seen.append((choice.model_class, choice.reason))
        choice = choice.next()
    assert seen == [("medium", "not_short"), ("large", "not_short+window"), ("small", "not_short+window")]
    assert chosen(Features(12), ceiling="small").next() is None


def test_other_thresholds_move_the_lines() -> None:
    assert chosen(Features(12), thresholds=Thresholds(short_prompt_tokens=12)).reason == "not_short"
    assert chosen(Features(12), thresholds=Thresholds(long_prompt_tokens=12)).reason == "long_prompt"
    assert (THRESHOLDS.short_prompt_tokens, THRESHOLDS.long_prompt_tokens, THRESHOLDS.long_answer_tokens) == (250, 4096, 1024)


def test_features_read_as_a_header_needs_them() -> None:
    everything = Features(312, BOTH, True, True, True, 64)
    assert str(everything) == "prompt_tokens=312 needs=coding+reasoning max_tokens=64 code_fence tools response_format"
    assert str(Features(12)) == "prompt_tokens=12"


@given(
    prompt_tokens=st.integers(0, 10_000),
    more_tokens=st.integers(0, 10_000),
    needs=st.frozensets(st.sampled_from(NEEDS)),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    available=st.sets(st.sampled_from(SIZES), min_size=1),
    floor=st.none() | st.sampled_from(SIZES),
    ceiling=st.none() | st.sampled_from(SIZES),
)
def test_a_choice_is_allowed_and_a_longer_prompt_never_gets_a_smaller_class(
    prompt_tokens: int, more_tokens: int, needs: Any, flags: Any, available: Any, floor: Any, ceiling: Any
) -> None:
    short, long = (
        decide_model(Features(tokens, needs, *flags), available, floor=floor, ceiling=ceiling)
        for tokens in (prompt_tokens, prompt_tokens + more_tokens)
    )
    if short is None or long is None:
        assert short is long
        return
    assert SIZES.index(short.model_class) <= SIZES.index(long.model_class)
    assert {short.model_class, *short.others} <= available
    if ceiling is not None:
        assert all(SIZES.index(name) <= SIZES.index(ceiling) for name in (short.model_class, *short.others))
