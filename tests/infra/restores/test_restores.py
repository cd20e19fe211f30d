"""Backups restored on an emulated AWS: what was lost comes back, what is wrong is named, what is whole is never written over.

MiniStack's RestoreTableToPointInTime copies the table as it is, whatever time is asked for.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from restore_makers import checkpoint, closes, segment
from typer.testing import CliRunner

from infra.restores import commands
from infra.restores.ledger import restore_ledger
from infra.restores.registry import Registry, restore_registry
from infra.restores.state import LOCKS, META, STACKS, StateBucket, restore_state
from serving.errors import UserError
from serving.metering.archive import archive_key, put_segment
from serving.metering.books import Books
from serving.metering.framing import decode_segment
from serving.metering.ledger import create_table, put_rows
from serving.metering.rows import rows_of
from serving.metering.seals import seal_day
from serving.models.manifest import release_prefix
from serving.models.registry import ReleaseRecord, WeightedRelease, register_release, set_alias

pytestmark = pytest.mark.emulated_aws
HOME, OTHER = "us-east-2", "us-west-2"
Clients = Callable[[str, str], Any]
NUMBERS = iter(range(1000))


def bucket(s3: Any, region: str, **how: Any) -> str:
    name = f"bucket-{next(NUMBERS)}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": region}, **how)
    return name


@pytest.fixture
def books(emulated_aws: Clients) -> Books:
    """Two requests in the archive and in the ledger, and their day sealed."""
    s3, dynamodb = emulated_aws("s3", HOME), emulated_aws("dynamodb", HOME)
    books = Books(s3, dynamodb, bucket(s3, HOME), f"ledger-{next(NUMBERS)}")
    create_table(dynamodb, books.table)
    name, data = segment(closes(2))
    found = decode_segment(data)
    put_segment(s3, books.bucket, archive_key(HOME, name, found), data, found)
    put_rows(dynamodb, books.table, rows_of(found))
    (day,) = {row.key.pk.partition("#")[2] for row in rows_of(found)}
    assert seal_day(books, "acme", day, time.time_ns() // 1_000_000)
    return books


def test_the_ledger_is_rebuilt_into_an_empty_table_with_the_live_ones_hash(books: Books) -> None:
    part = restore_ledger(books, f"{books.table}-again", dry_run=False)
    assert part.holds and part.figures["num_rows"] == 2
    assert part.figures["live_hash"] == part.figures["restored_hash"]
    with pytest.raises(UserError, match="has rows already"):
        restore_ledger(books, f"{books.table}-again", dry_run=False)


def test_a_dry_run_proves_the_same_of_the_archive_and_makes_no_table(books: Books) -> None:
    dry = restore_ledger(books, f"{books.table}-dry", dry_run=True)
    assert f"{books.table}-dry" not in books.dynamodb.list_tables()["TableNames"]
    real = restore_ledger(books, f"{books.table}-real", dry_run=False)
    assert dry.holds and dry.figures.keys() == real.figures.keys()
    assert dry.figures["restored_hash"] == real.figures["restored_hash"]


def test_an_emptied_ledger_is_restored_into_its_own_table_and_proved_by_seals_alone(books: Books) -> None:
    for item in books.dynamodb.scan(TableName=books.table)["Items"]:
        books.dynamodb.delete_item(TableName=books.table, Key={"pk": item["pk"], "sk": item["sk"]})
    part = restore_ledger(books, books.table, dry_run=False)
    assert part.holds and "live_hash" not in part.figures
    assert len(books.dynamodb.scan(TableName=books.table)["Items"]) == 2


def test_a_row_that_somebody_changed_or_that_the_archive_lost_fails_the_proof(books: Books) -> None:
    item = books.dynamodb.scan(TableName=books.table)["Items"][0]
    books.dynamodb.put_item(TableName=books.table, Item={**item, "output_tokens": {"N": "1"}})
    assert not restore_ledger(books, f"{books.table}-changed", dry_run=False).holds
    books.dynamodb.put_item(TableName=books.table, Item=item)
    for key in books.keys("usage/"):
        books.s3.delete_object(Bucket=books.bucket, Key=key)
    part = restore_ledger(books, f"{books.table}-lost", dry_run=False)
    assert not part.holds
    assert (part.figures["num_missing"], part.figures["num_faults"]) == (2, 2)  # not in the archive; and sealed, yet gone


def test_a_drill_of_the_command_leaves_no_table_and_its_last_line_is_json(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "load_target", lambda env: env)
    monkeypatch.setattr(Books, "of", lambda target, region=None: books)
    result = CliRunner().invoke(commands.restore, ["ledger", "--drop"])
    found = json.loads(result.output.splitlines()[-1])
    assert result.exit_code == 0, result.output
    assert (found["restore"], found["num_rows"], found["is_dropped"], found["holds"]) == ("ledger", 2, True, True)
    assert found["table"] not in books.dynamodb.list_tables()["TableNames"]
    item = books.dynamodb.scan(TableName=books.table)["Items"][0]
    books.dynamodb.put_item(TableName=books.table, Item={**item, "output_tokens": {"N": "1"}})
    result = CliRunner().invoke(commands.restore, ["ledger", "--drop", "--json"])
    assert (result.exit_code, json.loads(result.output)["holds"]) == (1, False)


@pytest.fixture
def registry(emulated_aws: Clients) -> Registry:
    """One release, whole, that `small` stands for."""
    s3, dynamodb = emulated_aws("s3", HOME), emulated_aws("dynamodb", HOME)
    found = Registry(dynamodb, s3, f"registry-{next(NUMBERS)}", bucket(s3, HOME))
    create_table(dynamodb, found.table)
    its = {"PointInTimeRecoveryEnabled": True}
    dynamodb.update_continuous_backups(TableName=found.table, PointInTimeRecoverySpecification=its)
    publish(found, b'{"files": []}', None)
    return found


def publish(registry: Registry, manifest: bytes, revision: int | None) -> str:
    release_id = hashlib.sha256(manifest).hexdigest()
    key = f"{release_prefix('small', release_id)}manifest.json"
    registry.s3.put_object(Bucket=registry.artifact_bucket, Key=key, Body=manifest)
    register_release(registry.dynamodb, registry.table, ReleaseRecord("small", release_id, "m", 1, 1, 1, "s", 1))
    weighted = (WeightedRelease(release_id),)
    set_alias(registry.dynamodb, registry.table, "small", weighted, expected_revision=revision, now_ms=1)
    return release_id


def test_the_registry_is_restored_beside_the_live_one_and_is_the_same(registry: Registry) -> None:
    part = restore_registry(registry, f"{registry.table}-again", None, dry_run=False)
    assert part.holds and part.figures["num_items"] == 2
    with pytest.raises(UserError, match="is there already"):
        restore_registry(registry, f"{registry.table}-again", None, dry_run=False)
    dry = restore_registry(registry, f"{registry.table}-dry", None, dry_run=True)
    assert dry.holds and dry.figures.keys() == part.figures.keys()
    assert f"{registry.table}-dry" not in registry.dynamodb.list_tables()["TableNames"]


def test_a_registry_that_names_what_is_not_there_does_not_hold(registry: Registry) -> None:
    release_id = publish(registry, b'{"files": [1]}', 1)
    key = {"pk": {"S": "model#small"}, "sk": {"S": f"release#{release_id}"}}
    registry.dynamodb.delete_item(TableName=registry.table, Key=key)
    manifest = f"{release_prefix('small', release_id)}manifest.json"
    registry.s3.put_object(Bucket=registry.artifact_bucket, Key=manifest, Body=b"other")
    part = restore_registry(registry, f"{registry.table}-again", None, dry_run=False)
    assert not part.holds
    assert "not registered" in part.figures["faults"][0] and "not the manifest" in part.figures["faults"][1]


def test_a_table_without_points_in_time_says_so(registry: Registry) -> None:
    its: Any = {"PointInTimeRecoveryEnabled": False}
    registry.dynamodb.update_continuous_backups(TableName=registry.table, PointInTimeRecoverySpecification=its)
    with pytest.raises(UserError, match="keeps no points in time"):
        restore_registry(registry, "x", None, dry_run=True)


@pytest.fixture
def state(emulated_aws: Clients) -> tuple[StateBucket, StateBucket]:
    """Two stacks in the home region's bucket, which S3 copies as `infra/bootstrap` declares it, and their copy."""
    sides = [StateBucket(emulated_aws("s3", it), it, bucket(emulated_aws("s3", it), it)) for it in (HOME, OTHER)]
    home, copy = sides
    for side in sides:
        side.s3.put_bucket_versioning(Bucket=side.bucket, VersioningConfiguration={"Status": "Enabled"})
    text = (Path(__file__).parents[3] / "infra/bootstrap/state_replication/main.tf").read_text()
    prefixes = json.loads(text.partition("prefixes = ")[2].partition("\n")[0])
    rules: Any = [
        {
            "ID": prefix,
            "Priority": number,
            "Status": "Enabled",
            "Filter": {"Prefix": prefix},
            "DeleteMarkerReplication": {"Status": "Disabled"},
            "Destination": {"Bucket": f"arn:aws:s3:::{copy.bucket}"},
        }
        for number, prefix in enumerate(prefixes)
    ]
    role = "arn:aws:iam::000000000000:role/replication"
    home.s3.put_bucket_replication(Bucket=home.bucket, ReplicationConfiguration={"Role": role, "Rules": rules})
    home.s3.put_object(Bucket=home.bucket, Key=META, Body=b"version: 1\n")
    for name in ("prod.foundation", "prod.edge"):
        home.s3.put_object(Bucket=home.bucket, Key=f"{STACKS}flotilla/{name}.json", Body=checkpoint(name))
    lock = {"pid": 2**22 + 1, "username": "kim", "hostname": "runner-7", "timestamp": "2026-11-20T09:00:00.000000001Z"}
    key = f"{LOCKS}organization/flotilla/prod.edge/0a.json"
    home.s3.put_object(Bucket=home.bucket, Key=key, Body=json.dumps(lock).encode())
    ends_s = time.monotonic() + 10
    while copy.s3.list_objects_v2(Bucket=copy.bucket).get("KeyCount", 0) < 3 and time.monotonic() < ends_s:
        time.sleep(0.05)
    return home, copy


def restored(state: tuple[StateBucket, StateBucket], **how: Any) -> Any:
    options = {"dry_run": False, "unlock": False, "now": datetime.now(UTC) + timedelta(hours=1), **how}
    return restore_state(*state, **options)


def test_state_that_is_whole_is_left_alone_and_its_copy_has_all_of_it_but_locks(state: tuple[StateBucket, StateBucket]) -> None:
    part = restored(state)
    assert part.holds and (part.figures["num_stacks"], part.figures["restored"]) == (2, [])
    home, copy = state
    assert not copy.s3.list_objects_v2(Bucket=copy.bucket, Prefix=LOCKS).get("Contents")
    assert len(part.figures["locks_stale"]) == 1 and part.figures["num_unlocked"] == 0
    assert restored(state, unlock=True).figures["num_unlocked"] == 1
    assert not home.s3.list_objects_v2(Bucket=home.bucket, Prefix=LOCKS).get("Contents")


def test_a_checkpoint_that_is_gone_and_one_that_was_cut_come_back_from_the_other_region(
    state: tuple[StateBucket, StateBucket],
) -> None:
    home, _ = state
    edge, foundation = (f"{STACKS}flotilla/prod.{name}.json" for name in ("edge", "foundation"))
    home.s3.delete_object(Bucket=home.bucket, Key=edge)
    home.s3.delete_bucket_replication(Bucket=home.bucket)  # so that the damage is on one side, as it is for some time
    home.s3.put_object(Bucket=home.bucket, Key=foundation, Body=checkpoint("prod.foundation")[:-50])
    dry = restored(state, dry_run=True)
    assert (dry.figures["missing"], dry.figures["damaged"]) == ([edge], [foundation])
    assert restored(state, dry_run=True).figures["missing"] == [edge]  # it wrote nothing
    part = restored(state)
    assert part.holds and part.figures["restored"] == [edge, foundation]
    again = restored(state)
    assert again.holds and again.figures["restored"] == []
    assert home.s3.get_object(Bucket=home.bucket, Key=foundation)["Body"].read() == checkpoint("prod.foundation")


def test_what_is_whole_nowhere_is_named_and_stays(state: tuple[StateBucket, StateBucket]) -> None:
    edge = f"{STACKS}flotilla/prod.edge.json"
    for side in state:
        side.s3.put_object(Bucket=side.bucket, Key=edge, Body=b"{")
    part = restored(state)
    assert not part.holds and part.figures["hopeless"] == [edge]
    home, _ = state
    home.s3.put_object(Bucket=home.bucket, Key=f"{edge}.bak", Body=checkpoint("prod.edge"))
    assert restored(state).figures["restored"] == [edge]


def test_with_the_home_region_lost_the_copy_is_verified_and_is_where_to_log_in(
    state: tuple[StateBucket, StateBucket],
) -> None:
    home, copy = state
    part = restored((StateBucket(home.s3, HOME, "no-such-bucket"), copy))
    assert part.holds and part.figures["login"] == f"s3://{copy.bucket}?region={OTHER}&awssdk=v2"
    assert "restored" not in part.figures
