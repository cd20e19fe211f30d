"""Logs of containers: found by what a person calls them, shown from their end, followed through a restart."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from embedded_support import RunningAgent, child, workload

from infra.embedded import agent as node_agent
from infra.embedded.logs import follow, log_files, tail
from infra.embedded.state import State
from serving.errors import UserError


@pytest.fixture
def written(state: State) -> State:
    for name in (
        "us-east-2.serving.gateway-0.gateway",
        "us-east-2.serving.gateway-0.shipper",
        "global.infrastructure.aws-0.ministack",
        "agent",
    ):
        (state.logs / f"{name}.log").write_text(f"{name}\n")
    (state.logs / "us-east-2.serving.gateway-0.gateway.log.previous").write_text("before\n")
    return state


@pytest.mark.parametrize(
    ("workload", "labels"),
    [
        ("", {"us-east-2/gateway-0/gateway", "us-east-2/gateway-0/shipper", "aws-0/ministack", "agent"}),
        ("gateway", {"us-east-2/gateway-0/gateway", "us-east-2/gateway-0/shipper"}),
        ("gateway-0", {"us-east-2/gateway-0/gateway", "us-east-2/gateway-0/shipper"}),
        ("shipper", {"us-east-2/gateway-0/shipper"}),
        ("aws", {"aws-0/ministack"}),
        ("agent", {"agent"}),
    ],
)
def test_a_workload_a_pod_and_a_container_are_found_by_name(written: State, workload: str, labels: set[str]) -> None:
    assert set(log_files(written, workload)) == labels


def test_an_unknown_name_is_refused(written: State) -> None:
    with pytest.raises(UserError, match="no logs of gatewya"):
        log_files(written, "gatewya")


def test_the_last_lines_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"{number}\n" for number in range(200_000)))
    assert tail(path, 2) == ["199998", "199999"]
    assert tail(path, 0) == []


def test_following_gives_whole_lines_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")

    def write() -> None:
        with path.open("a") as file:
            file.write("one\ntw")
            file.flush()
            threading.Event().wait(0.4)
            file.write("o\n")
        threading.Event().wait(0.4)
        path.rename(tmp_path / "log.previous")
        path.write_text("three\n")

    lines = follow({"pod": path})
    threading.Timer(0.1, write).start()
    assert [line for _, line in itertools.islice(lines, 3)] == ["one", "two", "three"]


async def test_logs_stay_bounded(agent: RunningAgent, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_agent, "MAX_LOG_BYTES", 4)
    monkeypatch.setattr(node_agent, "LOGS_LOOK_S", 0.05)
    agent.agent._next_logs_look = 0
    for number in range(30):
        (state.logs / f"us-east-2.serving.web-old-{number}.main.log").touch()
    agent.want(workload(child()))
    await agent.settled()
    (pod,) = agent.pods()
    path = state.logs / f"us-east-2.serving.{pod}.main.log"
    await agent.until(lambda: path.exists() and path.stat().st_size == 0 and Path(f"{path}.previous").exists(), "cut")
    assert Path(f"{path}.previous").read_text() == "started\n"
    assert len(list(state.logs.glob("*web-old*"))) == node_agent.NUM_KEPT_LOGS
