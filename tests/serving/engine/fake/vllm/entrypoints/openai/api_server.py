"""Stands where vLLM's server stands, with its metric names, and can be told to misbehave.

POST /control takes {"running": n, "frozen": bool, "silent": bool, "wrong": bool, "dead": bool, "refuse_term": bool}.
GET /control tells who it is and how often completions were asked. FAKE_LOAD_S delays health, FAKE_EXIT ends it at once,
FAKE_WRONG makes it wrong from the start.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KNOWN = {"One, two,": " three"}
STARTED_S = time.monotonic()


class Engine:
    """Ground truth of the fake."""

    def __init__(self) -> None:
        self.control: dict[str, Any] = {
            "running": 0,
            "frozen": False,
            "silent": False,
            "wrong": bool(os.environ.get("FAKE_WRONG")),
        }
        self.in_completion = 0
        self.steps = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.completions = 0
        self.child = subprocess.Popen(["sleep", "1000"])
        threading.Thread(target=self._step, daemon=True).start()

    def _step(self) -> None:
        while True:
            time.sleep(0.02)
            if self.control["running"] and not self.control["frozen"]:
                self.steps += 1

    def metrics(self) -> str:
        labels = '{engine="0",model_name="small"}'
        values = {
            "vllm:num_requests_running": self.control["running"],
            "vllm:num_requests_waiting": 0,
            "vllm:generation_tokens_total": self.generation_tokens,
            "vllm:prompt_tokens_total": self.prompt_tokens,
            "vllm:iteration_tokens_total_sum": self.steps,
            "vllm:iteration_tokens_total_count": self.steps,
        }
        return "".join(f"{name}{labels} {float(value)}\n" for name, value in values.items())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine

    def do_GET(self) -> None:
        if self.path == "/control":
            pids = {
                "pid": os.getpid(),
                "child": self.engine.child.pid,
                "completions": self.engine.completions,
                "args": sys.argv[1:],
            }
            return self._answer(200, json.dumps({**pids, "env": dict(os.environ)}))
        self._silence()
        if self.path == "/health":
            is_loading = time.monotonic() - STARTED_S < float(os.environ.get("FAKE_LOAD_S", "0"))
            return self._answer(503 if is_loading or self.engine.control.get("dead") else 200, "")
        if self.path == "/metrics":
            return self._answer(200, self.engine.metrics())
        if self.path == "/version":
            return self._answer(200, json.dumps({"version": "0.0.1"}))
        return self._answer(404, "{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/control":
            self.engine.control.update(body)
            return self._answer(200, "{}")
        self._silence()
        self.engine.completions += 1
        while self.engine.control["frozen"]:
            time.sleep(0.02)
        self.engine.steps += 1
        self.engine.prompt_tokens += 3
        self.engine.generation_tokens += 1
        text = " noise" if self.engine.control["wrong"] else KNOWN.get(body["prompt"], " something")
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        return self._answer(200, json.dumps({"id": "x", "choices": [{"index": 0, "text": text}], "usage": usage}))

    def _silence(self) -> None:
        while self.engine.control["silent"]:
            time.sleep(0.05)

    def _answer(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    options, _ = parser.parse_known_args()
    if os.environ.get("FAKE_EXIT"):
        sys.exit(int(os.environ["FAKE_EXIT"]))
    server = Server((options.host, options.port), Handler)
    Handler.engine = Engine()

    def end(*_: Any) -> None:
        if not Handler.engine.control.get("refuse_term"):
            os._exit(0)

    signal.signal(signal.SIGTERM, end)
    server.serve_forever()


if __name__ == "__main__":
    main()
