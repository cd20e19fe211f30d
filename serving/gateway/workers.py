"""Several gateways in one pod: a parent that starts the workers, starts a dead one again, and ends when they have drained.

Workers are forked from one parent before there is a thread or an event loop, so they share its modules' memory, and its one
listening socket. Not a socket each by SO_REUSEPORT: there the kernel gives a connection away when it comes, and those that wait
for a worker that dies, drains or is full are reset or wait for it alone. From one socket whoever is free takes the next.

The parent serves nothing and holds no state. A worker that dies takes its own connections with it and no other's; its journal is
recovered by the one that takes its place. A worker that refuses in its first life says that none could start: the pod's
environment does not fit, and the parent ends with its code. Later refusals (a full disk) are tried again, more and more seldom.

SIGTERM and SIGINT go to every worker, each drains as it would alone, and the parent's exit code is the worst of theirs.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from serving.engine.tether import PR_SET_PDEATHSIG, prctl

RESTART_FIRST_S = 0.5
RESTART_MAX_S = 30.0
STEADY_S = 60.0
"""A worker that lived this long starts again as if it had never died."""
REFUSED = 2
"""Exit code of a worker that cannot work in its environment."""
_NEVER_S = 3600.0
_STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
_SIGNALS = _STOPPING | {signal.SIGCHLD}

log = structlog.get_logger()


@dataclass
class _Place:
    """One worker's, whoever fills it."""

    pid: int = 0
    """0 while nobody does."""
    due_s: float = 0.0
    """When to fill it again, monotonic."""
    began_s: float = 0.0
    num_lives: int = 0
    num_deaths: int = 0
    """In a row, for the back-off."""
    code: int = 0


class Workers:
    """Runs `work(n)` for n from 0 in processes of their own. Make and run it in a process without threads. `on_stop` lets go of
    what the parent holds open for workers that start again."""

    def __init__(self, num: int, work: Callable[[int], int], on_stop: Callable[[], None]) -> None:
        self._work = work
        self._on_stop = on_stop
        self._places = [_Place() for _ in range(num)]
        self._is_stopping = False

    def run(self) -> int:
        """Return the exit code when all have ended, which they do only when told to, or when the first start is refused."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        while not self._is_stopping or any(place.pid for place in self._places):
            self._fill()
            given = signal.sigtimedwait(_SIGNALS, self._wait_s())
            if given is not None and given.si_signo in _STOPPING:
                self._stop(signal.Signals(given.si_signo))
            self._reap()
        return max(place.code for place in self._places)

    def _fill(self) -> None:
        now_s = time.monotonic()
        for number, place in enumerate(self._places):
            if not (place.pid or self._is_stopping) and place.due_s <= now_s:
                place.began_s = now_s
                place.num_lives += 1
                place.pid = self._fork(number)
                log.info("worker_started", worker=number, pid=place.pid, life=place.num_lives)

    def _fork(self, number: int) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            if os.getppid() == parent:
                code = self._work(number)
        except Exception:
            log.exception("worker_broke", worker=number)
        finally:
            os._exit(code)  # no way back into the parent's frames

    def _wait_s(self) -> float:
        """Until a place is due; signals end it sooner."""
        dues_s = [place.due_s for place in self._places if not place.pid]
        return _NEVER_S if self._is_stopping or not dues_s else max(0.0, min(dues_s) - time.monotonic())

    def _reap(self) -> None:
        for number, place in enumerate(self._places):
            if place.pid and (ended := os.waitpid(place.pid, os.WNOHANG))[0]:
                self._ended(number, place, os.waitstatus_to_exitcode(ended[1]))

    def _ended(self, number: int, place: _Place, code: int) -> None:
        now_s = time.monotonic()
        place.pid, place.code = 0, code if code >= 0 else 128 - code
        if self._is_stopping:
            return
        if code == REFUSED and place.num_lives == 1:
            self._stop(signal.SIGTERM)
            return
        place.num_deaths = 1 if now_s - place.began_s >= STEADY_S else place.num_deaths + 1
        wait_s = min(RESTART_MAX_S, RESTART_FIRST_S * 2 ** (place.num_deaths - 1))
        place.due_s, place.code = now_s + wait_s, 0
        log.error("worker_died", worker=number, code=code, starts_again_in_s=wait_s)

    def _stop(self, number: signal.Signals) -> None:
        self._is_stopping = True
        self._on_stop()
        for place in self._places:
            if place.pid:
                os.kill(place.pid, number)
