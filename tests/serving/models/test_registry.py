"""The registry against DynamoDB's own conditions."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from serving.models.registry import (
    AliasConflictError,
    AliasNotFoundError,
    ReleaseRecord,
    WeightedRelease,
    list_releases,
    register_release,
    resolve,
    set_alias,
)
from serving.target import Target

HOME, TABLE = "us-east-2", "registry"


@pytest.fixture
def dynamodb(target: Target) -> Any:
    return target.aws_client("dynamodb", HOME)


def record(release_id: str, created_at_ms: int = 1, model_class: str = "small") -> ReleaseRecord:
    return ReleaseRecord(model_class, release_id, "Tiny", created_at_ms, 10, 2, "pypi:tiny==1.0", 2048)


def test_a_class_without_a_release_says_how_to_publish_one(dynamodb: Any) -> None:
    with pytest.raises(AliasNotFoundError) as caught:
        resolve(dynamodb, TABLE, "small")
    assert caught.value.message == "the registry names no release for small"
    assert "release publish" in caught.value.hint


def test_an_alias_comes_back_as_it_was_set(dynamodb: Any) -> None:
    written = set_alias(dynamodb, TABLE, "small", (WeightedRelease("a" * 64),), expected_revision=None, now_ms=1_000)
    assert (written.revision, written.updated_at_ms) == (1, 1_000)
    assert resolve(dynamodb, TABLE, "small") == written


def test_the_item_has_the_shape_that_other_readers_rely_on(dynamodb: Any) -> None:
    set_alias(dynamodb, TABLE, "small", (WeightedRelease("abc"),), expected_revision=None, now_ms=7)
    item = dynamodb.get_item(TableName=TABLE, Key={"pk": {"S": "model#small"}, "sk": {"S": "alias"}})["Item"]
    assert item == {
        "pk": {"S": "model#small"},
        "sk": {"S": "alias"},
        "releases": {"L": [{"M": {"release_id": {"S": "abc"}, "weight": {"N": "100"}}}]},
        "revision": {"N": "1"},
        "updated_at_ms": {"N": "7"},
    }


def test_of_two_writers_who_saw_the_same_revision_one_is_refused(dynamodb: Any) -> None:
    set_alias(dynamodb, TABLE, "small", (WeightedRelease("first"),), expected_revision=None, now_ms=1)
    set_alias(dynamodb, TABLE, "small", (WeightedRelease("second"),), expected_revision=1, now_ms=2)
    with pytest.raises(AliasConflictError):
        set_alias(dynamodb, TABLE, "small", (WeightedRelease("third"),), expected_revision=1, now_ms=3)
    with pytest.raises(AliasConflictError):
        set_alias(dynamodb, TABLE, "small", (WeightedRelease("third"),), expected_revision=None, now_ms=3)
    assert resolve(dynamodb, TABLE, "small").releases == (WeightedRelease("second"),)


def test_weights_that_do_not_add_up_are_refused_before_anything_is_written(dynamodb: Any) -> None:
    with pytest.raises(ValueError, match="add up to 90"):
        set_alias(
            dynamodb, TABLE, "small", (WeightedRelease("a", 60), WeightedRelease("b", 30)), expected_revision=None, now_ms=1
        )
    with pytest.raises(AliasNotFoundError):
        resolve(dynamodb, TABLE, "small")


def test_a_release_is_registered_once_and_keeps_its_first_date(dynamodb: Any) -> None:
    assert register_release(dynamodb, TABLE, record("a", created_at_ms=5))
    assert not register_release(dynamodb, TABLE, record("a", created_at_ms=9))
    assert list_releases(dynamodb, TABLE, "small") == (record("a", created_at_ms=5),)


def test_releases_are_listed_newest_first_and_by_class(dynamodb: Any) -> None:
    for name, created_at_ms in (("old", 1), ("new", 3), ("middle", 2)):
        register_release(dynamodb, TABLE, record(name, created_at_ms))
    register_release(dynamodb, TABLE, record("other", model_class="large"))
    set_alias(dynamodb, TABLE, "small", (WeightedRelease("new"),), expected_revision=None, now_ms=1)
    assert [found.release_id for found in list_releases(dynamodb, TABLE, "small")] == ["new", "middle", "old"]
    assert list_releases(dynamodb, TABLE, "medium") == ()


def test_a_record_is_all_of_its_item(dynamodb: Any) -> None:
    register_release(dynamodb, TABLE, record("a"))
    item = dynamodb.get_item(TableName=TABLE, Key={"pk": {"S": "model#small"}, "sk": {"S": "release#a"}})["Item"]
    fields = set(msgspec.structs.asdict(record("a"))) - {"model_class", "release_id"}
    assert set(item) == fields | {"pk", "sk"}
