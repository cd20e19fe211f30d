"""What the engine would refuse a checkpoint for is found; who still holds a lock keeps it."""

from __future__ import annotations

import gzip
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.restores.checkpoints import read_checkpoint
from infra.restores.state_locks import Lock, Verdict, decide_lock, parse_lock

VERSION = "v3.226.0"
STACK = {"urn": "urn:pulumi:prod::flotilla::pulumi:pulumi:Stack::prod"}
PROVIDER = {"urn": "urn:pulumi:prod::flotilla::pulumi:providers:aws::aws", "parent": STACK["urn"]}
BUCKET = {
    "urn": "urn:pulumi:prod::flotilla::aws:s3/bucket:Bucket::artifacts",
    "parent": STACK["urn"],
    "provider": f"{PROVIDER['urn']}::0f0f",
    "dependencies": [PROVIDER["urn"]],
}


def checkpoint(*resources: Any, version: str = VERSION, magic: str = "", **latest: Any) -> bytes:
    """As the engine writes it."""
    manifest = {
        "time": "2026-11-24T10:00:00Z",
        "version": version,
        "magic": magic or hashlib.sha256(version.encode()).hexdigest(),
    }
    return json.dumps({"version": 3, "checkpoint": {"latest": {"manifest": manifest, "resources": resources, **latest}}}).encode()


WHOLE = checkpoint(STACK, PROVIDER, BUCKET)


@pytest.mark.parametrize("data", [WHOLE, gzip.compress(WHOLE), b'{"checkpoint": {"stack": "never updated"}}'])
def test_a_whole_checkpoint_has_no_fault(data: bytes) -> None:
    assert read_checkpoint(data).faults == ()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (WHOLE[:-40], "cannot be read"),
        (gzip.compress(WHOLE)[:-9], "cannot be read"),
        (b"[]", "no checkpoint"),
        (checkpoint(STACK, magic="0" * 64), "magic"),
        (checkpoint(STACK, BUCKET, PROVIDER), "does not come before it"),
        (checkpoint(STACK, {**PROVIDER, "parent": "urn:gone"}), "parent urn:gone"),
        (checkpoint(STACK, PROVIDER, {**BUCKET, "provider": "urn:gone::1"}), "provider urn:gone"),
        (checkpoint(STACK, STACK), "twice"),
        (checkpoint({"type": "x"}), "no URN"),
    ],
)
def test_a_damaged_checkpoint_is_named_for_what_the_engine_would_refuse(data: bytes, fault: str) -> None:
    assert fault in " ".join(read_checkpoint(data).faults)


def test_a_replaced_resource_may_be_there_twice_while_one_is_being_deleted() -> None:
    assert read_checkpoint(checkpoint(STACK, PROVIDER, BUCKET, {**BUCKET, "delete": True})).faults == ()


def test_operations_that_never_ended_and_what_opens_secrets_are_told() -> None:
    secrets = {"type": "cloud", "state": {"url": "awskms://alias/flotilla-prod-state?region=us-east-2"}}
    found = read_checkpoint(checkpoint(STACK, pending_operations=[{"type": "creating"}], secrets_providers=secrets))
    assert (found.num_pending, found.secrets_provider) == (1, secrets["state"]["url"])  # type: ignore[index]


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def lock(host: str, age: timedelta) -> Lock:
    return Lock(".pulumi/locks/a.json", "kim", host, 4711, NOW - age)


@pytest.mark.parametrize(
    ("host", "age", "is_alive", "written_ago", "verdict"),
    [
        ("here", timedelta(minutes=5), False, None, Verdict.STALE),
        ("here", timedelta(days=9), True, None, Verdict.HELD),
        ("runner-7", timedelta(minutes=5), False, None, Verdict.UNSURE),
        ("runner-7", timedelta(hours=5, minutes=59), False, None, Verdict.UNSURE),
        ("runner-7", timedelta(hours=6, minutes=1), False, None, Verdict.STALE),
        # Something still writes: a clock may be wrong, or a job allowed to last longer than we believe.
        ("runner-7", timedelta(hours=7), False, timedelta(minutes=29), Verdict.HELD),
        ("runner-7", timedelta(hours=7), False, timedelta(minutes=31), Verdict.STALE),
        # Written before the lock was made, so by somebody else.
        ("here", timedelta(minutes=5), False, timedelta(minutes=6), Verdict.STALE),
    ],
)
def test_a_lock_is_stale_only_where_its_update_has_certainly_ended(
    host: str, age: timedelta, is_alive: bool, written_ago: timedelta | None, verdict: Verdict
) -> None:
    written_at = None if written_ago is None else NOW - written_ago
    decision = decide_lock(lock(host, age), NOW, hostname="here", is_alive=is_alive, written_at=written_at)
    assert decision.verdict is verdict and decision.reason


@pytest.mark.parametrize(
    ("stamp", "at"),
    [
        ("2026-11-24T12:00:00.123456789Z", NOW),
        ("2026-11-24T13:00:00.1+01:00", NOW),
        ("2026-11-24T12:00:00Z", NOW),
        ("yesterday", None),
    ],
)
def test_a_lock_tells_when_it_was_made_as_go_writes_it(stamp: str, at: datetime | None) -> None:
    data = json.dumps({"pid": 4711, "username": "kim", "hostname": "runner-7", "timestamp": stamp}).encode()
    found = parse_lock("a", data)
    assert found.at == at
    if at is None:
        assert decide_lock(found, NOW, hostname="here", is_alive=False, written_at=None).verdict is Verdict.UNSURE
