"""Twins behind a gateway, both in the test's own event loop: engines that say what really happened."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import msgspec
from gateway_support import RELEASE_ID, Gateway, chat_body, make_settings, running_gateway

from serving.gateway.discovery import Endpoint
from serving.gateway.prompt_table import PromptTable
from serving.gateway.prompts import prompt_counter
from serving.gateway.releases import LoadedRelease
from serving.metering.events import UsageClose
from serving.twin import vocabulary
from serving.twin.faults import FaultPlan, Switches
from serving.twin.truth import Record
from serving.twin.twin import Twin
from tests.serving.twin.conftest import CONFIG, own_vocabulary

WINDOW = 2048


def answer_of(events: list[bytes]) -> str:
    """The text of a stream, chat or plain."""
    text = ""
    for event in events:
        if event.startswith(b"data: {") and (choices := json.loads(event[6:]).get("choices")):
            text += (choices[0].get("delta") or {}).get("content") or choices[0].get("text") or ""
    return text


@dataclass
class Fleet:
    """A gateway and its twins."""

    gateway: Gateway
    twins: list[Twin]

    def fault(self, twin: int, **fault: Any) -> None:
        """Requests at one twin meet a fault from now on; no field ends it."""
        self.twins[twin].set_faults(msgspec.convert({"faults": [fault] if fault else []}, FaultPlan))

    def fault_all(self, **fault: Any) -> None:
        for number in range(len(self.twins)):
            self.fault(number, **fault)

    def switch(self, twin: int, **switches: bool) -> None:
        self.twins[twin].set_faults(FaultPlan([], Switches(**switches)))

    def prefer(self, twin: int) -> None:
        """All others are passed over for now, unless nobody else is left."""
        for engine in self.gateway.pools["small"].engines:
            engine.replica.ejected_until_s = -math.inf if engine.endpoint.name == f"twin-{twin}" else math.inf

    @property
    def records(self) -> list[Record]:
        return [record for twin in self.twins for record in twin.truth.records()]

    @property
    def bill(self) -> UsageClose:
        """The last one."""
        return self.gateway.journal.closed[-1]

    async def events(self, path: str = "/v1/chat/completions", *, resume: bool = True, **fields: Any) -> list[bytes]:
        """The events of a greedy stream."""
        body = chat_body(stream=True, temperature=0, max_tokens=40)
        if path == "/v1/completions":
            body["prompt"] = body.pop("messages")[0]["content"]
        headers = {"x-flotilla-resume": "true"} if resume else {}
        async with self.gateway.post(path, {**body, **fields}, **headers) as answer:
            assert answer.status == 200, await answer.text()
            return await split(answer)


async def split(answer: aiohttp.ClientResponse) -> list[bytes]:
    return [event for event in (await answer.content.read()).split(b"\n\n") if event]


@asynccontextmanager
async def running_fleet(
    num: int,
    *,
    mean_answer_tokens: int = 0,
    limits: dict[str, Any] | None = None,
    prompts: PromptTable | None = None,
    **settings: Any,
) -> AsyncIterator[Fleet]:
    """A gateway over `num` twins that answer at once; `limits` are changes of theirs."""
    files = vocabulary.own_files()
    counter = prompt_counter(files[vocabulary.TOKENIZER], files[vocabulary.CONFIG], files[vocabulary.TEMPLATE])
    made = make_settings(**settings)
    models = tuple(
        model.model_copy(update={"context_window_tokens": WINDOW, "max_in_flight_per_engine": 256}) for model in made.models
    )
    made = made.model_copy(update={"models": models})
    config = replace(CONFIG, mean_answer_tokens=mean_answer_tokens, limits=replace(CONFIG.limits, **(limits or {})))
    twins = [Twin(config, own_vocabulary(), Twin.vanish) for _ in range(num)]
    for twin in twins:
        await twin.start()
    try:
        async with running_gateway(files[vocabulary.TOKENIZER], made, prompts=prompts) as gateway:
            gateway.releases.release = LoadedRelease(RELEASE_ID, WINDOW, counter)
            found = [Endpoint(f"twin-{number}", "127.0.0.1", twin.port, is_ready=True) for number, twin in enumerate(twins)]
            gateway.pools["small"].update(found)
            yield Fleet(gateway, twins)
    finally:
        for twin in twins:
            await twin.stop()
