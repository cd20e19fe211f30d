"""What the program tells the processes it deploys: one JSON document per role, mounted from a ConfigMap.

`infra/` writes these documents and `serving/` reads them, both through the models below, so the two ends cannot drift.
This module imports nothing of the project but the policies that it carries. Everything is frozen, bounded, and checked whole at
load.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from policies.autoscaling.policy import Limits, ScalingPolicy
from policies.routing import model_choice

RELEASE_FOLDER = "{release}"
"""Stands in an engine's arguments for the folder of its release, which nobody knows before it is fetched."""

HTTP, KV_EVENTS, KV_REPLAY = "http", "kv-events", "kv-replay"
"""Names of the ports of an engine's Service; it has the last two where engines publish what their caches hold."""

ModelClass = model_choice.ModelClass
AUTO_MODEL = "auto"
"""The name that leaves the class to the gateway (`policies.routing.model_choice`)."""
EngineKind = Literal["vllm", "twin"]
"""`twin` is a vLLM double without a model (`serving/twin`)."""
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tables(_Frozen):
    """Names of the DynamoDB global tables. Every table has string keys `pk` and `sk`."""

    registry: str
    tenants: str
    ledger: str
    idempotency: str
    """Claims on idempotency keys: `serving/gateway/claims.py`."""
    prompts: str
    """Registered prompts: `serving/gateway/prompt_table.py`."""
    failover: str
    """Controls of the regions: `policies/failover/items.py`."""
    conversations: str
    """Stored conversations: `serving/gateway/conversation_store.py`."""


class Secrets(_Frozen):
    """Names of the Secrets Manager secrets, each a random string replicated to every region."""

    key_pepper: str
    """Keys the HMAC under which API keys are stored."""
    cache_salt: str
    """Keys the HMAC that gives each tenant its prefix-cache salt."""
    admin_key: str
    """Bearer token of the admin API."""


class Price(_Frozen):
    """A price of a model from a moment on, in micro-dollars per million tokens; `policies.billing.tariffs` says what it means."""

    version: Annotated[str, Field(min_length=1, max_length=64)]
    effective_from_ms: int
    input_micro_usd_per_mtok: Annotated[int, Field(ge=0)]
    cached_input_micro_usd_per_mtok: Annotated[int, Field(ge=0)]
    output_micro_usd_per_mtok: Annotated[int, Field(ge=0)]
    batch_discount_percent: Annotated[int, Field(ge=0, le=100)] = 0
    adapter_surcharge_percent: Annotated[int, Field(ge=0)] = 0
    adapters: dict[str, int] = {}


class Scaling(_Frozen):
    """How the leader among a region's gateways sizes a class."""

    policy: ScalingPolicy
    limits: Limits


class ServedModel(_Frozen):
    """A model class as the gateway of one region serves it."""

    model_class: ModelClass
    """The name clients ask for; also the registry's alias."""
    aliases: tuple[str, ...] = ()
    """Further names clients may use, such as the model's own; never `auto`, which is the choice among classes."""
    context_window_tokens: Annotated[int, Field(ge=256, le=1_048_576)]
    engine_service: str
    """Headless Service of the class's engines, `name.namespace`."""
    engine_port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    max_in_flight_per_engine: Annotated[int, Field(ge=1, le=4096)] = 64
    """Requests that gateways keep at one engine together; the rest waits in their queues."""
    prices: Annotated[tuple[Price, ...], Field(min_length=1)]
    """Oldest first; the one in force when a request is opened rates it."""
    scaling: Scaling | None = None
    """None: nobody sizes it."""

    @field_validator("aliases")
    @classmethod
    def _is_not_auto(cls, aliases: tuple[str, ...]) -> tuple[str, ...]:
        if AUTO_MODEL in aliases:
            raise ValueError(f"`{AUTO_MODEL}` is the choice among all classes and names none of them; take another")
        return aliases


class Timeouts(_Frozen):
    """Time limits of a request on its way to an engine."""

    connect_s: Seconds = 1.0
    first_token_s: Seconds = 60.0
    gap_s: Seconds = 30.0
    """Longest silence between two chunks."""
    request_s: Seconds = 600.0
    heartbeat_s: Seconds = 15.0
    """A stream that is silent for this long carries a comment, so that no idle timer on its way runs out (ALB: 60 s)."""


class QueueSettings(_Frozen):
    """The queue before the engines of each class, at each gateway."""

    max_waiting: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Requests that wait at once; beyond it the longest queue of a tenant gives way."""
    max_wait_s: Seconds = 10.0
    """A request that would wait longer is refused at once; clients may ask for less."""


class JournalSettings(_Frozen):
    """The write-ahead usage journal of a gateway."""

    progress_tokens: Annotated[int, Field(ge=1)] = 32
    progress_s: Seconds = 0.25
    """The interval of PROGRESS records. A client never gets more than `progress_tokens` beyond what is on the disk, so a SIGKILL
    of its gateway costs its bill no more than that. Records are noted twice as often, and on the disk within 50 ms, so that
    streams need not wait for them."""
    seal_after_s: Seconds = 10.0
    """A segment with records is sealed, and so shipped, after this long."""
    seal_after_bytes: Annotated[int, Field(ge=4096)] = 8 * 1024 * 1024
    retain_h: Seconds = 72.0
    """Shipped segments stay on the volume this long, to rebuild the archive from."""


MAX_WORKERS = 64


class GatewaySettings(_Frozen):
    """All that a gateway pod (the gateway and its shipper) of one region needs to know."""

    environment: str
    region: str
    home_region: str
    """Where registry and tenant writes go: conditional puts are exact in one region only."""
    tables: Tables
    secrets: Secrets
    artifact_bucket: str
    archive_bucket: str
    body_bucket: str
    """Answers that are too large for an item of a table, and what was said in stored conversations."""
    cache_url: str
    """`redis://host:port` of the region's cache."""
    models: tuple[ServedModel, ...]
    timeouts: Timeouts = Timeouts()
    queue: QueueSettings = QueueSettings()
    journal: JournalSettings = JournalSettings()
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1024 * 1024
    max_json_depth: Annotated[int, Field(ge=8, le=512)] = 64
    key_cache_s: Seconds = 3.0
    """A verified key is trusted this long before it is read again: the bound on revocation."""
    drain_s: Seconds = 30.0
    hedging: bool = False
    """A request that waits for its first token for longer than 95 of 100 do is asked at a second engine too."""
    scaling_every_s: Seconds = 15.0
    """How often the leader looks at engines and decides."""
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1
    """Processes that serve in one pod, each as a gateway of its own. One to a core: an event loop uses no more."""


class EngineSettings(_Frozen):
    """All that an engine pod of one region needs to know. Engine arguments come on its command line, after `--`."""

    environment: str
    region: str
    model_class: ModelClass
    registry_table: str
    artifact_bucket: str
    engine: EngineKind = "vllm"
    fetch_concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    fetch_part_mib: Annotated[int, Field(ge=1, le=512)] = 16
    start_timeout_s: Seconds = 900.0
    stall_limit_s: Seconds = 60.0
    """Work is waiting or running and no engine step ends for this long: the engine is hung and is restarted."""
    probe_timeout_s: Seconds = 3.0
    drain_s: Seconds = 30.0


SettingsT = TypeVar("SettingsT", bound=_Frozen)


class SettingsError(Exception):
    """A settings document cannot be read or does not fit; the message names the file, the key and the value."""


def load(model: type[SettingsT], path: Path) -> SettingsT:
    """The document at `path` as `model`.

    Raises:
        SettingsError: the file is unreadable, or not such a document; every violation is listed, one a line.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(map(str, item['loc'])) or 'document'}: {item['msg']} (got {item['input']!r:.80})"
            for item in error.errors()
        ]
        raise SettingsError("\n".join(lines)) from error
