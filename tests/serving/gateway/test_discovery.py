"""Where engines are found, and what a pool makes of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from gateway_support import make_settings

from serving.gateway import discovery
from serving.gateway.discovery import Endpoint, FileSource, watch
from serving.gateway.errors import ApiError
from serving.gateway.metrics import Metrics
from serving.gateway.route import Pool
from serving.settings import ServedModel

MODEL = make_settings().models[0]
READY = {"name": "engine-small-0", "address": "127.20.1.2", "ready": True}
LOADING = {"name": "engine-small-1", "address": "127.20.1.3", "ready": False}


def write(folder: Path, *endpoints: dict[str, Any], ports: dict[str, int] | None = None) -> None:
    new = folder / "new"
    new.write_text(json.dumps({"ports": ports or {"http": 9000}, "endpoints": endpoints}))
    new.replace(folder / "serving.engine-small.json")


async def test_a_file_is_read_when_it_changes(tmp_path: Path) -> None:
    source = FileSource(tmp_path)
    assert await source.read(MODEL) == (), "no file, no engines"
    write(tmp_path, READY, LOADING)
    assert await source.read(MODEL) == (
        Endpoint("engine-small-0", "127.20.1.2", 9000, True),
        Endpoint("engine-small-1", "127.20.1.3", 9000, False),
    )
    assert await source.read(MODEL) is None, "nothing new"
    write(tmp_path)
    assert await source.read(MODEL) == (), "an empty list is believed"


async def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    source = FileSource(tmp_path)
    write(tmp_path, READY)
    await source.read(MODEL)
    (tmp_path / "serving.engine-small.json").write_text("{")
    assert await source.read(MODEL) is None


async def test_a_watcher_tells_of_changes_only(tmp_path: Path) -> None:
    source = FileSource(tmp_path)
    source.poll_s = 0.005
    seen: list[int] = []
    watcher = asyncio.create_task(watch(source, MODEL, lambda endpoints: seen.append(len(endpoints))))
    for endpoints in ((), (READY,), (READY,), (READY, LOADING)):
        write(tmp_path, *endpoints)
        await asyncio.sleep(0.05)
    watcher.cancel()
    assert seen == [0, 1, 2]


class Telling:
    """A source that says what it is told to, then nothing new."""

    poll_s = 0.0

    def __init__(self, *says: tuple[Endpoint, ...] | None) -> None:
        self.says = list(says)

    async def aclose(self) -> None:
        """Nothing is open."""

    async def read(self, model: ServedModel) -> tuple[Endpoint, ...] | None:
        return self.says.pop(0) if self.says else None


@pytest.mark.parametrize(("keep_s", "seen"), [(60.0, [1]), (0.0, [1, 0])])
async def test_engines_that_vanish_all_at_once_are_kept_for_a_while(
    monkeypatch: pytest.MonkeyPatch, keep_s: float, seen: list[int]
) -> None:
    """An empty answer of a resolver or a control plane must not end a service whose engines are well."""
    monkeypatch.setattr(discovery, "KEEP_LAST_S", keep_s)
    told: list[int] = []
    source = Telling((Endpoint("a", "127.0.0.1", 1, True),), (), None, ())
    watcher = asyncio.create_task(watch(source, MODEL, lambda endpoints: told.append(len(endpoints))))
    while source.says:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    watcher.cancel()
    assert told == seen


async def test_an_engine_that_stays_keeps_its_seats_and_its_ejection() -> None:
    metrics = Metrics(["small"])
    pool = Pool(MODEL, metrics)
    first, second = Endpoint("a", "127.0.0.1", 1, True), Endpoint("b", "127.0.0.1", 2, True)
    pool.update([first])
    seat = pool.take(1, (), [])
    seat.eject()
    pool.update([first, second])
    assert [pool.take(1, (), []).engine.endpoint.name for _ in range(3)] == ["b"] * 3
    seat.release()
    seat.release()
    assert seat.engine.replica.num_in_flight == 0
    with pytest.raises(ApiError):
        pool.update([Endpoint("a", "127.0.0.1", 1, False)])
        pool.take(1, (), [])
    assert b'flotilla_engines_ready{model="small"} 0.0' in metrics.render()


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert Endpoint("a", "fd00::1", 8000, True).authority == "[fd00::1]:8000"
