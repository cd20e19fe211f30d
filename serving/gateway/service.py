"""All that a gateway process owns, made in order and let go in the reverse one.

Start: secrets, then the journal (what the last life left open is closed first), then what serves, then the tasks that keep it
fresh. Stop: tasks, then what serves, the journal last, so that everything that ends on the way is still recorded.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import boto3
import structlog
from botocore.config import Config
from fastapi import FastAPI

from policies.failover.items import REPORT, Report
from policies.failover.region_health import why_not
from serving.control_table import ControlTable
from serving.gateway.admin_access import AdminParts
from serving.gateway.app import build_app
from serving.gateway.audited import now_ms
from serving.gateway.auth import Authenticator
from serving.gateway.budgets import Budgets, spent_by_ledger
from serving.gateway.cache_watch import watch_caches
from serving.gateway.claims import ClaimTable, Owner
from serving.gateway.context import ContextCounter
from serving.gateway.controls import Controls
from serving.gateway.conversation_store import ConversationStore
from serving.gateway.conversations import Conversations
from serving.gateway.discovery import Source, watch
from serving.gateway.dispatch import Dispatcher
from serving.gateway.engine_counter import EngineCounter
from serving.gateway.engine_watch import watch_engines
from serving.gateway.exchange import Exchange
from serving.gateway.exclusions import Exclusions, ExclusionTable
from serving.gateway.idempotency import Idempotency
from serving.gateway.limits import Limiter
from serving.gateway.metrics import Metrics
from serving.gateway.models import Models
from serving.gateway.pipeline import Pipeline
from serving.gateway.plans import PlanTable
from serving.gateway.prompt_table import PromptTable
from serving.gateway.queue import ClassQueue
from serving.gateway.queue_share import QueueShare
from serving.gateway.region_report import Reporter
from serving.gateway.registered import PromptBook
from serving.gateway.releases import ReleaseBook, ReleaseReader
from serving.gateway.route import Pool
from serving.gateway.scaling.leader import LEASE_LOOKS, MEMORY_LOOKS, Leader
from serving.gateway.scaling.lease import Lease
from serving.gateway.secret_values import load_secrets
from serving.gateway.tenants import TenantTable
from serving.gateway.warm_up import WarmUp
from serving.metering.journal import Journal
from serving.metering.report import usage_report
from serving.settings import GatewaySettings
from serving.target import aws_client

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient

log = structlog.get_logger()

FIRST_RELEASES_S = 5.0
"""How long the first look at registry and bucket may hold up the start."""
CLAIM_SLACK_S = 60.0
"""Beyond the longest request and its drain, until a claim on an idempotency key that nobody has settled is given up."""
ABANDON_S = 5.0
"""Requests that are cut at the end of a drain have this long to be recorded."""


@dataclass(frozen=True)
class Clients:
    """Calls to AWS."""

    secrets: SecretsManagerClient
    keys: DynamoDBClient
    """Reads keys while a request waits, and what is read again and again: gives up soon."""
    claims: DynamoDBClient
    """The same, of the home region: idempotency keys and stored conversations."""
    near: DynamoDBClient
    home: DynamoDBClient
    s3: S3Client

    @classmethod
    def make(cls, settings: GatewaySettings, endpoint_url: str) -> Clients:
        """Clients for a region, or for the emulated AWS at `endpoint_url`."""
        quick = Config(
            connect_timeout=1, read_timeout=2, retries={"max_attempts": 2, "mode": "standard"}, max_pool_connections=16
        )
        near, home = settings.region, settings.home_region
        return cls(
            secrets=cast("SecretsManagerClient", aws_client("secretsmanager", near, endpoint_url)),
            keys=boto3.client("dynamodb", region_name=near, endpoint_url=endpoint_url or None, config=quick),
            claims=boto3.client("dynamodb", region_name=home, endpoint_url=endpoint_url or None, config=quick),
            near=cast("DynamoDBClient", aws_client("dynamodb", near, endpoint_url)),
            home=cast("DynamoDBClient", aws_client("dynamodb", home, endpoint_url)),
            s3=cast("S3Client", aws_client("s3", near, endpoint_url)),
        )


class Service:
    """A gateway. `start` it, serve `app`, and in the end `stop` it."""

    def __init__(self, settings: GatewaySettings, *, gateway: str, journal_dir: Path, source: Source) -> None:
        self.metrics = Metrics([model.model_class for model in settings.models])
        self.is_listening = False
        """The public port is open: before that no traffic may be sent here."""
        self.is_draining = False
        self.app: FastAPI | None = None
        """The public API; None until started."""
        self._settings = settings
        self._gateway = gateway
        self._journal_dir = journal_dir
        self._source = source
        self._admin: AdminParts | None = None
        self._journal: Journal | None = None
        self._pipeline: Pipeline | None = None
        self._parts: tuple[Authenticator, ContextCounter, Limiter, Dispatcher] | None = None
        self._claims: Idempotency | None = None
        self._prompts: PromptBook | None = None
        self._warm_up: WarmUp | None = None
        self._conversations: Conversations | None = None
        self._share: QueueShare | None = None
        self._leader: Leader | None = None
        self._exclusions: Exclusions | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def unready(self) -> list[str]:
        """Why no traffic should come; empty when it should."""
        if self._journal is None or not self.is_listening:
            return ["starting"]
        reasons = ["draining"] if self.is_draining else []
        if self._exclusions is not None and self._exclusions.why_drained:
            reasons.append(self._exclusions.why_drained)
        return reasons if self._journal.healthy else [*reasons, self._journal.reason]

    async def run(self, exchange: Exchange) -> None:
        """Serve one request that generates; the protocol calls it, of the public port, which opens after the start."""
        assert self._pipeline is not None
        await self._pipeline.run(exchange)

    def admin_parts(self) -> AdminParts | None:
        """What the admin API works on."""
        return self._admin

    async def start(self) -> None:
        """Make everything. Waits for Secrets Manager as long as it takes.

        Raises:
            JournalLocked, JournalUnavailable: usage could not be recorded, so nothing may be served.
        """
        settings = self._settings
        clients = await asyncio.to_thread(Clients.make, settings, os.environ.get("AWS_ENDPOINT_URL", ""))
        secrets = await load_secrets(clients.secrets, settings.secrets)
        control_table = ControlTable(clients.keys, settings.tables.failover)
        pools: dict[str, Pool] = {
            model.model_class: Pool(model, self.metrics, is_hedging=settings.hedging) for model in settings.models
        }
        self._admin = AdminParts(
            secrets.admin_key,
            secrets.key_pepper,
            TenantTable(settings.tables.tenants, near=clients.near, home=clients.home),
            PlanTable(settings.tables.tenants, clients.home),
            clients.near,
            ExclusionTable(clients.near, settings.tables.tenants, settings.region),
            partial(_replicas, control_table, pools, settings.region),
        )
        self._journal = await Journal.open(
            self._journal_dir, settings.journal, source=self._gateway, on_commit=self.metrics.commit
        )
        journal = self._journal
        self.metrics.journal_healthy.set_function(lambda: float(journal.healthy))
        for left in journal.recovered:
            log.info("journal_recovered", recovered=repr(left))

        models = Models(settings.models)
        key_table = TenantTable(settings.tables.tenants, near=clients.keys, home=clients.home)
        authenticator = Authenticator(
            key_table.find_key, pepper=secrets.key_pepper, salt_secret=secrets.cache_salt, key_cache_s=settings.key_cache_s
        )
        reader = ReleaseReader(
            dynamodb=clients.near, registry_table=settings.tables.registry, s3=clients.s3, bucket=settings.artifact_bucket
        )
        releases = ReleaseBook(reader, [model.model_class for model in settings.models], self.metrics)
        context = ContextCounter(releases)
        usage = partial(usage_report, clients.near, settings.tables.ledger)
        limiter = Limiter(settings.cache_url, self.metrics, Budgets(spent_by_ledger(usage)))
        queues: dict[str, ClassQueue] = {
            model.model_class: ClassQueue(model, settings.queue, pools[model.model_class], self.metrics)
            for model in settings.models
        }
        self._share = QueueShare(settings.cache_url, self._gateway, queues)
        dispatcher = Dispatcher(settings.timeouts.connect_s)
        self._parts = authenticator, context, limiter, dispatcher
        claim_table = ClaimTable(
            clients.claims,
            settings.tables.idempotency,
            clients.s3,
            settings.body_bucket,
            Owner(settings.region, self._gateway, journal.epoch),
            longest_request_s=settings.timeouts.request_s + settings.drain_s + CLAIM_SLACK_S,
        )
        self._claims = Idempotency(claim_table, self._journal_dir)
        self._prompts = PromptBook(PromptTable(settings.tables.prompts, near=clients.keys, home=clients.claims))
        self._conversations = Conversations(
            ConversationStore(clients.claims, settings.tables.conversations, clients.s3, settings.body_bucket)
        )
        self._pipeline = pipeline = Pipeline(
            settings,
            gateway=self._gateway,
            authenticator=authenticator,
            models=models,
            context=context,
            limiter=limiter,
            pools=pools,
            queues=queues,
            dispatcher=dispatcher,
            journal=self._journal,
            claims=self._claims,
            prompts=self._prompts,
            conversations=self._conversations,
            metrics=self.metrics,
        )
        excluded = ExclusionTable(clients.keys, settings.tables.tenants, settings.region)
        self._exclusions = exclusions = Exclusions(excluded, gateway=self._gateway, pools=pools)
        pipeline.is_refusing = lambda: exclusions.refuses(now_ms())
        controls = Controls(control_table, settings.region)
        reporter = Reporter(
            control_table,
            region=settings.region,
            gateway=self._gateway,
            models=settings.models,
            pools=pools,
            releases=releases,
            in_flight=lambda: pipeline.in_flight,
            floors=controls.floors,
        )

        def region_health() -> list[str]:
            ready = {name: sum(engine.replica.is_ready for engine in pool.engines) for name, pool in pools.items()}
            return why_not(self.unready(), controls.of(settings.region).verdict, ready)

        self._warm_up = WarmUp(
            settings,
            self._gateway,
            prompts=self._prompts,
            tenant_of=key_table.find_tenant,
            authenticator=authenticator,
            models=models,
            context=context,
            pools=pools,
            queues=queues,
            dispatcher=dispatcher,
            journal=journal,
        )
        await limiter.warm_up()
        await controls.refresh()
        await exclusions.refresh()
        with suppress(TimeoutError):
            await asyncio.wait_for(releases.refresh(), FIRST_RELEASES_S)
        self._tasks = [asyncio.create_task(releases.run()), asyncio.create_task(limiter.run())]
        self._tasks += [
            asyncio.create_task(controls.run()),
            asyncio.create_task(exclusions.run()),
            asyncio.create_task(reporter.run()),
        ]
        self._tasks.append(asyncio.create_task(self._share.run()))
        self._tasks.append(asyncio.create_task(self._warm_up.run()))
        self._tasks.append(asyncio.create_task(self._claims.announce()))
        self._tasks.append(asyncio.create_task(watch_engines(list(pools.values()), dispatcher)))
        every_s = settings.scaling_every_s
        lease = Lease(settings.cache_url, self._gateway, every_s * LEASE_LOOKS, every_s * MEMORY_LOOKS)
        said = self.metrics
        self._leader = Leader(
            settings.models,
            pools,
            lease,
            said.first_tokens,
            said.exported,
            every_s=every_s,
            floors=controls.floors,
            queued=lambda name: queues[name].num_waiting,
        )
        self._tasks.append(asyncio.create_task(self._leader.run()))
        for model in settings.models:
            self._tasks.append(asyncio.create_task(watch(self._source, model, pools[model.model_class].update)))
            self._tasks.append(asyncio.create_task(watch_caches(pools[model.model_class])))
        counter = EngineCounter(clients.s3, settings.archive_bucket, settings.region, pools)
        self._tasks.append(asyncio.create_task(counter.run()))
        self.app = build_app(
            self._pipeline,
            authenticator,
            models,
            context,
            releases,
            self._prompts,
            self._conversations,
            self.unready,
            controls,
            region_health,
            usage,
            settings.max_json_depth,
        )
        log.info("started", gateway=self._gateway, region=settings.region)

    async def stop(self) -> None:
        """Let go of everything. Requests still running are waited for until they are recorded."""
        if self._pipeline is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._pipeline.idle.wait(), ABANDON_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._source.aclose()
        if self._leader is not None:
            await self._leader.aclose()
        if self._share is not None:
            await self._share.aclose()
        if self._claims is not None:
            self._claims.close()
        if self._warm_up is not None:
            await self._warm_up.aclose()
        if self._prompts is not None:
            self._prompts.close()
        if self._conversations is not None:
            self._conversations.close()
        if self._parts is not None:
            authenticator, context, limiter, dispatcher = self._parts
            await dispatcher.aclose()
            await limiter.aclose()
            context.close()
            authenticator.close()
        if self._journal is not None:
            await self._journal.aclose()


def _replicas(table: ControlTable, pools: Mapping[str, Pool], region: str, kind: str) -> set[str]:
    """Names of the region's engines, as discovery has them, or of its gateways' pods, as they report themselves."""
    if kind == "engine":
        return {engine.endpoint.name for pool in pools.values() for engine in pool.engines}
    return {said.gateway.rpartition("-")[0] for said in table.read(Report, REPORT) if said.region == region}
