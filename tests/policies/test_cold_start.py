"""The model of a cold start: its arithmetic on a round case, and what must always be true of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.cold_start import GB_PER_GIB, HASHED_AT_ONCE, Rates, model_cold_start
from serving.models.fetch import MAX_HASHERS
from serving.settings import EngineSettings

ROUND = Rates(
    pull_gb_per_s=0.1,
    connection_gb_per_s=0.1,
    num_connections=10,
    hash_gb_per_s=0.5,
    load_gb_per_s=2.0,
    start_s=20,
    compile_s=40,
    compile_cached_s=5,
    capture_s=10,
    warm_up_s=1,
)


def test_phases_are_bytes_over_rates() -> None:
    # 10 GB image at 0.1; 16 GB of weights at 10 × 0.1, hashed as 4 files at 0.5 each, into 2 GPUs at 2 each.
    start = model_cold_start(10, 16 / GB_PER_GIB, num_files=4, num_gpus=2, rates=ROUND)
    assert [start.pull_s, start.fetch_s, start.verify_s, start.load_s, start.compile_s, start.warm_up_s] == pytest.approx(
        [100, 16, 8, 20 + 4, 50, 1]
    )
    assert start.total_s == pytest.approx(199)


def test_a_node_that_has_the_image_and_a_cache_that_has_the_kernels_save_their_phases() -> None:
    warm = model_cold_start(0, 16 / GB_PER_GIB, 4, 2, ROUND, is_compiled=True)
    assert (warm.pull_s, warm.compile_s) == (0, 15)


def test_more_files_than_hashers_are_hashed_no_faster() -> None:
    assert model_cold_start(0, 16, 30, 8, ROUND).verify_s == model_cold_start(0, 16, 8, 8, ROUND).verify_s


@given(st.floats(0, 100), st.floats(0.1, 1000), st.integers(1, 64), st.integers(1, 8))
def test_more_bytes_never_start_faster_and_more_connections_never_slower(
    image_gb: float, weights_gib: float, num_files: int, num_gpus: int
) -> None:
    start = model_cold_start(image_gb, weights_gib, num_files, num_gpus)
    assert model_cold_start(image_gb + 1, weights_gib + 1, num_files, num_gpus).total_s > start.total_s
    faster = replace(Rates(), num_connections=64)
    assert model_cold_start(image_gb, weights_gib, num_files, num_gpus, faster).total_s < start.total_s


def test_the_model_fetches_and_hashes_as_the_supervisor_does() -> None:
    assert EngineSettings.model_fields["fetch_concurrency"].default == Rates().num_connections
    assert MAX_HASHERS == HASHED_AT_ONCE
