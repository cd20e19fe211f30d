"""What survives a region: each property that a loss would turn on."""

from __future__ import annotations

import json

import pytest

from infra.embedded.graph import Graph, Resource, Secret

REGIONS = ("us-east-2", "us-west-2")


@pytest.fixture
def foundation(local_graphs: dict[str, Graph]) -> Graph:
    return local_graphs["local.foundation"]


def one(graph: Graph, resource_type: str, name: str) -> Resource:
    (found,) = (resource for resource in graph.of_type(resource_type) if resource.name == name)
    return found


@pytest.mark.parametrize("what", ["artifacts", "archive"])
@pytest.mark.parametrize("region", REGIONS)
def test_a_bucket_is_versioned_encrypted_private_and_tls_only(foundation: Graph, what: str, region: str) -> None:
    part = f"{what}-{region}"
    bucket = one(foundation, "aws:s3/bucket:Bucket", f"{part}-bucket").inputs["bucket"]
    assert bucket == f"flotilla-local-{'use2' if region == 'us-east-2' else 'usw2'}-{what}"
    versioning = one(foundation, "aws:s3/bucketVersioning:BucketVersioning", f"{part}-versioning").inputs
    assert versioning["versioningConfiguration"] == {"status": "Enabled"}
    kind = "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration"
    (rule,) = one(foundation, kind, f"{part}-encryption").inputs["rules"]
    applied = rule["applyServerSideEncryptionByDefault"]
    assert applied["sseAlgorithm"] == "aws:kms" and "data-key-" in applied["kmsMasterKeyId"] and rule["bucketKeyEnabled"]
    block = one(foundation, "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock", f"{part}-public-access").inputs
    assert [value for name, value in block.items() if name != "bucket"] == [True] * 4
    (statement,) = json.loads(one(foundation, "aws:s3/bucketPolicy:BucketPolicy", f"{part}-policy").inputs["policy"])["Statement"]
    assert statement["Effect"] == "Deny" and statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert statement["Resource"] == [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]


def test_only_the_archive_is_locked(foundation: Graph) -> None:
    locks = list(foundation.of_type("aws:s3/bucketObjectLockConfiguration:BucketObjectLockConfiguration"))
    assert [lock.name for lock in locks] == [f"archive-{region}-object-lock" for region in REGIONS]
    assert all(lock.inputs["rule"]["defaultRetention"] == {"days": 1, "mode": "GOVERNANCE"} for lock in locks)
    lockable = {bucket.name: bucket.inputs["objectLockEnabled"] for bucket in foundation.of_type("aws:s3/bucket:Bucket")}
    assert {name for name, locked in lockable.items() if locked} == {f"archive-{region}-bucket" for region in REGIONS}


@pytest.mark.parametrize(("source", "target"), [REGIONS, REGIONS[::-1]])
def test_artifacts_replicate_both_ways_with_a_time_target_and_without_deletions(
    foundation: Graph, source: str, target: str
) -> None:
    config = one(foundation, "aws:s3/bucketReplicationConfig:BucketReplicationConfig", f"artifact-replication-from-{source}")
    (rule,) = config.inputs["rules"]
    assert rule["deleteMarkerReplication"] == {"status": "Disabled"}
    assert rule["sourceSelectionCriteria"]["replicaModifications"] == {"status": "Enabled"}
    destination = rule["destination"]
    assert f"artifacts-{target}-bucket#arn" in destination["bucket"]
    key = "data-key-primary#arn" if target == "us-east-2" else f"data-key-replica-{target}#arn"
    assert key in destination["encryptionConfiguration"]["replicaKmsKeyId"], "encrypted with the key of where it arrives"
    assert destination["replicationTime"] == {"status": "Enabled", "time": {"minutes": 15}}
    assert destination["metrics"] == {"status": "Enabled", "eventThreshold": {"minutes": 15}}
    assert config.options.provider.endswith(f"aws-{source}")
    versionings = [urn for urn in config.options.depends_on if "BucketVersioning::artifacts" in urn]
    assert len(versionings) == 2, "S3 refuses replication before both sides are versioned"


@pytest.mark.parametrize("table", ["registry", "tenants", "ledger"])
def test_a_table_is_global_recoverable_and_hard_to_delete(foundation: Graph, table: str) -> None:
    inputs = one(foundation, "aws:dynamodb/table:Table", f"{table}-table").inputs
    assert inputs["name"] == f"flotilla-local-{table}"
    assert (inputs["hashKey"], inputs["rangeKey"], inputs["billingMode"]) == ("pk", "sk", "PAY_PER_REQUEST")
    assert inputs["attributes"] == [{"name": "pk", "type": "S"}, {"name": "sk", "type": "S"}]
    assert inputs["streamEnabled"] and inputs["streamViewType"] == "NEW_AND_OLD_IMAGES", "global tables replicate by their stream"
    assert inputs["deletionProtectionEnabled"] and inputs["pointInTimeRecovery"] == {"enabled": True}
    (replica,) = inputs["replicas"]
    assert replica["regionName"] == "us-west-2" and "data-key-replica-us-west-2#arn" in replica["kmsKeyArn"]
    assert replica["deletionProtectionEnabled"] and replica["pointInTimeRecovery"]


@pytest.mark.parametrize("secret", ["key-pepper", "cache-salt", "admin-key"])
def test_a_secret_is_made_once_marked_and_replicated(foundation: Graph, secret: str) -> None:
    """A new pepper at every `up` would void every API key."""
    declared = one(foundation, "aws:secretsmanager/secret:Secret", f"{secret}-secret").inputs
    assert declared["name"] == f"flotilla/local/{secret}"
    assert [replica["region"] for replica in declared["replicas"]] == ["us-west-2"]
    version = one(foundation, "aws:secretsmanager/secretVersion:SecretVersion", f"{secret}-value")
    assert version.options.ignore_changes == ("secretString",)
    assert isinstance(version.inputs["secretString"], Secret)
    assert version.inputs["secretString"].value.endswith("#randomPassword}")


def test_secrets_have_values_of_their_own(foundation: Graph) -> None:
    values = {
        version.inputs["secretString"].value for version in foundation.of_type("aws:secretsmanager/secretVersion:SecretVersion")
    }
    assert len(values) == 3


def test_the_key_is_multi_region_and_known_by_one_alias_everywhere(foundation: Graph) -> None:
    key = one(foundation, "aws:kms/key:Key", "data-key-primary").inputs
    assert key["multiRegion"] and key["enableKeyRotation"]
    aliases = list(foundation.of_type("aws:kms/alias:Alias"))
    assert {alias.inputs["name"] for alias in aliases} == {"alias/flotilla-local-data"} and len(aliases) == 2
