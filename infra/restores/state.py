"""Pulumi's state: held against its copy in the other region, and restored from it where it is missing or damaged.

`infra/bootstrap` keeps the state of an environment in a bucket in its home region, copied both ways with one in the second
region; locks are not copied. A restore puts back, object by object, the newest checkpoint that is whole: the other bucket's,
else the backup beside either. It never writes over a checkpoint that is whole, and each write is conditional on what was read.
Locks that were left behind go only when asked for (`state_locks.py`).
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from infra.drills.figures import Part
from infra.restores.checkpoints import Checkpoint, read_checkpoint
from infra.restores.state_locks import LockDecision, Verdict, decide_lock, parse_lock

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

STACKS, LOCKS, META = ".pulumi/stacks/", ".pulumi/locks/", ".pulumi/meta.yaml"
SUFFIXES = (".json", ".json.gz", ".json.zst")
"""The last is not read here: such a stack is told of as one that cannot be, and stays as it is."""
NUM_NAMED = 5


@dataclass(frozen=True)
class StateBucket:
    """One region's bucket of state."""

    s3: S3Client
    region: str
    bucket: str

    @property
    def url(self) -> str:
        """For `pulumi login`."""
        return f"s3://{self.bucket}?region={self.region}&awssdk=v2"


@dataclass(frozen=True)
class Stored:
    """One object, as read."""

    data: bytes
    etag: str
    written_at: datetime
    checkpoint: Checkpoint


@dataclass
class Side:
    """What a bucket holds. `unreadable` says why nothing is known of it."""

    stacks: dict[str, Stored] = field(default_factory=dict)
    backups: dict[str, Stored] = field(default_factory=dict)
    """By the key of the checkpoint that they back up."""
    meta: bytes = b""
    locks: list[LockDecision] = field(default_factory=list)
    unreadable: str = ""


def restore_state(to: StateBucket, source: StateBucket, *, dry_run: bool, unlock: bool, now: datetime) -> Part:
    """Restores into `to` from `source`; `dry_run` reads alone. With `unlock`, stale locks in `to` are deleted.

    Where `to` cannot be read, nothing is written: the copy is verified, and is the backend until its region is back.

    Raises:
        botocore.exceptions.BotoCoreError, ClientError: `to` did not take a write, or has changed since it was read.
    """
    part = Part("state")
    kept = _read(source, now)
    if kept.unreadable:
        part.show(f"{source.bucket} cannot be read", "source_unreadable", kept.unreadable, holds=False)
    found = _read(to, now)
    if found.unreadable:
        part.show(f"{to.bucket} cannot be read: log in to the copy meanwhile", "login", source.url)
        part.show("  why", "target_unreadable", found.unreadable)
    part.show("stacks in the copy", "num_stacks", len(kept.stacks), len(kept.stacks) > 0)
    damaged = {key: its.checkpoint.faults for key, its in kept.stacks.items() if its.checkpoint.faults}
    part.show("checkpoints of the copy that the engine would refuse (0)", "num_damaged_in_copy", len(damaged), not damaged)
    part.show("  such as", "damaged_in_copy", _named(damaged))
    pending = sorted(key for key, its in kept.stacks.items() if its.checkpoint.num_pending)
    part.show("stacks with operations that never ended: `pulumi refresh` them", "pending", pending)
    elsewhere = sorted({its.checkpoint.secrets_provider for its in kept.stacks.values()} - {""})
    part.show("what opens their secrets", "secrets_providers", elsewhere)
    if not found.unreadable:
        _restore(part, to, found, kept, dry_run=dry_run)
        _locks(part, to, found.locks, unlock=unlock and not dry_run)
    return part


def _restore(part: Part, to: StateBucket, found: Side, kept: Side, *, dry_run: bool) -> None:
    missing = sorted(kept.stacks.keys() - found.stacks.keys())
    damaged = sorted(key for key, its in found.stacks.items() if its.checkpoint.faults)
    older = [key for key, its in kept.stacks.items() if key in found.stacks and its.data != found.stacks[key].data]
    part.show("stacks that are missing", "missing", missing)
    part.show("stacks whose checkpoint is damaged", "damaged", damaged)
    part.show("  why", "damaged_why", _named({key: found.stacks[key].checkpoint.faults for key in damaged}))
    part.show("whole, and not what the copy has: left alone", "differ", sorted(set(older) - set(damaged)))
    restored, hopeless = [], []
    for key in (*missing, *damaged):
        whole = [
            its
            for its in (kept.stacks.get(key), found.backups.get(key), kept.backups.get(key))
            if its is not None and not its.checkpoint.faults
        ]
        if not whole:
            hopeless.append(key)
            continue
        if not dry_run:
            newest = max(whole, key=lambda its: its.checkpoint.time)
            _put(to, key, newest.data, found.stacks.get(key))
        restored.append(key)
    if kept.meta and not found.meta and not dry_run:
        _put(to, META, kept.meta, None)
    part.show("would be restored" if dry_run else "restored", "restored", restored)
    part.show("nothing whole is left of (0)", "hopeless", hopeless, not hopeless)
    if not dry_run:
        faults = {key: _get(to, key).checkpoint.faults for key in restored}
        bad = _named({key: its for key, its in faults.items() if its})
        part.show("restored, read back, and refused (nothing)", "refused_after", bad, not bad)


def _locks(part: Part, to: StateBucket, locks: list[LockDecision], *, unlock: bool) -> None:
    for verdict in Verdict:
        its = [f"{one.lock.key.removeprefix(LOCKS)}: {one.reason}" for one in locks if one.verdict is verdict]
        part.show(f"locks, {verdict}", f"locks_{verdict}", its)
    stale = [one.lock.key for one in locks if one.verdict is Verdict.STALE]
    if unlock:
        for key in stale:
            to.s3.delete_object(Bucket=to.bucket, Key=key)
    part.show("stale locks deleted", "num_unlocked", len(stale) if unlock else 0)


def _read(bucket: StateBucket, now: datetime) -> Side:
    side = Side()
    try:
        for key in _keys(bucket, STACKS):
            name = key.removesuffix(".bak")
            if name.endswith(SUFFIXES):
                (side.stacks if name == key else side.backups)[name] = _get(bucket, key)
        side.meta = b"".join(_body(bucket, key) for key in _keys(bucket, META))
        side.locks = [_decide(bucket, key, side, now) for key in _keys(bucket, LOCKS)]
    except (BotoCoreError, ClientError) as error:
        return Side(unreadable=str(error))
    return side


def _decide(bucket: StateBucket, key: str, side: Side, now: datetime) -> LockDecision:
    lock = parse_lock(key, _body(bucket, key))
    stack = key.removeprefix(LOCKS).rpartition("/")[0].removeprefix("organization/")
    written = [its.written_at for name, its in side.stacks.items() if name.removeprefix(STACKS).startswith(f"{stack}.json")]
    hostname = socket.gethostname()
    is_alive = lock.hostname == hostname and _runs(lock.pid)
    return decide_lock(lock, now, hostname=hostname, is_alive=is_alive, written_at=max(written, default=None))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _put(to: StateBucket, key: str, data: bytes, before: Stored | None) -> None:
    """Writes `data` unless the object has changed since it was read."""
    condition: dict[str, Any] = {"IfNoneMatch": "*"} if before is None else {"IfMatch": before.etag}
    to.s3.put_object(Bucket=to.bucket, Key=key, Body=data, **condition)


def _get(bucket: StateBucket, key: str) -> Stored:
    answer = bucket.s3.get_object(Bucket=bucket.bucket, Key=key)
    data = answer["Body"].read()
    return Stored(data, answer["ETag"], answer["LastModified"].astimezone(UTC), read_checkpoint(data))


def _body(bucket: StateBucket, key: str) -> bytes:
    return bucket.s3.get_object(Bucket=bucket.bucket, Key=key)["Body"].read()


def _keys(bucket: StateBucket, prefix: str) -> list[str]:
    pages = bucket.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket.bucket, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


def _named(faults: dict[str, tuple[str, ...]]) -> list[str]:
    return [f"{key.removeprefix(STACKS)}: {its[0]}" for key, its in sorted(faults.items())[:NUM_NAMED]]
