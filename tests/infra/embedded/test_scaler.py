"""Workloads of this machine follow the size that gateways export, and keep theirs when nobody says one."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from embedded_support import RunningAgent, workload

from infra.components.workloads.engine_scaling import scaling_policy
from infra.config import load_catalog, read_stack_file
from infra.embedded.desired import Container, Scaling, Workload
from infra.embedded.graph import Graph, Resource
from infra.embedded.scaled_objects import SCALED_OBJECT, scaled
from infra.embedded.scaler import LocalScaler
from infra.naming import parse_stack
from infra.stack_config import ServingConfig
from policies.autoscaling.pace import Pace
from serving.errors import UserError

AT_ONCE = Pace(up_period_s=1, pods_up=10, pods_down=10, down_period_s=1, down_window_s=0, tolerance_ratio=0)


class Gateway:
    """A gateway's `/metrics`: what it says of base engines; None says nothing."""

    def __init__(self) -> None:
        self.says: int | None = None
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = gateway.text().encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def text(self) -> str:
        if self.says is None:
            return "flotilla_in_flight_requests 3\n"
        of = 'model_class="medium",'
        return (
            f'flotilla_desired_replicas{{{of}fleet="base"}} {self.says}\nflotilla_desired_replicas{{{of}fleet="overflow"}} 9\n'
            f'flotilla_scaling_need_engines{{{of}signal="kv"}} 0.5\n'
            f'flotilla_scaling_need_engines{{{of}signal="in_flight"}} 2.5\n'
            f'flotilla_scaling_decision{{{of}reason="need"}} 1\n'
        )


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    found = Gateway()
    yield found
    found.server.shutdown()
    found.server.server_close()


def sized(gateway: Gateway) -> Workload:
    scaling = Scaling(
        minimum=1,
        maximum=4,
        series="flotilla_desired_replicas",
        labels={"model_class": "medium", "fleet": "base"},
        source="us-east-2.serving.gateway",
        port=gateway.server.server_port,
        pace=AT_ONCE,
    )
    return workload(name="engine", max_surge=4, scaling=scaling)


async def test_a_size_is_followed_within_bounds_and_kept_in_silence(gateway: Gateway) -> None:
    scaler, engine = LocalScaler(), sized(gateway)

    async def sync(*addresses: str) -> tuple[int, int | None, str]:
        await scaler.sync([engine], lambda key: addresses if key == "us-east-2.serving.gateway" else ())
        said = scaler.says(engine)
        assert said is not None
        return scaler.size(engine), said.desired, said.reason

    gateway.says = 3
    assert await sync("127.0.0.1") == (3, 3, "need: in_flight needs 2.5")
    gateway.says = 9
    assert (await sync("127.0.0.1"))[:2] == (4, 9)
    gateway.says = None
    assert await sync("127.0.0.1") == (4, None, "no gateway says a size: it stays")
    gateway.says = 1
    assert (await sync())[0] == 4, "no gateway is ready"
    assert (await sync("127.0.0.1", "127.0.0.77"))[:2] == (1, 1), "one that cannot be reached says nothing"


async def test_the_agent_starts_and_drains_pods_as_the_size_says(
    agent: RunningAgent, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.agent, "_ready_addresses", lambda key: ["127.0.0.1"])
    gateway.says = 3
    agent.want(sized(gateway))
    await agent.until(lambda: len(agent.pods()) == 3, "three run")
    (status,) = agent.status().workloads
    assert (status.replicas, status.desired, status.reason) == (3, 3, "need: in_flight needs 2.5")
    gateway.says = 1
    await agent.until(lambda: len(agent.pods()) == 1, "one is left")


def test_a_scaled_object_that_asks_for_something_else_is_refused_by_name() -> None:
    spec: dict[str, Any] = {"scaleTargetRef": {"name": "web"}, "triggers": [{"metadata": {"query": "sum(x)"}}]}
    inputs = {"metadata": {"namespace": "serving", "name": "web"}, "spec": spec}
    found = Resource("urn:pulumi:s::p::k::web", SCALED_OBJECT, "web", "", True, inputs, inputs)
    with pytest.raises(UserError, match="web: the first trigger is not"):
        scaled([workload()], Graph("local.serving.us-east-2", (found,), {}))


def test_the_program_s_own_objects_give_the_pace_that_they_were_rendered_from(program: dict[str, Graph]) -> None:
    stack, catalog = "local.serving.us-east-2", load_catalog()
    config = ServingConfig.model_validate(read_stack_file(parse_stack(stack))).engines["medium"]
    model = catalog.models[catalog.environments["local"].models["medium"]]
    policy = scaling_policy("medium", model, catalog.classes["medium"], config)
    gateway = workload(Container(name="gateway", command=("x",), ports={"ops": 8081}), name="gateway")
    (engine, _) = scaled([workload(name="engine-medium"), gateway], program[stack])
    assert engine.scaling is not None
    assert (engine.scaling.minimum, engine.scaling.maximum, engine.scaling.port) == (1, 4, 8081)
    assert engine.scaling.labels == {"model_class": "medium", "fleet": "base"}
    assert engine.scaling.pace == Pace.obeying(policy)
