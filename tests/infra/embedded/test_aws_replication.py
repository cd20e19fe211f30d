"""A partition of the emulated AWS: both sides go on by themselves, and agree once it is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from infra.embedded import faults
from infra.embedded.state import State

pytestmark = pytest.mark.emulated_aws

EAST, WEST = "us-east-2", "us-west-2"
TABLE, BUCKETS = "shared", {EAST: "here", WEST: "there"}
Clients = Callable[[str, str], Any]


@pytest.fixture(scope="module")
def clients(emulated_aws: Clients) -> Clients:
    """With a global table, and a bucket in each region that is copied to the other's."""
    tables = emulated_aws("dynamodb", EAST)
    tables.create_table(
        TableName=TABLE,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
    )
    tables.update_table(TableName=TABLE, ReplicaUpdates=[{"Create": {"RegionName": WEST}}])
    for region, bucket in BUCKETS.items():
        s3 = emulated_aws("s3", region)
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": region})
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for region, other in ((EAST, WEST), (WEST, EAST)):
        rule = {"ID": "all", "Status": "Enabled", "Prefix": "", "Destination": {"Bucket": f"arn:aws:s3:::{BUCKETS[other]}"}}
        emulated_aws("s3", region).put_bucket_replication(
            Bucket=BUCKETS[region],
            ReplicationConfiguration={"Role": "arn:aws:iam::000000000000:role/copies", "Rules": [rule]},
        )
    return emulated_aws


def test_each_side_keeps_its_own_until_both_have_the_last_write_of_each(clients: Clients, emulated_aws_state: State) -> None:
    _put(clients, EAST, "old", "before")
    assert _items(clients, WEST) == {"old": "before"}
    faults.partition(emulated_aws_state, EAST, [WEST])
    time.sleep(0.5)

    _put(clients, WEST, "both", "west, first")
    _put(clients, EAST, "both", "east, last")
    _put(clients, WEST, "theirs", "west")
    _put(clients, EAST, "gone", "east")
    clients("dynamodb", EAST).delete_item(TableName=TABLE, Key={"pk": {"S": "gone"}})
    clients("dynamodb", WEST).delete_item(TableName=TABLE, Key={"pk": {"S": "old"}})
    clients("s3", EAST).put_object(Bucket=BUCKETS[EAST], Key="segment", Body=b"usage")
    assert _items(clients, EAST) == {"old": "before", "both": "east, last"}
    assert _items(clients, WEST) == {"both": "west, first", "theirs": "west"}
    assert "Contents" not in clients("s3", WEST).list_objects_v2(Bucket=BUCKETS[WEST])

    faults.heal_all(emulated_aws_state)
    time.sleep(0.5)
    for region in (EAST, WEST):
        assert _items(clients, region) == {"both": "east, last", "theirs": "west"}
    assert clients("s3", WEST).get_object(Bucket=BUCKETS[WEST], Key="segment")["Body"].read() == b"usage"
    _put(clients, WEST, "later", "west")
    assert _items(clients, EAST)["later"] == "west", "from now on nothing waits"


def _put(clients: Clients, region: str, key: str, value: str) -> None:
    clients("dynamodb", region).put_item(TableName=TABLE, Item={"pk": {"S": key}, "value": {"S": value}})


def _items(clients: Clients, region: str) -> dict[str, str]:
    found = clients("dynamodb", region).scan(TableName=TABLE)["Items"]
    return {item["pk"]["S"]: item["value"]["S"] for item in found}
