"""Forks gateways: `python -m tests.drills.metering.nursery`. What runs in them is `serving.gateway`, whole.

A gateway's imports cost a second of CPU, and the drill starts a hundred. So they are made once, here, and each life is forked
from them: a process of its own, which may be killed. Reads a JSON document a line (`env`, `log`, `cwd`, `faults`), answers a pid.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import traceback
from typing import Any

from serving.gateway.__main__ import main as gateway
from tests.drills.metering import gateway_faults


def _live(order: dict[str, Any]) -> int:
    """The child: from here on nothing is shared with the nursery but memory that is copied when written."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    os.chdir(order["cwd"])
    faulthandler.register(signal.SIGUSR1)  # every thread's stack, for a gateway that does not come up
    os.environ.clear()
    os.environ.update(order["env"])
    gateway_faults.install(order["faults"])
    return gateway([], os.environ)


def main() -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = 1
            try:
                code = _live(order)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
