"""Waits until a region serves, and keeps serving for a while; a deployment goes on to the next region only then.

`python -m infra.operations.health_gate http://region.example/health` exits 0 once the address has answered 200 for `--for`
seconds on end, and 1 if that has not happened within `--within`. One bad answer starts the count anew: a region that flaps is
not healthy. Uses the standard library alone, so that it runs where nothing is installed.
"""

from __future__ import annotations

import argparse
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

PROBE_TIMEOUT_S = 5.0
PAUSE_S = 5.0


def main() -> int:
    """The command."""
    options = argparse.ArgumentParser(prog="python -m infra.operations.health_gate", description=__doc__)
    options.add_argument("url")
    options.add_argument("--for", dest="for_s", type=float, default=120, help="seconds of health on end")
    options.add_argument("--within", dest="within_s", type=float, default=1800, help="seconds until it gives up")
    given = options.parse_args()
    answers = prober(given.url)
    held = wait_until_healthy(answers, given.for_s, given.within_s, time.monotonic, time.sleep)
    print(f"{given.url}: {'healthy' if held else 'not healthy'}", file=sys.stderr)  # noqa: T201 (a script's output)
    return 0 if held else 1


def wait_until_healthy(
    answers: Callable[[], bool], for_s: float, within_s: float, now: Callable[[], float], sleep: Callable[[float], None]
) -> bool:
    """Whether `answers` was true for `for_s` on end before `within_s` had passed."""
    began = now()
    healthy_since: float | None = None
    while now() - began < within_s:
        if answers():
            healthy_since = now() if healthy_since is None else healthy_since
            if now() - healthy_since >= for_s:
                return True
        else:
            healthy_since = None
        sleep(PAUSE_S)
    return False


def prober(url: str) -> Callable[[], bool]:
    """Asks `url` once: true for a 200 within 5 s; anything else is false."""

    def ask() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S) as answer:  # noqa: S310 (as given)
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    return ask


if __name__ == "__main__":
    sys.exit(main())
