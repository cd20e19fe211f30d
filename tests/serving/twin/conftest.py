"""Twins in this process, and a client that shows all that they send."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from policies.capacity.step_law import StepLaw
from serving.twin import vocabulary
from serving.twin.engine import Limits
from serving.twin.faults import FaultPlan, Switches
from serving.twin.kv_events import EventsConfig
from serving.twin.truth import Record
from serving.twin.twin import Twin, TwinConfig
from serving.twin.vocabulary import Vocabulary

LIMITS = Limits(
    max_model_len=2048,
    max_num_seqs=8,
    max_num_batched_tokens=512,
    max_loras=2,
    max_lora_rank=16,
    law=StepLaw(0, 0, 0, 0),
    lora_load_s=0,
    speed=0,
)
CONFIG = TwinConfig(
    host="127.0.0.1",
    port=0,
    served_name="small",
    model_root="twin",
    limits=LIMITS,
    num_blocks=1000,
    block_tokens=16,
    is_caching=True,
    events=EventsConfig(),
    seed=1,
    fault_seed=1,
    mean_answer_tokens=0,
)


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@cache
def own_vocabulary() -> Vocabulary:
    return vocabulary.load(None)


@dataclass
class Asker:
    """A twin and a client of it."""

    twin: Twin
    session: aiohttp.ClientSession

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.twin.port}"

    async def post(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        async with self.session.post(self.base + path, json=body) as answer:
            return answer.status, await answer.json(content_type=None)

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.base + path) as answer:
            return answer.status, await answer.text()

    async def complete(self, prompt: str | list[int], max_tokens: int = 8, **fields: Any) -> dict[str, Any]:
        """A greedy plain answer."""
        body = {"model": "small", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        status, document = await self.post("/v1/completions", **{**body, **fields})
        assert status == 200, document
        return document

    async def stream(self, prompt: str = "the people", max_tokens: int = 8, **fields: Any) -> list[dict[str, Any]]:
        """The events of a greedy stream, `[DONE]` left out."""
        return [json.loads(event) for event in await self.raw_events(prompt, max_tokens, **fields) if event != "[DONE]"]

    async def raw_events(self, prompt: str = "the people", max_tokens: int = 8, **fields: Any) -> list[str]:
        options = {"include_usage": True, "continuous_usage_stats": True}
        body = {"model": "small", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True}
        async with self.session.post(f"{self.base}/v1/completions", json={**body, "stream_options": options, **fields}) as answer:
            assert answer.status == 200, await answer.text()
            text = (await answer.read()).decode()
        return [event.removeprefix("data: ") for event in text.split("\n\n") if event]

    def fault(self, *faults: dict[str, Any], **fields: Any) -> None:
        """Requests from now on meet these faults, or the one of `fields`."""
        self.twin.set_faults(msgspec.convert({"faults": [*faults, *([fields] if fields else [])]}, FaultPlan))

    def switch(self, **fields: bool) -> None:
        """The whole twin is like this from now on."""
        self.twin.set_faults(FaultPlan([], Switches(**fields)))

    @property
    def records(self) -> list[Record]:
        return list(self.twin.truth.records())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts twins; `limits` are changes of LIMITS, all else changes of CONFIG."""
    askers: list[Asker] = []

    async def start_one(limits: dict[str, Any] | None = None, **fields: Any) -> Asker:
        config = replace(CONFIG, limits=replace(LIMITS, **(limits or {})), **fields)
        twin = Twin(config, own_vocabulary(), Twin.vanish)
        await twin.start()
        askers.append(Asker(twin, aiohttp.ClientSession()))
        return askers[-1]

    yield start_one
    for asker in askers:
        await asker.session.close()
        await asker.twin.stop()


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    """Folder of an adapter of rank 8."""
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    return str(tmp_path)


@pytest.fixture
async def twin(start: Start) -> Asker:
    asker: Asker = await start()
    return asker
