"""`python -m serving.health`: exit 0 if the process of this container lives. For engines of containers that ask by command."""

from __future__ import annotations

import os
import sys
import urllib.request

OPS_PORTS = (8081, 8001, 8082)
"""Gateway, engine, shipper: whichever role runs here answers."""
TIMEOUT_S = 3.0


def lives(host: str, ports: tuple[int, ...] = OPS_PORTS) -> bool:
    """Whether one of `ports` of `host` answers `/livez` with 200."""
    for port in ports:
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/livez", timeout=TIMEOUT_S) as answer:
                return bool(answer.status == 200)
        except ConnectionRefusedError:
            continue
        except OSError as error:
            if isinstance(getattr(error, "reason", None), ConnectionRefusedError):
                continue
            return False
    return False


if __name__ == "__main__":
    sys.exit(0 if lives(os.environ.get("FLOTILLA_POD_IP", "127.0.0.1")) else 1)
