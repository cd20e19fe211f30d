"""The queue before the engines of a class: what waits here is ordered by `policies.admission.fair_queue`.

Engines serve in order of arrival, so whatever is to be fair must not wait there: a gateway has at most its slots at engines, and
the rest waits here. Slots are what the class's engines take, less what other gateways have there (`queue_share.py`), and never
less than an equal part. While nobody waits and a slot is free, a request costs a few microseconds here and waits for nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import NamedTuple

from policies.admission.fair_queue import FairQueue, most_kept
from policies.admission.lanes import Ticket
from serving.gateway import errors
from serving.gateway.errors import ApiError
from serving.gateway.exchange import ClientGone, Exchange, Headers
from serving.gateway.metrics import Metrics
from serving.gateway.route import Pool
from serving.gateway.tenants import Tenant
from serving.settings import QueueSettings, ServedModel

DEADLINE_HEADER = b"x-flotilla-deadline-ms"
WAITED_HEADER = b"x-flotilla-queue-ms"
JITTER_RATIO = 0.1
"""Retry-After is up to so much longer than predicted, or all who were refused together would come back together."""


class Turn:
    """A request in the queue or past it."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.granted: asyncio.Future[None] | None = None
        """Set where it has to wait; its error says why it waits in vain."""

    def fail(self, error: Exception) -> None:
        """It waits in vain."""
        if self.granted is not None and not self.granted.done():
            self.granted.set_exception(error)

    @property
    def headers(self) -> Headers:
        """For the answer: how long it waited, where it did."""
        if self.granted is None:
            return ()
        return ((WAITED_HEADER, b"%d" % ((self.ticket.dispatched_s - self.ticket.entered_s) * 1e3)),)


class Slots(NamedTuple):
    """Requests of a class that may be at its engines."""

    total: int
    """All gateways together."""
    own: int
    """This one, now: its equal part, or what the others leave."""
    shy: int
    """Of its own, what the others may have taken since they last told: each as many as this one has, and one."""

    @property
    def of_anybody(self) -> int:
        """Of its own, those that no tenant is ever kept from."""
        return self.own - most_kept(self.total, self.shy)


class ClassQueue:
    """The queue of one class at this gateway."""

    def __init__(self, model: ServedModel, settings: QueueSettings, pool: Pool, metrics: Metrics) -> None:
        self.name = model.model_class
        self.fair = FairQueue(settings.max_waiting)
        self.num_out = 0
        """Requests past the queue and not over."""
        self._model, self._settings, self._pool, self._metrics = model, settings, pool, metrics
        self._num_others = self._out_elsewhere = self._waiting_elsewhere = 0
        self._out_then = 0
        """Own requests at engines when others were last heard."""
        self._waiting = metrics.queue_waiting.labels(self.name)
        self._turns: dict[Ticket, Turn] = {}

    @property
    def num_waiting(self) -> int:
        """Requests that wait for an engine of the class, at all gateways as far as they have told."""
        return self.fair.num_waiting + self._waiting_elsewhere

    @property
    def slots(self) -> Slots:
        """Requests that this gateway may have at engines; 0 where no engine is ready."""
        total = self._pool.num_able(asyncio.get_running_loop().time()) * self._model.max_in_flight_per_engine
        own = max(total - self._out_elsewhere, math.ceil(total / (1 + self._num_others)))
        return Slots(total, own, self._num_others * (1 + max(self.num_out - self._out_then, 0)))

    def hear(self, num_others: int, out: int, waiting: int) -> None:
        """Other gateways of the class: how many there are, and their requests at engines and in queues."""
        self._num_others, self._out_elsewhere, self._waiting_elsewhere = num_others, out, waiting
        self._out_then = self.num_out

    def enter(self, tenant: Tenant, exchange: Exchange, prompt_tokens: int, max_output_tokens: int) -> Turn:
        """A turn, past the queue where nobody waits. Whoever gets one calls `leave` in the end.

        Raises:
            ApiError: `overloaded`, with Retry-After: it would wait beyond its deadline, or there is no room; `invalid_value`: its
                deadline is no number of milliseconds.
        """
        now_s = asyncio.get_running_loop().time()
        patience_s = self._settings.max_wait_s
        asked_s = _asked_deadline_s(exchange)
        ticket = Ticket(tenant.id, tenant.band, tenant.weight, prompt_tokens, max_output_tokens, now_s + patience_s, now_s)
        if asked_s is not None:
            self.fair.expect(ticket)
            ttft_s = self._pool.ttft_s(ticket.uncached_tokens)
            if ttft_s > asked_s:
                self._metrics.queue_refusals.labels(self.name, ticket.band, "deadline").inc()
                raise self._refusal(ttft_s - asked_s)
            ticket.deadline_s = now_s + min(asked_s - ttft_s, patience_s)
        turn = Turn(ticket)
        slots = self.slots
        if not slots.own or (self.num_out < slots.of_anybody and not self.fair.num_waiting):
            self.fair.pass_by(ticket, now_s)
            self.num_out += 1
            return turn
        refusal, pushed = self.fair.enter(ticket, slots.own, now_s)
        if pushed is not None:
            self._metrics.queue_refusals.labels(self.name, ticket.band, "pushed_out").inc()
            self._turns[pushed].fail(self._refusal(self.fair.wait_s(pushed, slots.own)))
        if refusal is not None:
            self._metrics.queue_refusals.labels(self.name, ticket.band, refusal.reason).inc()
            raise self._refusal(refusal.predicted_wait_s)
        self._turns[ticket] = turn
        self.pump()
        if not ticket.is_dispatched:
            turn.granted = asyncio.get_running_loop().create_future()
        return turn

    async def wait(self, turn: Turn, exchange: Exchange) -> None:
        """Return when it is the turn's turn.

        Raises:
            ApiError: `overloaded`: its deadline has come before, or somebody with less in the queue needed the room.
            ClientGone: as it says.
        """
        assert turn.granted is not None
        loop, ticket = asyncio.get_running_loop(), turn.ticket

        def expire() -> None:
            self._metrics.queue_refusals.labels(self.name, ticket.band, "expired").inc()
            turn.fail(self._refusal(self.fair.wait_s(ticket, self.slots.own)))

        timer = loop.call_at(ticket.deadline_s, expire)
        exchange.on_disconnect = lambda: turn.fail(ClientGone())
        try:
            if exchange.is_disconnected:
                raise ClientGone
            await turn.granted
        finally:
            exchange.on_disconnect = None
            timer.cancel()
        self._metrics.queue_wait.labels(self.name, ticket.band).observe(ticket.dispatched_s - ticket.entered_s)

    def leave(self, turn: Turn, *, uncached_tokens: int, output_tokens: int) -> None:
        """The request is over, wherever it was; what it came to puts its charge right."""
        ticket = turn.ticket
        self._turns.pop(ticket, None)
        if ticket.is_dispatched:
            self.num_out -= 1
            now_s = asyncio.get_running_loop().time()
            self.fair.ended(ticket, uncached_tokens=uncached_tokens, output_tokens=output_tokens, now_s=now_s)
        else:
            self.fair.leave(ticket)
            self._waiting.set(self.fair.num_waiting)
        self.pump()

    def pump(self) -> None:
        """Let go who may. Where no engine is ready all may: they are told so."""
        if not self.fair.num_waiting:
            return
        slots, now_s = self.slots, asyncio.get_running_loop().time()
        while True:
            free = slots.own - self.num_out if slots.own else math.inf
            ticket = self.fair.next(now_s, free, slots.total, slots.shy) if free > 0 else None
            if ticket is None:
                break
            self.num_out += 1
            slots = self.slots
            turn = self._turns[ticket]
            if turn.granted is not None and not turn.granted.done():
                turn.granted.set_result(None)
        self._waiting.set(self.fair.num_waiting)

    def _refusal(self, predicted_wait_s: float) -> ApiError:
        retry_s = predicted_wait_s * (1 + random.uniform(0, JITTER_RATIO))  # noqa: S311 (spreads load, guards nothing)
        message = f"`{self.name}` is overloaded: this request would wait {predicted_wait_s:.1f} s before an engine could take it."
        error = ApiError(errors.OVERLOADED, message, retry_after_s=retry_s)
        error.headers.append((b"retry-after-ms", b"%d" % max(1, retry_s * 1e3)))
        return error


def _asked_deadline_s(exchange: Exchange) -> float | None:
    """How soon the client wants its first token; None where it does not say.

    Raises:
        ApiError: `invalid_value`.
    """
    asked = exchange.headers.get(DEADLINE_HEADER)
    if asked is None:
        return None
    if not asked.isdigit() or len(asked) > 8:
        name = DEADLINE_HEADER.decode()
        raise ApiError(errors.INVALID_VALUE, f"`{name}` must be a number of milliseconds, such as 2000.", param=name)
    return int(asked) / 1e3
