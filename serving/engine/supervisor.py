"""The life of an engine pod, as one state machine.

    fetch ─► verify ─► load ─► warm_up ─► serving ─┐
                        ▲                          │ exited, stalled, silent, or a wrong canary
                        └──────── restart ◄────────┘
    any of these ─► draining (told to leave)          any of these ─► failed (too many quick failures)

No request passes through here: the gateway speaks to the engine's own port. What this decides is whether the engine may be
spoken to (`is_ready`), and whether it lives. A restart keeps the verified weights; a new release is for new pods.

The order at the end, and why: not ready first, so that gateways stop sending; then the requests that were sent finish, within
`drain_s`; then the engine is asked to end; then its whole group is killed, because parts of an engine can outlive each other.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from policies.health import HealthLimits, History, Verdict, decide_restart, judge
from serving.engine.adapters import ENGINE_PORT, EngineAdapter, EngineArgsError, Launch, canary_key, hardware_name
from serving.engine.background import in_background
from serving.engine.client import CanaryAnswer, CanaryError, EngineClient
from serving.engine.drain import await_idle
from serving.engine.metrics import Metrics
from serving.engine.process import EngineProcess
from serving.engine.source import NOT_OBTAINED, UNREACHABLE, Obtained, ReleaseSource
from serving.engine.state import Cadence, Failure, Phase, Status, note_cold_start
from serving.models.files import Progress
from serving.models.manifest import Canaries, Canary
from serving.models.registry import AliasNotFoundError

log = structlog.get_logger()


class GaveUpError(Exception):
    """The same thing failed too often in a row; the orchestrator's back-off takes over."""


@dataclass
class Supervisor:
    """Runs one engine. `run` is its life; `drain` and `leave` may be called at any time."""

    source: ReleaseSource
    adapter: EngineAdapter
    metrics: Metrics
    host: str
    """Address of the pod, which the engine listens on."""
    engine_args: Sequence[str]
    cadence: Cadence = field(default_factory=Cadence)
    status: Status = field(default_factory=lambda: Status(Phase.FETCH, "starting"))
    _is_well: bool = False
    _engine: EngineProcess | None = None
    _leaving: asyncio.Event = field(default_factory=asyncio.Event)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _stop_fetch: threading.Event = field(default_factory=threading.Event)

    @property
    def is_ready(self) -> bool:
        """The engine gave the known answers, makes progress, and is not leaving."""
        return self._is_well and not self._leaving.is_set()

    async def drain(self) -> None:
        """Not ready from this moment; returns when the requests that were sent have finished, or `drain_s` is over."""
        self._leaving.set()
        self._set_well(False)
        await self._idle.wait()

    def leave(self) -> None:
        """Drain, end the engine, and let `run` return 0."""
        self._leaving.set()
        self._stopping.set()
        self._set_well(False)

    async def run(self) -> int:
        """Exit status: 0 when told to leave, 1 after too many quick failures."""
        work = asyncio.ensure_future(self._work())
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await self._leave(work)
                return 0
            work.result()
            return 0
        except GaveUpError as error:
            self.status = Status(Phase.FAILED, str(error), self.status.release_id)
            log.error("supervisor_gave_up", model=self._model, detail=str(error))
            return 1
        finally:
            work.cancel()
            leaving.cancel()
            self._set_well(False)
            self._idle.set()
            if self._engine:
                await self._engine.kill()

    @property
    def _model(self) -> str:
        return self.source.settings.model_class

    async def _work(self) -> None:
        """Obtains the release and keeps an engine running on it. Ends only by cancellation or GaveUpError."""
        obtained = await self._obtain()
        fetched = obtained.fetched
        launch = Launch(
            model_folder=fetched.folder,
            served_name=self._model,
            host=self.host,
            port=ENGINE_PORT,
            release_args=fetched.manifest.engine_args,
            pod_args=self.engine_args,
            cache_folder=self.source.cache,
        )
        try:
            command = self.adapter.command(launch)
        except EngineArgsError as error:
            raise GaveUpError(str(error)) from error
        environment = self.adapter.environment(os.environ, launch)
        num_quick_failures = 0
        while True:
            failure, served_s = await self._one_life(obtained, command, environment)
            self._set_well(False)
            num_quick_failures = await self._after(failure, served_s, num_quick_failures)
            obtained = obtained.as_found()

    async def _obtain(self) -> Obtained:
        """The release that the registry names, once it names one and the bucket has it."""
        num_failures = 0
        while True:
            release_id = await self._resolve()
            self.status = Status(Phase.FETCH, "", release_id)
            try:
                return await in_background(self.source.obtain, release_id, self._show_progress, self._stop_fetch)
            except NOT_OBTAINED as error:
                decision = decide_restart(0.0, num_failures, self.cadence.restarts)
                num_failures = decision.num_quick_failures
                log.warning(
                    "fetch_failed", model=self._model, release_id=release_id, detail=str(error), again_in_s=decision.delay_s
                )
                if not decision.restart:
                    raise GaveUpError(f"release {release_id[:12]} of {self._model}: {error}") from error
                self.status = Status(Phase.FETCH, f"again in {decision.delay_s:.0f} s: {error}", release_id)
                await asyncio.sleep(decision.delay_s)

    async def _resolve(self) -> str:
        """Waits for as long as the registry names no release or does not answer: a new pod would be no better off."""
        while True:
            try:
                return await in_background(self.source.current)
            except AliasNotFoundError as error:
                self.status = Status(Phase.FETCH, f"waiting: {error.message}")
            except UNREACHABLE as error:
                self.status = Status(Phase.FETCH, f"waiting: the registry does not answer: {error}")
            await asyncio.sleep(self.cadence.registry_poll_s)

    def _show_progress(self, progress: Progress) -> None:
        """Called from the fetching threads."""
        if progress.stage == "verify":
            self.status = Status(Phase.VERIFY, f"{progress.total / 1e6:.0f} MB", self.status.release_id)
        else:
            detail = f"{progress.done / 1e6:.0f} of {progress.total / 1e6:.0f} MB"
            self.status = Status(Phase.FETCH, detail, self.status.release_id)

    async def _one_life(self, obtained: Obtained, command: Sequence[str], environment: dict[str, str]) -> tuple[Failure, float]:
        """Why this engine's life ended, and for how long it had been ready. Its processes are the caller's to end."""
        settings = self.source.settings
        self.status = Status(Phase.LOAD, "starting the engine", obtained.release_id)
        began_s = time.monotonic()
        engine = await self._start(command, environment)
        self.metrics.engine_started()
        client = EngineClient(self.adapter, self.host, ENGINE_PORT, settings.probe_timeout_s)
        try:
            failure = await self._load(engine, client, began_s + settings.start_timeout_s)
            loaded_s = time.monotonic()
            if failure:
                return failure, 0.0
            self.status = Status(Phase.WARM_UP, "asking the canary prompts", obtained.release_id)
            canaries = await self._canaries(obtained, client)
            failure = await self._prove(engine, client, canaries, began_s + settings.start_timeout_s)
            if failure:
                return failure, 0.0
            warm_s = time.monotonic()
            note_cold_start(self.metrics, self._model, obtained, canaries.key, loaded_s - began_s, warm_s - loaded_s)
            self.status = Status(Phase.SERVING, "", obtained.release_id)
            failure = await self._watch(engine, client, canaries.prompts[0])
            return failure, time.monotonic() - warm_s
        finally:
            await client.close()

    async def _start(self, command: Sequence[str], environment: dict[str, str]) -> EngineProcess:
        """Starts the engine; once it runs, `run` knows of it and will end it, whatever is cancelled meanwhile."""
        starting = asyncio.ensure_future(EngineProcess.start(command, environment, self.source.cache))
        try:
            self._engine = await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._engine = await starting
            raise
        except OSError as error:
            raise GaveUpError(f"the engine cannot be started: {error}") from error
        log.info("engine_started", model=self._model, pid=self._engine.pid, command=" ".join(command))
        return self._engine

    async def _load(self, engine: EngineProcess, client: EngineClient, deadline_s: float) -> Failure | None:
        """Waits until the engine says that it is healthy."""
        while not await client.is_healthy():
            if await engine.ended_within(self.cadence.poll_s):
                return Failure("exited", f"the engine ended with status {engine.exit_status} while loading")
            if time.monotonic() > deadline_s:
                return Failure("silent", f"the engine was not healthy within {self.source.settings.start_timeout_s:.0f} s")
        return None

    async def _canaries(self, obtained: Obtained, client: EngineClient) -> Canaries:
        num_ranks = self.adapter.tensor_parallel(self.engine_args)
        key = canary_key(self.source.settings.engine, await client.version(), hardware_name(), num_ranks)
        return obtained.canaries_for(key)

    async def _prove(self, engine: EngineProcess, client: EngineClient, canaries: Canaries, deadline_s: float) -> Failure | None:
        """Asks every canary prompt; None when every answer was the known one."""
        for canary in canaries.prompts:
            remaining_s = max(deadline_s - time.monotonic(), self.source.settings.probe_timeout_s)
            try:
                answer = await client.ask(self._model, canary, max_tokens=canary.max_tokens, timeout_s=remaining_s)
            except CanaryError as error:
                return await self._after_canary(engine, error)
            self.metrics.canary_asked(answer.input_tokens, answer.output_tokens)
        return None

    async def _after_canary(self, engine: EngineProcess, error: CanaryError) -> Failure:
        """A canary that was not answered because the engine is gone is no wrong answer."""
        if await engine.ended_within(self.cadence.poll_s):
            return Failure("exited", f"the engine ended with status {engine.exit_status}")
        return Failure("canary", str(error))

    async def _watch(self, engine: EngineProcess, client: EngineClient, canary: Canary) -> Failure:
        """Looks at the engine until it fails; says so when it should get no requests for now."""
        settings = self.source.settings
        limits = HealthLimits(stall_limit_s=settings.stall_limit_s, suspect_after_s=self.cadence.suspect_after_s)
        history = History(time.monotonic())
        asking: asyncio.Future[CanaryAnswer] | None = None
        self._set_well(True)
        try:
            while not await engine.ended_within(self.cadence.watch_s):
                if asking and asking.done():
                    try:
                        answer = asking.result()
                    except CanaryError as error:
                        return await self._after_canary(engine, error)
                    self.metrics.canary_asked(answer.input_tokens, answer.output_tokens)
                    asking = None
                history, judgement = judge(history, await client.sample(is_canary_out=asking is not None), limits)
                self._set_well(judgement.verdict is Verdict.HEALTHY)
                self.status = Status(Phase.SERVING, judgement.detail, self.status.release_id)
                if judgement.verdict is Verdict.FAILED:
                    return Failure(judgement.reason, judgement.detail)
                if judgement.ask_canary and asking is None:
                    asking = asyncio.ensure_future(client.ask(self._model, canary, max_tokens=1, timeout_s=None))
            return Failure("exited", f"the engine ended with status {engine.exit_status}")
        finally:
            if asking:
                asking.cancel()

    async def _after(self, failure: Failure, served_s: float, num_quick_failures: int) -> int:
        """Ends what is left of the engine, then waits as long as the policy says; the number of quick failures so far."""
        if self._engine:
            await self._engine.kill()
        decision = decide_restart(served_s, num_quick_failures, self.cadence.restarts)
        log.warning(
            "engine_failed",
            model=self._model,
            reason=failure.reason,
            detail=failure.detail,
            served_s=round(served_s, 1),
            restart=decision.restart,
            again_in_s=decision.delay_s,
        )
        if not decision.restart:
            raise GaveUpError(f"{decision.num_quick_failures} quick failures in a row, the last: {failure.detail}")
        self.metrics.restarted(failure.reason)
        self.status = Status(Phase.LOAD, f"again in {decision.delay_s:.0f} s: {failure.detail}", self.status.release_id)
        await asyncio.sleep(decision.delay_s)
        return decision.num_quick_failures

    async def _leave(self, work: asyncio.Future[None]) -> None:
        """Ends the work, lets requests finish, waits to be stopped if it was only drained, and ends the engine."""
        began_s = time.monotonic()
        was_serving = self.status.phase is Phase.SERVING
        self._stop_fetch.set()
        work.cancel()
        await asyncio.wait({work})
        self.status = Status(Phase.DRAINING, "waiting for requests to finish" if was_serving else "", self.status.release_id)
        num_left = await self._await_idle() if was_serving else 0
        log.info("drained", model=self._model, seconds=round(time.monotonic() - began_s, 1), requests_left=num_left)
        self.status = Status(Phase.DRAINING, f"{num_left} requests left", self.status.release_id)
        self._idle.set()
        await self._stopping.wait()
        if self._engine and was_serving:  # one that never served has nothing to put in order
            await self._engine.stop(self.cadence.stop_grace_s)

    async def _await_idle(self) -> int:
        settings = self.source.settings
        engine = self._engine
        client = EngineClient(self.adapter, self.host, ENGINE_PORT, settings.probe_timeout_s)
        try:
            return await await_idle(
                client,
                self._model,
                self.metrics,
                self.cadence,
                settings.drain_s,
                lambda: not engine or engine.exit_status is not None,
            )
        finally:
            await client.close()

    def _set_well(self, is_well: bool) -> None:
        self._is_well = is_well
        self.metrics.ready.set(1 if self.is_ready else 0)
