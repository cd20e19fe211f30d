"""A twin as the engine of a pod: the supervisor starts it, proves it by its release's canaries, and watches it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from serving.engine.adapters import EngineArgsError, Launch
from serving.engine.source import Obtained
from serving.engine.twin_adapter import TwinAdapter
from serving.models.convert import CANARIES_NAME, FILES_NAME
from serving.models.fetch import FetchedRelease
from serving.models.files import Progress
from serving.models.manifest import Canaries, Manifest
from serving.twin import release
from tests.serving.engine.conftest import RELEASE, ReadySource, Start, start  # noqa: F401 (a fixture)


@dataclass(frozen=True)
class TwinSource(ReadySource):
    """A twin's release, which is there already."""

    def obtain(self, release_id: str, on_progress: Callable[[Progress], None], stop: threading.Event) -> Obtained:
        folder = release.make(self.cache)
        canaries = msgspec.json.decode((folder / CANARIES_NAME).read_bytes(), type=Canaries)
        manifest = Manifest("small", "Twin", release.SOURCE, release.CONTEXT_WINDOW_TOKENS, {}, ())
        return Obtained(RELEASE, FetchedRelease(folder / FILES_NAME, manifest, 0.1, 1, 0.1, 1), {canaries.key: canaries})


async def post(base: str, path: str, body: dict[str, Any]) -> Any:
    async with aiohttp.ClientSession() as session, session.post(base + path, json=body) as answer:
        return await answer.json()


async def test_a_pod_with_a_twin_is_ready_by_its_canaries_and_answers(start: Start) -> None:  # noqa: F811
    pod = start(TwinSource, ("--max-model-len", "2048", "--speed", "0"), adapter=TwinAdapter())
    await pod.until_ready()
    answer = await post(pod.base, "/v1/completions", {"model": "small", "prompt": "one", "max_tokens": 5})
    assert answer["usage"]["completion_tokens"] == 5
    assert pod.metric('flotilla_engine_canary_tokens_total{kind="output",model="small"}') == 16


async def test_a_twin_that_says_other_words_is_never_ready(start: Start) -> None:  # noqa: F811
    pod = start(TwinSource, ("--faults", '{"faults": [{"kind": "wrong_text"}]}'), adapter=TwinAdapter())
    await pod.until(lambda: pod.restarts("canary") > 0)
    assert not pod.supervisor.is_ready


async def test_a_twin_that_hangs_with_work_is_restarted(start: Start) -> None:  # noqa: F811
    pod = start(TwinSource, ("--speed", "0"), adapter=TwinAdapter())
    await pod.until_ready()
    await post(pod.base, "/twin/faults", {"switches": {"frozen": True}})
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"{pod.base}/v1/completions", json={"model": "small", "prompt": "one"})
    await pod.until(lambda: pod.restarts("stalled") == 1)
    await pod.until_ready()


def test_a_release_of_a_model_is_refused_by_its_argument() -> None:
    launch = Launch(Path("/model"), "small", "127.0.0.1", 8000, {"dtype": "bfloat16"}, (), Path("/cache"))
    with pytest.raises(EngineArgsError, match="--dtype"):
        TwinAdapter().command(launch)
