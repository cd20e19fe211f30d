"""The gate between regions: health on end, or no further."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra.operations.health_gate import PAUSE_S, prober, wait_until_healthy


class Clock:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds


@pytest.mark.parametrize(
    ("answers", "held", "ended_at_s"),
    [
        ("++++", True, 15),  # 15 s on end: four answers, 5 s apart
        ("--++++", True, 25),
        ("+++-++++", True, 35),  # one bad answer starts the count anew
        ("+-+-+-+-+-+-", False, 60),
        ("------------", False, 60),
    ],
)
def test_a_region_is_healthy_once_it_has_been_for_long_enough(answers: str, held: bool, ended_at_s: float) -> None:
    clock, given = Clock(), iter(answers)
    assert PAUSE_S == 5.0
    assert wait_until_healthy(lambda: next(given) == "+", 15, 60, clock.now, clock.sleep) is held
    assert clock.time_s == ended_at_s


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_200_is_health_and_nothing_else_is(address: str) -> None:
    assert prober(f"{address}/health")() is True
    assert prober(f"{address}/broken")() is False
    assert prober("http://127.0.0.1:9/health")() is False
