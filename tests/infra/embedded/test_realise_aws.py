"""The foundation stack, as the program declares it, on a real emulated AWS."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from infra.embedded.graph import Graph, Options, Resource, Secret, token
from infra.embedded.realise_aws import Realised, realise_stack
from serving.errors import UserError

pytestmark = pytest.mark.emulated_aws

Clients = Callable[[str, str], Any]
HOME, OTHER = "us-east-2", "us-west-2"


@pytest.fixture(scope="module")
def foundation(program: dict[str, Graph]) -> Graph:
    return program["local.foundation"]


@pytest.fixture(scope="module")
def realised(foundation: Graph, emulated_aws: Clients) -> Realised:
    return realise(foundation, emulated_aws)


def realise(graph: Graph, clients: Clients) -> Realised:
    realised = Realised()
    realise_stack(graph, clients, {}, realised)
    return realised


def outputs(graph: Graph, region: str) -> Any:
    return graph.outputs["regions"][region]


def test_everything_that_has_a_meaning_here_is_created(foundation: Graph, realised: Realised) -> None:
    assert Counter(realised.outcomes.values())["created"] > 30
    services = {resource_type.split("/")[0] for resource_type in realised.recorded_only}
    assert services == {"aws:iam", "aws:ecr"}, "rights and images have no meaning on one machine; everything that is stored has"


def test_an_object_is_copied_to_the_other_region_and_not_back(
    foundation: Graph, realised: Realised, emulated_aws: Clients
) -> None:
    buckets = {region: outputs(foundation, region)["artifact_bucket"] for region in (HOME, OTHER)}
    emulated_aws("s3", HOME).put_object(Bucket=buckets[HOME], Key="releases/one", Body=b"weights")
    deadline = time.monotonic() + 5
    while "Contents" not in emulated_aws("s3", OTHER).list_objects_v2(Bucket=buckets[OTHER]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    copy = emulated_aws("s3", OTHER).get_object(Bucket=buckets[OTHER], Key="releases/one")
    assert copy["Body"].read() == b"weights"
    assert copy["ReplicationStatus"] == "REPLICA"
    assert emulated_aws("s3", HOME).head_object(Bucket=buckets[HOME], Key="releases/one")["ReplicationStatus"] == "COMPLETED"


@pytest.mark.parametrize("what", ["archive", "state_mirror", "body"])
def test_whatever_is_stored_arrives_in_the_other_region_locked_or_not(
    foundation: Graph, realised: Realised, emulated_aws: Clients, what: str
) -> None:
    buckets = {region: outputs(foundation, region)[f"{what}_bucket"] for region in (HOME, OTHER)}
    emulated_aws("s3", OTHER).put_object(Bucket=buckets[OTHER], Key="from/there", Body=b"kept")
    deadline = time.monotonic() + 5
    while "Contents" not in emulated_aws("s3", HOME).list_objects_v2(Bucket=buckets[HOME], Prefix="from/"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert emulated_aws("s3", HOME).get_object(Bucket=buckets[HOME], Key="from/there")["Body"].read() == b"kept"


def test_an_item_is_readable_in_both_regions(foundation: Graph, realised: Realised, emulated_aws: Clients) -> None:
    table = foundation.outputs["tables"]["ledger"]
    item = {"pk": {"S": "demo#2026-11-22"}, "sk": {"S": "event"}}
    emulated_aws("dynamodb", HOME).put_item(TableName=table, Item=item)
    assert emulated_aws("dynamodb", OTHER).get_item(TableName=table, Key=item)["Item"] == item


def test_a_secret_is_random_and_the_same_in_both_regions_and_never_shown(
    foundation: Graph, realised: Realised, emulated_aws: Clients
) -> None:
    values = {
        emulated_aws("secretsmanager", region).get_secret_value(SecretId=name)["SecretString"]
        for name in foundation.outputs["secrets"].values()
        for region in (HOME, OTHER)
    }
    assert len(values) == len(foundation.outputs["secrets"])
    assert {len(value) for value in values} == {48}
    assert not any(value in repr(realised) for value in values)


def test_a_second_run_changes_nothing(foundation: Graph, realised: Realised, emulated_aws: Clients) -> None:
    name = foundation.outputs["secrets"]["key_pepper"]
    before = emulated_aws("secretsmanager", HOME).get_secret_value(SecretId=name)
    again = realise(foundation, emulated_aws)
    assert Counter(again.outcomes.values()) == {"unchanged": len(realised.outcomes)}
    assert again.outputs == realised.outputs
    after = emulated_aws("secretsmanager", HOME).get_secret_value(SecretId=name)
    assert (after["SecretString"], after["VersionId"]) == (before["SecretString"], before["VersionId"])


def test_a_changed_setting_is_the_only_one_updated(foundation: Graph, realised: Realised, emulated_aws: Clients) -> None:
    changed = next(foundation.of_type("aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration"))
    (rule,) = changed.inputs["rules"]
    longer = {**changed.inputs, "rules": [{**rule, "noncurrentVersionExpiration": {"noncurrentDays": 5}}]}
    resources = tuple(replace(item, inputs=longer) if item is changed else item for item in foundation.resources)
    again = realise(replace(foundation, resources=resources), emulated_aws)
    assert {urn for urn, outcome in again.outcomes.items() if outcome != "unchanged"} == {changed.urn}


PROVIDER = Resource("urn:p", "pulumi:providers:aws", "p", "", True, {"region": HOME}, {"region": HOME})


def one(resource_type: str, inputs: dict[str, Any]) -> Graph:
    urn = f"urn:pulumi:local.foundation::flotilla::{resource_type}::it"
    resource = Resource(urn, resource_type, "it", "", True, inputs, dict(inputs), Options(provider="urn:p"))
    return Graph("local.foundation", (PROVIDER, resource), {})


@pytest.mark.parametrize(
    ("resource_type", "inputs", "named"),
    [
        ("aws:s3/bucket:Bucket", {"bucket": "flotilla-a", "acceleration": "on"}, "acceleration"),
        ("aws:s3/bucket:Bucket", {"objectLockEnabled": False}, "`bucket`"),
        (
            "aws:s3/bucketVersioning:BucketVersioning",
            {"bucket": "no-such-bucket", "versioningConfiguration": {"status": "Enabled"}},
            "Bucket",
        ),
        (
            "aws:s3/bucketPolicy:BucketPolicy",
            {"bucket": "x", "policy": token("urn:pulumi:s::p::aws:ec2/vpc:Vpc::v", "arn")},
            "`arn`",
        ),
        ("aws:kms/alias:Alias", {"name": "not-an-alias", "targetKeyId": "x"}, "alias"),
    ],
)
def test_what_cannot_be_realised_is_one_line_with_resource_and_property(
    emulated_aws: Clients, resource_type: str, inputs: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError) as raised:
        realise(one(resource_type, inputs), emulated_aws)
    assert "\n" not in raised.value.message
    assert named in raised.value.message
    assert "urn:pulumi:" in raised.value.message


def test_a_secret_given_by_the_program_is_written_and_replaced_when_it_changes(emulated_aws: Clients) -> None:
    secret = one("aws:secretsmanager/secret:Secret", {"name": "given"}).resources[1]
    for value, expected in (("first", "created"), ("first", "unchanged"), ("second", "updated")):
        version = Resource(
            "urn:v",
            "aws:secretsmanager/secretVersion:SecretVersion",
            "v",
            "",
            True,
            {"secretId": token(secret.urn, "id"), "secretString": Secret(value)},
            {},
            Options(provider="urn:p"),
        )
        realised = realise(Graph("s", (PROVIDER, secret, version), {}), emulated_aws)
        assert realised.outcomes["urn:v"] == expected
    assert emulated_aws("secretsmanager", HOME).get_secret_value(SecretId="given")["SecretString"] == "second"
