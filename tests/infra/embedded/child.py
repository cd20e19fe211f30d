"""A container's process in the tests: says what happens to it, one line each, and serves a few answers over HTTP.

`/echo-env` gives its environment; any other path gives 200 if a file of that name is in its folder, else 503. Environment:
WEB (serve), DRAIN_S (how long it takes to end after SIGTERM), DEAF (ignore SIGTERM), EXIT (end at once with this status),
BROOD (start two grandchildren, one in a session of its own with its environment wiped as setproctitle does).
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

print("started", *sys.argv[1:], flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_env = self.path == "/echo-env"
        body = json.dumps(dict(os.environ)).encode() if is_env else b""
        self.send_response(200 if is_env or Path(self.path.lstrip("/")).exists() else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def on_term(*_: object) -> None:
    print("term", flush=True)
    if "DEAF" not in os.environ:
        time.sleep(float(os.environ.get("DRAIN_S", "0")))
        print("drained", flush=True)
        os._exit(0)


signal.signal(signal.SIGTERM, on_term)
if "BROOD" in os.environ:
    subprocess.Popen([sys.executable, "-SEc", "import time; time.sleep(600)"], start_new_session=True, env={})
    subprocess.Popen([sys.executable, "-SEc", "import time; time.sleep(600)"])
    print("brooding", flush=True)
if "EXIT" in os.environ:
    sys.exit(int(os.environ["EXIT"]))
if "WEB" in os.environ:
    server = http.server.ThreadingHTTPServer((os.environ["FLOTILLA_POD_IP"], 8000), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("serving", flush=True)
while True:
    time.sleep(0.05)  # short: a signal that another thread takes does not wake this one
