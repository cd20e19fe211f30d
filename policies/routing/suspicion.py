"""What a gateway concludes from how its own requests fare: when an engine is passed over, for how long, and who is asked instead.

An engine that hangs answers its health check, so what counts is progress: an engine with requests of ours that has sent none of
them a token for longer than a prefill can take is stalled. How long that is, is learnt: the slowest prefill seen of late. Until
one was seen nothing is concluded from silence: a cold prompt of 30 s on a CPU is not an illness.

Retries are bounded by a budget (20 % of requests, after Envoy), or an outage would be answered with twice the load. A request
that took two engines down is not given a third.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable

FIRST_EJECTION_S = 3.0
"""Doubles with every failure in a row."""
LONGEST_EJECTION_S = 60.0
SILENT_S = 3.0
"""A probe without an answer, and at least so long without a token."""
_PREFILLS = 2.0
STEP_TOKENS = 2048
"""Somebody else's prompt may hold ours up for a step of this many tokens (vLLM's default `max_num_batched_tokens`)."""
EQUAL_TOKENS = 4096
"""Attention costs a prompt of this length as much as all else does, at most. By floating-point operations that is `parameters /
(layers x hidden size)`: 7,800 for SmolLM2-135M, 76,000 for a 7B, 107,000 for a 70B; half of the smallest, since attention uses a
CPU worse than matrix products do."""
_MIN_SAMPLE_TOKENS = 256
"""Shorter prompts tell of overheads, not of speed."""
_RECOVERY = 1.02
"""How fast the estimate of speed rises a sample: it falls at once, since a false alarm costs more than a late one."""

_REQUESTS_PER_RETRY = 5
_MIN_RETRIES, _MAX_RETRIES = 3, 100

_MAX_DEATHS = 2
_MAX_FINGERPRINTS = 1024


def ejection_s(num_failures: int) -> float:
    """How long an engine is passed over after so many failures in a row; 1 is 3 s, 2 is 6 s, at most a minute."""
    return min(FIRST_EJECTION_S * 2.0 ** (num_failures - 1), LONGEST_EJECTION_S)


class PrefillSpeed:
    """The slowest prefill of late, by two laws between which every engine's lies: n tokens cost `n`, or `n + n²/4096`.

    What was seen at one length says how long another takes only by a law. For prompts longer than those seen the second predicts
    more, for shorter ones the first, and the larger prediction counts: a first prompt of 8,000 tokens after many short ones is
    no stall, and neither is a short one after long ones.
    """

    def __init__(self) -> None:
        self.tokens_per_s: float | None = None
        """By the first law; unknown at first."""
        self._work_per_s = math.inf
        """By the second."""

    def saw(self, tokens: int, seconds: float, own_tokens: int | None = None) -> None:
        """So many prompt tokens, those queued before included, took this long to the first token; `own_tokens` of them (all,
        where it is not given) are one prompt's. What attention cost the prompts before it is not known, and taken for nothing:
        the engine counts as slower for it."""
        if tokens >= _MIN_SAMPLE_TOKENS and seconds > 0:
            own = tokens if own_tokens is None else own_tokens
            known, speed, work = self.tokens_per_s, tokens / seconds, (tokens + _attention(own)) / seconds
            self.tokens_per_s = speed if known is None else min(speed, known * _RECOVERY)
            self._work_per_s = work if known is None else min(work, self._work_per_s * _RECOVERY)

    def stalled_after_s(self, waiting: Iterable[int]) -> float:
        """How long an engine may be silent with prompts of ours of so many tokens before it: `max(3 s, 2 x predicted prefill)`;
        for ever while its speed is not known. Where 1,000 tokens took 1 s and 952 wait: 2 x (952 + 2,048) / 1,000 = 6 s; where
        8,192 wait: 2 x (8,192 + 8,192²/4,096 + 2,048) / (1,000 + 1,000²/4,096) = 42.8 s."""
        if self.tokens_per_s is None:
            return math.inf
        tokens, attention = STEP_TOKENS, 0.0
        for prompt in waiting:
            tokens += prompt
            attention += _attention(prompt)
        return max(SILENT_S, _PREFILLS * max(tokens / self.tokens_per_s, (tokens + attention) / self._work_per_s))


def _attention(tokens: int) -> float:
    """What a prompt's attention costs at most, in tokens of its matrix products."""
    return tokens * tokens / EQUAL_TOKENS


class RetryBudget:
    """One retry for every five requests; a few are there from the start."""

    def __init__(self) -> None:
        self._saved = _MIN_RETRIES * _REQUESTS_PER_RETRY

    def request(self) -> None:
        """A request came."""
        self._saved = min(self._saved + 1, _MAX_RETRIES * _REQUESTS_PER_RETRY)

    def retry(self) -> bool:
        """Whether one may be asked again; spends the budget if so."""
        if self._saved < _REQUESTS_PER_RETRY:
            return False
        self._saved -= _REQUESTS_PER_RETRY
        return True


class Quarantine:
    """Requests, by fingerprint, that engines died of, here or elsewhere. What answers once is cleared; the oldest are
    forgotten."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, set[str]] = OrderedDict()
        self._told: frozenset[bytes] = frozenset()

    def killed(self, fingerprint: bytes, engine: str) -> None:
        """`engine` broke off while it worked on this."""
        self._deaths.setdefault(fingerprint, set()).add(engine)
        self._deaths.move_to_end(fingerprint)
        if len(self._deaths) > _MAX_FINGERPRINTS:
            self._deaths.popitem(last=False)

    def answered(self, fingerprint: bytes) -> None:
        """It was answered, so it is not what engines die of."""
        self._deaths.pop(fingerprint, None)

    def holds(self, fingerprint: bytes) -> bool:
        """Two engines have died of it, or somebody else has said so."""
        return fingerprint in self._told or len(self._deaths.get(fingerprint, ())) >= _MAX_DEATHS

    def learnt(self) -> list[bytes]:
        """Those that two engines have died of here."""
        return [fingerprint for fingerprint, engines in self._deaths.items() if len(engines) >= _MAX_DEATHS]

    def told(self, fingerprints: Iterable[bytes]) -> None:
        """Others say that these are what engines die of, and no more than these."""
        self._told = frozenset(fingerprints)
