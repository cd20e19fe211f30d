"""Whether a region should receive traffic, as its gateways tell health checks and whoever asks.

Anybody may ask, so why it was evacuated stays in the control and in logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies.failover.controls import Verdict


def why_not(gateway: Sequence[str], evacuated: Verdict, ready_engines: Mapping[str, int]) -> list[str]:
    """Why no traffic should come here, [] when it should.

    A gateway that starts, drains or cannot record usage says no; so does a region that was evacuated, and one in which no class
    has an engine. A class without engines beside others with some takes no region out: its requests are answered 503 and the
    others' are served. `ready_engines` by class; empty, where nothing is served here, says nothing.

    >>> why_not([], Verdict.SERVING, {"small": 0, "large": 2})
    []
    >>> why_not([], Verdict.EVACUATED, {"small": 1})
    ['evacuated']
    """
    reasons = list(gateway)
    if evacuated is Verdict.EVACUATED:
        reasons.append("evacuated")
    if ready_engines and not any(ready_engines.values()):
        reasons.append("no engine of any class is ready")
    return reasons
