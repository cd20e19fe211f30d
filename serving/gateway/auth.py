"""Who asks: the tenant behind an API key, from the key alone, never from the body or another header.

The table is read once per key and `key_cache_s`, which bounds how long a revoked key still works. A key in use is read again
in the background before its time is up, so that its requests do not wait; requests that do wait for the same key share one read.
When the table does not answer, keys that were seen good go on working for a day and unknown ones get 503: an outage
of the table must neither stop paying customers nor let anyone in.

Bad keys are answered the later, the more of them come (`policies/admission/guesses.py`); good ones never wait for them. Keys that
nobody has are remembered apart from those that somebody has, so that a flood of guesses pushes no customer's key out.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from policies.admission.guesses import Guesses
from serving.gateway import errors, keys
from serving.gateway.accounts import Account, accounts_of
from serving.gateway.errors import ApiError
from serving.gateway.tenants import KeyRecord, Tenant

log = structlog.get_logger()

TRUST_WITHOUT_TABLE_S = 24 * 3600.0
RETRY_TABLE_S = 1.0
"""After a failed read the table is left alone for this long."""
MAX_CACHED_KEYS = 100_000
MAX_UNKNOWN_KEYS = 10_000
"""Key ids of which it is remembered that nobody has them."""
MAX_HELD = 1_000
"""Bad keys whose answers are held back at once; more are answered at once, since memory is what must be bounded."""
MAX_LOOKUPS = 1_000
"""Unknown keys being read at once. Keys can be made up by the million: more than this are not looked at."""
_NUM_LOOKERS, _NUM_RENEWERS = 8, 4
_NO_KEY = "No API key was given. Send one as `Authorization: Bearer fl_live_…`."
_BAD_KEY = "This API key is not valid."

Lookup = Callable[[str], tuple[KeyRecord, Tenant] | None]


@dataclass(frozen=True)
class Principal:
    """The one who pays for a request."""

    tenant: Tenant
    key_id: str
    cache_salt: str
    """Keeps the tenant's caches apart from others', but for those of its trust group. Hex, so an engine takes it as it is."""
    accounts: tuple[Account, ...] = ()
    """Whose limits its requests count against."""


@dataclass
class _Entry:
    """What the last good read of a key said: no `record`, no such key; no `principal`, it may not be used."""

    record: KeyRecord | None
    principal: Principal | None
    read_at_s: float
    proof: bytes = b""
    """`keys.proof` of the key that was found to be the one in `record`; empty until one was."""
    retry_at_s: float | None = None
    """Set while the table does not answer: the entry is used without waiting, and the table asked again from then on."""


class Authenticator:
    """Maps `Authorization` headers to principals. Times are the event loop's."""

    def __init__(self, lookup: Lookup, *, pepper: bytes, salt_secret: bytes, key_cache_s: float) -> None:
        self._lookup = lookup
        self._pepper = pepper
        self._salt_secret = salt_secret
        self._proof_secret = os.urandom(keys.PROOF_SECRET_BYTES)
        self._key_cache_s = key_cache_s
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._unknown: OrderedDict[str, _Entry] = OrderedDict()
        self._guesses = Guesses()
        self._num_held = 0
        self._reads: dict[str, asyncio.Task[None]] = {}
        # Apart, so that a flood of unknown keys does not hold up those that are known.
        self._lookers = ThreadPoolExecutor(_NUM_LOOKERS, thread_name_prefix="key-lookup")
        self._renewers = ThreadPoolExecutor(_NUM_RENEWERS, thread_name_prefix="key-renewal")

    async def authenticate(self, headers: Mapping[bytes, bytes]) -> Principal:
        """The principal of a request.

        Raises:
            ApiError: `invalid_api_key`, or `auth_unavailable` while the table is out of reach.
        """
        key = _bearer(headers)
        entry = await self._entry(key.key_id)
        record, principal = entry.record, entry.principal
        is_good = principal is not None and record is not None and record.key.is_usable(time.time_ns() // 1_000_000)
        if principal is None or record is None or not is_good or not self._is_the_one(key, entry, record):
            await self._hold_back()
            raise ApiError(errors.INVALID_API_KEY, _BAD_KEY)
        return principal

    def salt_of(self, tenant: Tenant) -> str:
        """Keeps the tenant's caches apart from others', but for those of its trust group."""
        return _salt_of(self._salt_secret, tenant)

    def close(self) -> None:
        """Let go of the threads; reads under way end by themselves."""
        for threads in (self._lookers, self._renewers):
            threads.shutdown(wait=False, cancel_futures=True)

    async def _hold_back(self) -> None:
        """Let a bad key wait for its answer."""
        delay_s = self._guesses.add(asyncio.get_running_loop().time())
        if not delay_s or self._num_held >= MAX_HELD:
            return
        self._num_held += 1
        try:
            await asyncio.sleep(delay_s)
        finally:
            self._num_held -= 1

    def _is_the_one(self, key: keys.ApiKey, entry: _Entry, record: KeyRecord) -> bool:
        """`key` is the one in `record`. A key that comes again is known by its proof: OpenSSL's HMAC gives the interpreter up to
        the journal's thread and waits for it, which took longer than all else that is done to know who asks."""
        proof = keys.proof(self._proof_secret, key)
        if hmac.compare_digest(proof, entry.proof):
            return True
        if not keys.matches(self._pepper, key, record.digest):
            return False
        entry.proof = proof
        return True

    def _known(self, key_id: str) -> _Entry | None:
        return self._entries.get(key_id) or self._unknown.get(key_id)

    async def _entry(self, key_id: str) -> _Entry:
        now_s = asyncio.get_running_loop().time()
        entry = self._known(key_id)
        if entry is not None:
            age_s = now_s - entry.read_at_s
            if entry.retry_at_s is None and age_s <= self._key_cache_s:
                if age_s > self._key_cache_s / 2:
                    self._read(key_id)
                return entry
            if entry.retry_at_s is not None and age_s <= TRUST_WITHOUT_TABLE_S:
                if now_s >= entry.retry_at_s:
                    self._read(key_id)
                return entry
        elif len(self._reads) >= MAX_LOOKUPS:
            raise _unavailable()
        await asyncio.shield(self._read(key_id))
        entry = self._known(key_id)
        if entry is None or now_s - entry.read_at_s > TRUST_WITHOUT_TABLE_S:
            raise _unavailable()
        return entry

    def _read(self, key_id: str) -> asyncio.Task[None]:
        """The one read of this key that is under way."""
        task = self._reads.get(key_id)
        if task is None:
            task = self._reads[key_id] = asyncio.create_task(self._read_table(key_id))
            task.add_done_callback(lambda _: self._reads.pop(key_id, None))
        return task

    async def _read_table(self, key_id: str) -> None:
        """Renew the key's entry; where the table fails, keep what is known and forget that a key was unknown."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            threads = self._renewers if key_id in self._entries else self._lookers
            found = await loop.run_in_executor(threads, self._lookup, key_id)
        except (BotoCoreError, ClientError) as error:
            log.warning("keys_unreadable", key_id=key_id, error=type(error).__name__)
            self._unknown.pop(key_id, None)
            if (entry := self._entries.get(key_id)) is not None:
                entry.retry_at_s = loop.time() + RETRY_TABLE_S
            return
        kept, other, limit = self._entries, self._unknown, MAX_CACHED_KEYS
        if found is None:
            kept, other, limit = self._unknown, self._entries, MAX_UNKNOWN_KEYS
        other.pop(key_id, None)
        kept[key_id] = _Entry(found[0] if found else None, self._principal(found), began_s)
        kept.move_to_end(key_id)
        if len(kept) > limit:
            kept.popitem(last=False)

    def _principal(self, found: tuple[KeyRecord, Tenant] | None) -> Principal | None:
        if found is None or found[0].key.revoked_at_ms is not None:
            return None
        key, tenant = found[0].key, found[1]
        return Principal(key.narrowed(tenant), key.key_id, self.salt_of(tenant), accounts_of(tenant, key))


def _salt_of(secret: bytes, tenant: Tenant) -> str:
    """The salt of the tenant, or of the trust group that it opted into; no tenant is called like a group with its `group:`."""
    name = tenant.id if tenant.trust_group is None else f"group:{tenant.trust_group}"
    return hmac.digest(secret, name.encode(), "sha256").hex()


def _unavailable() -> ApiError:
    return ApiError(errors.AUTH_UNAVAILABLE, "API keys cannot be checked at the moment.", retry_after_s=RETRY_TABLE_S)


def _bearer(headers: Mapping[bytes, bytes]) -> keys.ApiKey:
    """The well-formed key of the request.

    Raises:
        ApiError: there is none; no table is asked.
    """
    scheme, _, credentials = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if not credentials or scheme.lower() != "bearer":
        raise ApiError(errors.INVALID_API_KEY, _NO_KEY)
    key = keys.parse(credentials.strip())
    if key is None:
        raise ApiError(errors.INVALID_API_KEY, _BAD_KEY)
    return key
