"""`Idempotency-Key`: a request that is sent again gets the first one's answer, and is neither generated nor billed again.

For 24 hours a tenant's key stands for one request. While it runs, the same request is told 409; another request under the key is
told 422. Its answer is replayed as it was sent, a stream as a stream, failures after the first token included: they were billed.
A request that ended with nothing billed gives its key back.

The client has said that it may come back, so a request with a key runs on to its end when its client hangs up, and all of it is
billed. The answer is kept before the client is told that it is whole. A gateway that dies in between leaves a bill (its journal
has the event) and no answer: from then on the key says 410, and a new key is the way to generate anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import structlog

from serving.gateway import errors, settle
from serving.gateway.calls import Call
from serving.gateway.claims import Claim, ClaimsUnavailable, ClaimTable, Held, Result, claim_pk
from serving.gateway.errors import ApiError
from serving.gateway.exchange import ClientGone, Exchange, Headers
from serving.metering.claimed import unfinished_claims
from serving.metering.events import Outcome

HEADER = b"idempotency-key"
REPLAYED = (b"idempotent-replayed", b"true")
ORIGINAL = b"x-original-request-id"
IN_FLIGHT_RETRY_S = 1.0
UNAVAILABLE_RETRY_S = 2.0
ANNOUNCE_RETRY_S = 2.0
_NUM_THREADS = 8
KEY_PATTERN = r"[\x21-\x7e]{1,255}"
_KEY = re.compile(KEY_PATTERN.encode())
_T = TypeVar("_T")

log = structlog.get_logger()


def key_of(headers: Mapping[bytes, bytes]) -> str | None:
    """The request's key; None where it has none.

    Raises:
        ApiError: it cannot be one.
    """
    value = headers.get(HEADER)
    if value is None:
        return None
    if not _KEY.fullmatch(value):
        raise ApiError(
            errors.INVALID_VALUE, "Idempotency-Key must be 1 to 255 visible ASCII characters.", param="Idempotency-Key"
        )
    return value.decode()


class Recording:
    """An exchange that keeps what it sends and outlives its client: who runs the request never learns that the client is gone."""

    on_disconnect: Callable[[], None] | None = None
    """Never called."""
    is_disconnected = False

    def __init__(self, exchange: Exchange, keep: Callable[[int, str, bytes], Awaitable[None]]) -> None:
        """`keep` takes status, content type and body before the last piece goes out."""
        self.method, self.path, self.received_s = exchange.method, exchange.path, exchange.received_s
        self.headers, self.headers_bytes = exchange.headers, exchange.headers_bytes
        self._exchange = exchange
        self._keep = keep
        self._status = 0
        self._content_type = ""
        self._sent: list[bytes] = []

    @property
    def is_full(self) -> bool:
        """A client that is gone is not waited for."""
        return self._exchange.is_full and not self._exchange.is_disconnected

    async def read_body(self, max_bytes: int) -> bytes:
        """The exchange's."""
        return await self._exchange.read_body(max_bytes)

    def start(self, status: int, headers: Headers) -> None:
        """Note the head, and begin."""
        self._status = status
        self._content_type = next((value.decode() for name, value in headers if name == b"content-type"), "")
        self._exchange.start(status, headers)

    def write(self, data: bytes) -> None:
        """Keep and send."""
        self._sent.append(data)
        self._exchange.write(data)

    async def drain(self) -> None:
        """Wait for the client as long as there is one."""
        with suppress(ClientGone):
            await self._exchange.drain()

    async def finish(self, data: bytes = b"") -> None:
        """Keep the whole, then send its end.

        Raises:
            ClientGone: nobody took it; it is kept.
        """
        await self._keep(self._status, self._content_type, b"".join([*self._sent, data]))
        await self._exchange.finish(data)


class Idempotency:
    """Serves requests that have a key."""

    def __init__(self, table: ClaimTable, journal_dir: Path) -> None:
        self._table = table
        self._journal_dir = journal_dir
        self._threads = ThreadPoolExecutor(_NUM_THREADS, "claims")

    async def serve(
        self, exchange: Exchange, call: Call, key: str, body: bytes, run: Callable[[Exchange], Awaitable[None]]
    ) -> None:
        """Replay the answer to this key, or `run` the request and keep what it answers.

        Raises:
            ApiError, ClientGone: as they say.
        """
        claim = Claim(
            pk=claim_pk(call.tenant, key),
            event_id=settle.mint_event_id(),
            request_id=call.request_id,
            fingerprint=hashlib.sha256(exchange.path.encode() + b"\0" + body).hexdigest(),
            claimed_at_ms=settle.now_ms(),
        )
        try:
            found = await self._in_thread(self._table.claim, claim)
        except ClaimsUnavailable as error:
            log.warning("claims_unavailable", request_id=call.request_id, error=str(error))
            raise ApiError(
                errors.IDEMPOTENCY_UNAVAILABLE,
                "Whether this Idempotency-Key was used cannot be told at the moment, so nothing is generated.",
                retry_after_s=UNAVAILABLE_RETRY_S,
            ) from error
        if isinstance(found, Held):
            raise _refusal(found)
        if found is not None:
            await _replay(exchange, call, found)
            return
        call.claim, call.event_id = claim.pk, claim.event_id
        await self._run(exchange, call, claim, run)

    async def announce(self) -> None:
        """Say what became of the claims of earlier lives, then that this life has begun. Tries until AWS takes it; until then
        whoever asks for their keys is told that they are in flight."""
        while True:
            try:
                await self._in_thread(self._settle_earlier_lives)
                return
            except (ClaimsUnavailable, OSError) as error:
                log.warning("claims_not_settled", error=str(error))
                await asyncio.sleep(ANNOUNCE_RETRY_S)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False)

    async def _run(self, exchange: Exchange, call: Call, claim: Claim, run: Callable[[Exchange], Awaitable[None]]) -> None:
        is_kept = False

        async def keep(status: int, content_type: str, sent: bytes) -> None:
            nonlocal is_kept
            if _is_billed(call):
                is_kept = True
                await self._try(self._table.finish, claim, Result(status, content_type, sent))

        try:
            await run(Recording(exchange, keep))
        except ApiError as error:
            if _is_billed(call):
                await keep(error.kind.status, "application/json", error.body())
            raise
        finally:
            if not is_kept and _is_billed(call):  # cut off because its client did not read
                await self._try(self._table.finish, claim, None)
            elif not is_kept:
                await self._try(self._table.release, claim)

    async def _try(self, act: Callable[..., None], *given: object) -> None:
        """What fails here leaves the claim as it is: the key stays taken until it is given up."""
        try:
            await self._in_thread(act, *given)
        except ClaimsUnavailable as error:
            log.error("claim_left_open", error=str(error))

    def _settle_earlier_lives(self) -> None:
        owner = self._table.owner
        since = self._table.announced_epoch(owner)
        for event in unfinished_claims(self._journal_dir, owner.gateway, since=since, before=owner.epoch):
            self._table.mark_lost(event.claim, event.event_id)
        self._table.announce()

    async def _in_thread(self, act: Callable[..., _T], *given: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, act, *given)


def _is_billed(call: Call) -> bool:
    outcome = None if call.meter is None else call.meter.outcome
    return outcome is not None and outcome is not Outcome.NOT_SERVED


def _refusal(held: Held) -> ApiError:
    if not held.is_same_request:
        return ApiError(errors.IDEMPOTENCY_KEY_REUSED, "This Idempotency-Key was used with another request. Use a new key.")
    if held.is_lost:
        message = "The answer to this Idempotency-Key was lost and is not generated again. Use a new key to generate anew."
        return ApiError(errors.IDEMPOTENCY_RESULT_LOST, message)
    message = "A request with this Idempotency-Key is being served. Ask again for its answer."
    return ApiError(errors.IDEMPOTENCY_IN_FLIGHT, message, retry_after_s=IN_FLIGHT_RETRY_S)


async def _replay(exchange: Exchange, call: Call, result: Result) -> None:
    call.status = result.status
    headers: Sequence[tuple[bytes, bytes]] = (
        (b"content-type", result.content_type.encode()),
        (b"x-request-id", call.request_id.encode()),
        (ORIGINAL, result.request_id.encode()),
        REPLAYED,
    )
    is_stream = result.content_type.startswith("text/event-stream")
    length = () if is_stream else ((b"content-length", b"%d" % len(result.body)),)
    exchange.start(result.status, (*headers, *length))
    await exchange.finish(result.body)
