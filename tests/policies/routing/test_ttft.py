"""First tokens are predicted from what was seen, and what changes is learnt anew."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.routing.ttft import MIN_S, OWN_SAMPLES, Features, Predictor, features


def drawn(rng: Random) -> Features:
    return features(rng.uniform(50, 8000), rng.choice([0, 0, 2000, 9000]), rng.randrange(64))


def law(x: Features, speed: float = 1.0) -> float:
    """An engine whose first tokens follow the law to the letter."""
    return (0.01 + 0.06 * x[1] + 0.05 * x[2] + 0.02 * x[3] + 0.01 * x[4]) / speed


def test_nothing_is_said_while_nothing_is_known() -> None:
    assert Predictor().predict_s("one", features(100, 0, 0)) is None


def test_what_follows_the_law_is_predicted_from_few_samples() -> None:
    rng, predictor = Random(1), Predictor()
    for _ in range(30):
        x = drawn(rng)
        predictor.learn("one", x, law(x))
    x = drawn(rng)
    assert predictor.predict_s("one", x) == pytest.approx(law(x), rel=0.02)


def test_a_replica_that_is_slower_than_its_class_is_known_by_its_own_samples() -> None:
    rng, predictor = Random(2), Predictor()
    for _ in range(OWN_SAMPLES):
        x = drawn(rng)
        predictor.learn("fast", x, law(x))
        predictor.learn("slow", x, law(x, 0.5))
    x = features(2000, 0, 4)
    assert predictor.predict_s("fast", x) == pytest.approx(law(x), rel=0.05)
    assert predictor.predict_s("slow", x) == pytest.approx(law(x, 0.5), rel=0.05)


def test_what_changes_is_learnt_anew() -> None:
    rng, predictor = Random(3), Predictor()
    for speed, num in ((1.0, 500), (0.5, 1500)):
        for _ in range(num):
            x = drawn(rng)
            predictor.learn("one", x, law(x, speed))
    x = features(2000, 0, 4)
    assert predictor.predict_s("one", x) == pytest.approx(law(x, 0.5), rel=0.1)


def test_the_published_error_is_near_the_median() -> None:
    """Noise of +-20 % around the law: half of the errors are below 10 %."""
    rng, predictor = Random(4), Predictor()
    for _ in range(3000):
        x = drawn(rng)
        predictor.learn("one", x, law(x) * rng.uniform(0.8, 1.2))
    assert 0.07 <= predictor.error_ratio <= 0.14


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 32_000), st.integers(0, 100_000), st.integers(0, 256), st.floats(0, 600)), max_size=200))
def test_whatever_was_seen_a_prediction_is_a_time(seen: list[tuple[int, int, int, float]]) -> None:
    predictor = Predictor()
    for *asked, ttft_s in seen:
        predictor.learn("one", features(*asked), ttft_s)
    predicted_s = predictor.predict_s("one", features(1000, 0, 1))
    assert predicted_s is None or MIN_S <= predicted_s < float("inf")
