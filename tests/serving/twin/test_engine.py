"""Continuous batching: who runs, who waits, how long a step takes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from policies.capacity.step_law import PROFILES, StepLaw
from tests.serving.twin.conftest import Asker, Start

SLOW = {"law": StepLaw(base_s=0.02, prefill_s_per_token=0, decode_s_per_sequence=0, kv_s_per_token=0), "speed": 1.0}


@pytest.mark.parametrize(
    ("profile", "prefill_1024_ms", "decodes", "kv_tokens", "decode_ms"),
    [
        # reference figures: Vidur's kernels on A100, batch with a mean context of 1,155 + 211 / 2 tokens
        ("a100-small", 71, 64, 64 * 1260 * 512 / 56, 38),  # measured with Llama-2-7B's KV, 512 KiB a token instead of 56
        ("a100-large", 140, 256, 256 * 1260, 57),
    ],
)
def test_the_law_gives_back_the_figures_it_was_made_from(
    profile: str, prefill_1024_ms: float, decodes: int, kv_tokens: float, decode_ms: float
) -> None:
    law = PROFILES[profile].law
    assert law.step_s(1024, 0, 0) * 1000 == pytest.approx(prefill_1024_ms, rel=0.03)
    assert law.step_s(0, decodes, int(kv_tokens)) * 1000 == pytest.approx(decode_ms, rel=0.05)


async def test_a_batch_takes_the_steps_of_its_longest_answer(start: Start) -> None:
    """Eight answers of ten tokens, side by side, are ten steps, not eighty; the ground truth's times show it."""
    twin = await start(limits=SLOW)
    await asyncio.gather(*(twin.complete(f"number {number}", 10) for number in range(8)))
    took_s = max(record.ended_s for record in twin.records) - min(record.arrived_s for record in twin.records)
    assert 10 * 0.02 <= took_s < 40 * 0.02


async def test_no_more_run_than_there_are_slots(start: Start) -> None:
    twin = await start(limits={**SLOW, "max_num_seqs": 2})
    asking = [asyncio.create_task(twin.complete(f"number {number}", 5)) for number in range(6)]
    await twin.until(lambda: twin.twin.engine.running != [])
    _, metrics = await twin.get("/metrics")
    assert 'vllm:num_requests_running{engine="0",model_name="small"} 2.0' in metrics
    assert 'vllm:num_requests_waiting{engine="0",model_name="small"} 4.0' in metrics
    await asyncio.gather(*asking)
    assert [record.number for record in twin.records] == list(range(6))  # first come, first served


async def test_a_long_prompt_is_computed_in_chunks_beside_others_tokens(start: Start) -> None:
    twin = await start(limits={**SLOW, "max_num_batched_tokens": 100})
    streaming = asyncio.create_task(twin.complete("one", 30))
    await twin.until(lambda: any(record.generated_tokens for record in twin.records))
    before = twin.records[0].generated_tokens
    await twin.complete(list(range(300, 900)), 1)  # 600 tokens at 99 a step beside the other's: 7 steps
    assert twin.records[-1].generated_tokens - before >= 6
    await streaming


async def test_when_blocks_run_out_the_youngest_starts_anew_and_all_end_right(start: Start) -> None:
    roomy, tight = await start(), await start(num_blocks=21)
    expected = [await roomy.complete([300 + number] * 40, 100) for number in range(3)]
    answers = await asyncio.gather(*(tight.complete([300 + number] * 40, 100) for number in range(3)))
    assert [answer["choices"] for answer in answers] == [answer["choices"] for answer in expected]
    assert sum(record.num_preemptions for record in tight.records) > 0
    assert tight.records[0].num_preemptions == 0
    assert tight.twin.pool.num_free == 20


async def test_more_adapters_than_slots_take_turns(start: Start, adapter: str) -> None:
    twin = await start(limits={**SLOW, "max_loras": 2})
    for name in ("a", "b", "c"):
        twin.twin.load_adapter(name, adapter)
    asking = [asyncio.create_task(twin.complete("one", 5, model=name)) for name in ("a", "b", "c", "a")]
    await twin.until(lambda: len(twin.twin.engine.running) == 3)
    _, metrics = await twin.get("/metrics")
    assert 'max_lora="2",running_lora_adapters="a,b",waiting_lora_adapters="c"' in metrics
    assert 'reason="deferred"} 1.0' in metrics
    await asyncio.gather(*asking)
    assert twin.twin.stats.num_lora_loads == 3


async def test_a_client_that_leaves_frees_its_slot_at_once(start: Start) -> None:
    twin = await start(limits=SLOW)
    for is_streamed in (True, False):
        asking = asyncio.create_task(
            twin.post("/v1/completions", model="small", prompt="one", max_tokens=1000, stream=is_streamed)
        )
        await twin.until(lambda: bool(twin.twin.engine.running))
        asking.cancel()
        await twin.until(lambda: not twin.twin.engine.running)
        assert twin.records[-1].outcome == "aborted"
    assert twin.twin.pool.num_free == twin.twin.pool.num_blocks
    assert not twin.twin.truth.running


async def test_an_idle_twin_sets_no_timer(twin: Asker) -> None:
    await twin.complete("one", 3)
    assert twin.twin.engine._timer is None


async def test_adapters_are_loaded_and_unloaded_and_refused_in_vllms_words(twin: Asker, adapter: str) -> None:
    assert (await twin.post("/v1/completions", model="acme", prompt="one"))[0] == 404
    async with twin.session.post(f"{twin.base}/v1/load_lora_adapter", json={"lora_name": "acme", "lora_path": adapter}) as answer:
        assert await answer.text() == "Success: LoRA adapter 'acme' added successfully."
    assert [model["id"] for model in json.loads((await twin.get("/v1/models"))[1])["data"]] == ["small", "acme"]
    (Path(adapter) / "adapter_config.json").write_text('{"r": 64}')
    for name, path, status, told in (
        ("acme", adapter, 400, "already been loaded"),
        ("large", adapter, 400, "LoRA rank 64 is greater than max_lora_rank 16."),
        ("none", "/nowhere", 404, "No adapter found for /nowhere"),
    ):
        found, document = await twin.post("/v1/load_lora_adapter", lora_name=name, lora_path=path)
        assert (found, told in document["error"]["message"]) == (status, True)
    assert (await twin.post("/v1/unload_lora_adapter", lora_name="nobody"))[0] == 404
    async with twin.session.post(f"{twin.base}/v1/unload_lora_adapter", json={"lora_name": "acme"}) as answer:
        assert answer.status == 200
    assert (await twin.post("/v1/completions", model="acme", prompt="one"))[0] == 404
