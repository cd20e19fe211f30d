"""The shipper's process: `python -m serving.metering.shipper`, beside the gateway in its pod, on the same journal volume.

Environment: FLOTILLA_SETTINGS_FILE (GatewaySettings), FLOTILLA_JOURNAL_DIR, FLOTILLA_POD_NAME, FLOTILLA_POD_IP; AWS_ENDPOINT_URL
for an emulated AWS. It answers /livez, /readyz and /metrics on port 8082. Ready means that the journal can be read: an AWS that
is down is shown by the backlog's metrics and must not take the pod, and so the gateway, out of service.

At SIGTERM both containers of a pod stop together. The gateway drains and seals its last segment, which frees its lock; so the
shipper goes on until no writer lives and nothing waits, at most until `drain_s` and a little more have passed, then exits 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
import uvicorn
from botocore.exceptions import BotoCoreError, ClientError
from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from policies.failover.reports import REPORT_PERIOD_S
from serving import series
from serving.control_table import ControlTable
from serving.errors import UserError
from serving.gateway.tenants import TenantTable
from serving.metering.books import Books
from serving.metering.engine_counts import reconcile_once
from serving.metering.ledger import PutResult
from serving.metering.recovery import Recovered
from serving.metering.seals import seal_due
from serving.metering.shipping import TAKE_OVER_AFTER_S, BackOff, Destination, Shipper
from serving.metering.takeover import Takeovers
from serving.metrics import CONTENT_TYPE, make
from serving.process import Server, configure_logs, refuse
from serving.settings import GatewaySettings, SettingsError, load
from serving.target import aws_client

PORT = 8082
POLL_S = 1.0
UPKEEP_S = 60.0
"""Between two looks at whether archive and ledger still have what was shipped."""
FINAL_S = 20.0
"""Beyond `drain_s`, for the gateway's preStop and the sealing of its last segment: the pod's grace period must cover it all."""
HANG_LIMIT_S = 300.0
"""A round takes seconds, an AWS that hangs a minute or two: beyond this the process itself is stuck and is restarted."""
SECONDS_PER_HOUR = 3600
RECONCILE_EVERY_S = 600.0
"""Between two looks for an hour to reconcile: each hour is done once, by whichever shipper looks first."""
SEAL_EVERY_S = 900.0
"""Between two looks for a day to seal: each is sealed once, by a shipper of the home region, within half an hour of being due."""

log = structlog.get_logger()


class Metrics:
    """The shipper's series; the observer of a `Shipper`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._segments = make(Counter, series.SEGMENTS, self.registry)
        self._rows = make(Counter, series.LEDGER_ROWS, self.registry)
        for result in PutResult:
            self._rows.labels(result)  # at 0: `increase` does not see a first conflict that comes with its series
        self.unshipped_bytes = make(Gauge, series.UNSHIPPED_BYTES, self.registry)
        self.oldest_unshipped = make(Gauge, series.OLDEST_UNSHIPPED, self.registry)
        self.unexplained = make(Counter, series.UNEXPLAINED_TOKENS, self.registry)
        for kind in ("input", "output"):
            self.unexplained.labels(kind)  # at 0: a counter that first shows with a difference hides it from `increase`

    def segment(self, result: str) -> None:
        """One attempt to ship a segment ended."""
        self._segments.labels(result).inc()

    def rows(self, result: str, count: int) -> None:
        """So many ledger puts ended."""
        self._rows.labels(result).inc(count)


class Rounds:
    """What is done over and over: take over, check, ship, tidy up. A failure of one step never keeps the others from running."""

    def __init__(self, shipper: Shipper, metrics: Metrics, directory: Path) -> None:
        self.last_round_s = time.monotonic()
        self._shipper = shipper
        self._metrics = metrics
        self._directory = directory
        self._upkeep_at_s = 0.0
        self._has_checked_all = False
        self._check_back_off = BackOff()

    def is_ready(self) -> bool:
        """The journal can be read."""
        return os.access(self._directory, os.R_OK | os.X_OK)

    def is_alive(self) -> bool:
        """Rounds come to an end."""
        return time.monotonic() - self.last_round_s < HANG_LIMIT_S

    def run(self, take_over_after_s: float = TAKE_OVER_AFTER_S) -> None:
        """One round."""
        try:
            for recovered in self._shipper.take_over(take_over_after_s):
                log_recovered(recovered)
            if time.monotonic() >= self._upkeep_at_s and self._check_back_off.is_ready():
                self._upkeep()
            if num_shipped := self._shipper.ship():
                log.info("shipped", num_segments=num_shipped)
        except OSError as error:
            log.error("the journal's disk fails", error=str(error))
        backlog = self._shipper.backlog()
        self._metrics.unshipped_bytes.set(backlog.num_bytes)
        self._metrics.oldest_unshipped.set(backlog.oldest_s)
        self.last_round_s = time.monotonic()

    def is_done(self) -> bool:
        """Nobody is left who could seal more, and nothing waits that could be shipped."""
        if self._shipper.has_living_writer():
            return False
        backlog = self._shipper.backlog()
        return backlog.num_segments == backlog.num_stuck

    def _upkeep(self) -> None:
        try:
            self._shipper.recheck(full=not self._has_checked_all)
        except (BotoCoreError, ClientError) as error:
            log.warning("archive or ledger cannot be checked", error=str(error))
            self._check_back_off.failed()
            return
        self._check_back_off = BackOff()
        self._has_checked_all = True
        self._shipper.retire()
        self._upkeep_at_s = time.monotonic() + UPKEEP_S


def log_recovered(recovered: Recovered) -> None:
    """Say what a dead writer had left behind; what could not be read is an error."""
    write = log.error if recovered.problem else log.info
    write(
        "sealed what a dead writer had left open", **{name: getattr(recovered, name) for name in recovered.__dataclass_fields__}
    )


def build_app(rounds: Rounds, metrics: Metrics) -> FastAPI:
    """The probes and the metrics."""
    app = FastAPI(openapi_url=None)

    def answer(holds: Callable[[], bool]) -> Response:
        return Response(status_code=200 if holds() else 503)

    app.add_api_route("/livez", lambda: answer(rounds.is_alive), methods=["GET"])
    app.add_api_route("/readyz", lambda: answer(rounds.is_ready), methods=["GET"])
    app.add_api_route("/metrics", lambda: Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE))
    return app


def reconcile(books: Books, region: str, metrics: Metrics) -> None:
    """Reconcile each hour that nobody has, for ever. One that cannot be is tried again at the next look."""
    while True:
        time.sleep(random.uniform(0.5, 1.5) * RECONCILE_EVERY_S)  # noqa: S311 (so that shippers do not all begin at once)
        try:
            found = reconcile_once(books, region, time.time_ns() // 1_000_000)
        except (BotoCoreError, ClientError, UserError) as error:
            log.warning("usage cannot be reconciled with engines' counters", error=str(error))
            continue
        if found is None:
            continue
        metrics.unexplained.labels("input").inc(found.unexplained_prompt_tokens)
        metrics.unexplained.labels("output").inc(found.unexplained_output_tokens)
        write = log.info if found.holds else log.error
        unexplained = [life.engine for life in found.lives if life.verdict == "unexplained"]
        write("usage reconciled with engines' counters", hour=found.hour, num_lives=len(found.lives), unexplained=unexplained)


def seal(books: Books, tenants: TenantTable) -> None:
    """Seal each day that is due and that nobody has sealed, for ever. One that cannot be is tried again at the next look."""
    while True:
        time.sleep(random.uniform(0.5, 1.5) * SEAL_EVERY_S)  # noqa: S311 (so that shippers do not all begin at once)
        try:
            made = seal_due(books, lambda: [tenant.id for tenant in tenants.list_tenants()], time.time_ns() // 1_000_000)
        except (
            BotoCoreError,
            ClientError,
            ValueError,
        ) as error:  # ValueError: a row or seal that is none; `ledger verify` names it
            log.warning("days cannot be sealed", error=str(error))
            continue
        if made is not None:
            log.info("days sealed", num_seals=len(made), num_rows=sum(len(its.leaves) for its in made))


def obey(takeovers: Takeovers) -> None:
    """Look for takeovers, for ever. What fails is tried again at the next look."""
    while True:
        try:
            takeovers.look()
        except (BotoCoreError, ClientError, ValueError, UserError) as error:
            log.warning("takeovers cannot be looked after", error=str(error))
        time.sleep(REPORT_PERIOD_S)


async def serve(rounds: Rounds, app: FastAPI, host: str, drain_s: float) -> None:
    """Run rounds until SIGTERM or SIGINT, then until nothing is left to ship or the time is up."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = Server(uvicorn.Config(app, host=host, port=PORT, log_config=None, access_log=False, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    try:
        while not (stop.is_set() or serving.done()):
            await asyncio.to_thread(rounds.run)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_S)
        deadline_s = time.monotonic() + drain_s + FINAL_S
        while time.monotonic() < deadline_s:
            await asyncio.to_thread(rounds.run, 0.0)
            if await asyncio.to_thread(rounds.is_done):
                break
            await asyncio.sleep(POLL_S / 5)
        else:
            log.error("stopped with usage unshipped; the next start ships it")
    finally:
        server.should_exit = True
        await serving


def main(env: Mapping[str, str] = os.environ) -> int:
    """Exit code of the process: 2 where its environment or settings do not fit."""
    configure_logs()
    try:
        settings = load(GatewaySettings, Path(env["FLOTILLA_SETTINGS_FILE"]))
        directory, host, pod = Path(env["FLOTILLA_JOURNAL_DIR"]), env["FLOTILLA_POD_IP"], env["FLOTILLA_POD_NAME"]
        directory.mkdir(parents=True, exist_ok=True)
    except KeyError as error:
        return refuse("shipper", f"{error.args[0]} is not set")
    except (SettingsError, OSError) as error:
        return refuse("shipper", str(error))
    endpoint_url = env.get("AWS_ENDPOINT_URL", "")
    destination = Destination(
        aws_client("s3", settings.region, endpoint_url),  # type: ignore[arg-type]
        aws_client("dynamodb", settings.region, endpoint_url),  # type: ignore[arg-type]
        settings.region,
        settings.archive_bucket,
        settings.tables.ledger,
    )
    metrics = Metrics()
    shipper = Shipper(directory, destination, settings.journal.retain_h * SECONDS_PER_HOUR, metrics)
    rounds = Rounds(shipper, metrics, directory)
    books = Books(destination.s3, destination.dynamodb, settings.archive_bucket, settings.tables.ledger)
    takeovers = Takeovers(
        ControlTable(destination.dynamodb, settings.tables.failover),
        books,
        region=settings.region,
        gateway=pod,
        num_waiting=lambda: shipper.backlog().num_segments,
    )

    # Daemons: an hour takes a while to reconcile, a day to seal, a lost region to account for, and none of them must hold
    # up the end of a process that has shipped all.
    if settings.region == settings.home_region:  # two regions' conditional puts could both succeed, each in its own bucket
        home = destination.dynamodb
        tenants = TenantTable(settings.tables.tenants, near=home, home=home)
        threading.Thread(target=seal, args=(books, tenants), name="seal", daemon=True).start()
    threading.Thread(target=reconcile, args=(books, settings.region, metrics), name="reconcile", daemon=True).start()
    threading.Thread(target=obey, args=(takeovers,), name="takeovers", daemon=True).start()
    asyncio.run(serve(rounds, build_app(rounds, metrics), host, settings.drain_s))
    return 0


if __name__ == "__main__":
    sys.exit(main())
