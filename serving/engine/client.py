"""Speaks to the engine on its own port: is it there, what does it say of its work, does it give the known answers."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

import aiohttp
import msgspec

from policies.health import Sample
from serving.engine.adapters import EngineAdapter
from serving.engine.connections import count_connections
from serving.models.manifest import Canary

REFUSALS = (aiohttp.ClientError, TimeoutError, OSError)


class CanaryError(Exception):
    """The engine gave another answer than the known one, or none."""


@dataclass(frozen=True)
class CanaryAnswer:
    """What a canary prompt cost, by the engine's own count."""

    input_tokens: int
    output_tokens: int


class _Choice(msgspec.Struct):
    text: str


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage


class EngineClient:
    """One engine's port. Each request has a connection of its own, so that open ones are clients'."""

    def __init__(self, adapter: EngineAdapter, host: str, port: int, probe_timeout_s: float) -> None:
        self._adapter = adapter
        self._host, self._port = host, port
        self._base = f"http://{host}:{port}"
        self._probe_timeout = aiohttp.ClientTimeout(total=probe_timeout_s)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), trust_env=False)

    async def close(self) -> None:
        """Ends all requests."""
        await self._session.close()

    async def is_healthy(self) -> bool:
        """Whether the engine's health endpoint says yes."""
        try:
            status, _ = await self._get(self._adapter.health_path)
            return status == 200
        except REFUSALS:
            return False

    async def sample(self, *, is_canary_out: bool) -> Sample:
        """One look, for `policies.health.judge`."""
        num_connections = count_connections(self._host, self._port)
        try:
            health, _ = await self._get(self._adapter.health_path)
            status, metrics = await self._get(self._adapter.metrics_path)
        except REFUSALS:
            return Sample(at_s=time.monotonic(), has_answered=False)
        if status != 200:
            return Sample(at_s=time.monotonic(), has_answered=False)
        stats = self._adapter.stats(metrics.decode())
        return Sample(
            at_s=time.monotonic(),
            has_answered=True,
            says_dead=health >= 500,
            num_requests=stats.num_running + stats.num_waiting,
            progress=stats.progress,
            num_connections=num_connections,
            is_canary_out=is_canary_out,
        )

    async def version(self) -> str:
        """The engine's version, or `unknown`."""
        try:
            _, document = await self._get(self._adapter.version_path)
            return self._adapter.version(document)
        except (*REFUSALS, msgspec.MsgspecError, KeyError):
            return "unknown"

    async def ask(self, model: str, canary: Canary, *, max_tokens: int, timeout_s: float | None) -> CanaryAnswer:
        """Asks a canary prompt for at most `max_tokens` tokens and compares as much of the answer as there is.

        Raises:
            CanaryError: the answer is another, or there is none within `timeout_s` (None: however long it takes).
        """
        max_tokens = min(max_tokens, canary.max_tokens)
        body = self._adapter.canary_body(model, canary.prompt, max_tokens, secrets.token_hex(8))
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.post(self._base + self._adapter.completions_path, json=body, timeout=timeout) as answer:
                document = await answer.read()
        except REFUSALS as error:
            raise CanaryError(f"no answer to {canary.prompt!r}: {type(error).__name__} {error}".rstrip()) from error
        if answer.status != 200:
            raise CanaryError(f"{canary.prompt!r} was answered {answer.status}: {document[:200].decode(errors='replace')}")
        try:
            completion = msgspec.json.decode(document, type=_Completion)
            text = completion.choices[0].text
        except (msgspec.MsgspecError, IndexError) as error:
            raise CanaryError(f"{canary.prompt!r} was answered with something else than a completion: {error}") from error
        is_whole = max_tokens == canary.max_tokens
        if not text or not (text.startswith(canary.expected) if is_whole else canary.expected.startswith(text)):
            raise CanaryError(f"{canary.prompt!r} was answered {text!r}, must begin with {canary.expected!r}")
        return CanaryAnswer(completion.usage.prompt_tokens, completion.usage.completion_tokens)

    async def _get(self, path: str) -> tuple[int, bytes]:
        async with self._session.get(self._base + path, timeout=self._probe_timeout) as answer:
            return answer.status, await answer.read()
