"""How each type of AWS resource is brought about on the emulated AWS: one small function a type, in a table.

Each reads before it writes, says whether it created, updated or left alone, and returns the outputs that others refer to. It
takes every property it is given, passes over by name what has no meaning on one machine, and refuses any other: nothing is
silently different from what the program declared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from botocore.exceptions import ClientError

from infra.embedded.graph import Resource

URN_TAG = "flotilla:urn"

Outcome = Literal["created", "updated", "unchanged"]
Outputs = dict[str, Any]


class UnknownPropertyError(Exception):
    """A property that the function for its type does not know; the message is the property's path."""


@dataclass
class Declared:
    """A resource to bring about: its inputs with every token resolved, and clients for its region."""

    resource: Resource
    inputs: Mapping[str, Any]
    region: str
    regions: tuple[str, ...]
    """Every region that the environment has."""
    client: Callable[[str, str], Any]
    """The client of a service in a region."""
    taken: set[str] = field(default_factory=lambda: {"tags"})

    def __getitem__(self, name: str) -> Any:
        self.taken.add(name)
        return self.inputs[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The input called `name`, which so counts as known."""
        self.taken.add(name)
        return self.inputs.get(name, default)

    def at(self, service: str, region: str = "") -> Any:
        """The client of `service` in the resource's own region, or another."""
        return self.client(service, region or self.region)

    def passes_over(self, *names: str) -> None:
        """Counts these as known: they mean nothing here. Tags are always passed over."""
        self.taken.update(names)

    def check_all_taken(self) -> None:
        """Raises UnknownPropertyError for an input that nobody asked for."""
        for name, value in self.inputs.items():
            if name not in self.taken and value is not None:
                raise UnknownPropertyError(name)


Realise = Callable[[Declared], tuple[Outcome, Outputs]]


def _kms_key(declared: Declared) -> tuple[Outcome, Outputs]:
    kms = declared.at("kms")
    declared.passes_over("policy", "deletionWindowInDays")  # rights and second thoughts
    description, multi_region, rotation = (
        declared.get("description", ""),
        declared.get("multiRegion", False),
        declared.get("enableKeyRotation"),
    )
    key = _tagged_key(kms, declared.resource.urn)
    outcome: Outcome = "unchanged" if key else "created"
    if key is None:
        tags = [{"TagKey": URN_TAG, "TagValue": declared.resource.urn}]
        key = kms.create_key(Description=description, MultiRegion=multi_region, Tags=tags)["KeyMetadata"]
        if rotation:
            kms.enable_key_rotation(KeyId=key["KeyId"])
    return outcome, {"id": key["KeyId"], "keyId": key["KeyId"], "arn": key["Arn"]}


def _kms_replica_key(declared: Declared) -> tuple[Outcome, Outputs]:
    declared.passes_over("policy", "deletionWindowInDays")
    _, _, _, home, _, path = declared["primaryKeyArn"].split(":")
    key_id = path.removeprefix("key/")
    description = declared.get("description", "")
    key = _absent_is_none(lambda: declared.at("kms").describe_key(KeyId=key_id)["KeyMetadata"])
    outcome: Outcome = "unchanged" if key else "created"
    if key is None:
        answer = declared.at("kms", home).replicate_key(KeyId=key_id, ReplicaRegion=declared.region, Description=description)
        key = answer["ReplicaKeyMetadata"]
    return outcome, {"id": key["KeyId"], "keyId": key["KeyId"], "arn": key["Arn"]}


def _kms_alias(declared: Declared) -> tuple[Outcome, Outputs]:
    kms, name, target = declared.at("kms"), declared["name"], declared["targetKeyId"]
    aliases = {alias["AliasName"]: alias for page in kms.get_paginator("list_aliases").paginate() for alias in page["Aliases"]}
    outcome: Outcome = "unchanged"
    if name not in aliases:
        kms.create_alias(AliasName=name, TargetKeyId=target)
        outcome = "created"
    elif aliases[name].get("TargetKeyId") != target:
        kms.update_alias(AliasName=name, TargetKeyId=target)
        outcome = "updated"
    return outcome, {"id": name, "name": name}


def _bucket(declared: Declared) -> tuple[Outcome, Outputs]:
    s3, name = declared.at("s3"), declared["bucket"]
    has_lock = bool(declared.get("objectLockEnabled"))
    outcome: Outcome = "unchanged"
    if _absent_is_none(lambda: s3.head_bucket(Bucket=name)) is None:
        s3.create_bucket(
            Bucket=name, CreateBucketConfiguration={"LocationConstraint": declared.region}, ObjectLockEnabledForBucket=has_lock
        )
        outcome = "created"
    arn = f"arn:aws:s3:::{name}"
    return outcome, {
        "id": name,
        "bucket": name,
        "arn": arn,
        "bucketRegionalDomainName": f"{name}.s3.{declared.region}.amazonaws.com",
    }


def _bucket_setting(noun: str, envelope: str, shape: Callable[[Declared], Any], *, is_bare: bool = False) -> Realise:
    """The function for one configuration of a bucket, which S3's calls `get_<noun>` and `put_<noun>` carry as `envelope`.

    `shape` gives it as S3 wants it; `is_bare` says that the answer is the configuration itself.
    """

    def realise(declared: Declared) -> tuple[Outcome, Outputs]:
        s3, bucket, wanted = declared.at("s3"), declared["bucket"], shape(declared)
        answer = _absent_is_none(lambda: getattr(s3, f"get_{noun}")(Bucket=bucket))
        present = answer if answer is None or is_bare else answer.get(envelope)
        is_same = _contains(_parsed(present), _parsed(wanted))
        if not is_same:
            getattr(s3, f"put_{noun}")(Bucket=bucket, **{envelope: wanted})
        return "unchanged" if is_same else "created" if present is None else "updated", {"id": bucket, "bucket": bucket}

    return realise


def _dynamodb_table(declared: Declared) -> tuple[Outcome, Outputs]:
    dynamodb, name = declared.at("dynamodb"), declared["name"]
    wanted: dict[str, Any] = {
        "BillingMode": declared.get("billingMode", "PROVISIONED"),
        "KeySchema": [{"AttributeName": declared["hashKey"], "KeyType": "HASH"}],
        "AttributeDefinitions": [
            {"AttributeName": item["name"], "AttributeType": item["type"]} for item in declared["attributes"]
        ],
        "DeletionProtectionEnabled": bool(declared.get("deletionProtectionEnabled")),
    }
    if range_key := declared.get("rangeKey"):
        wanted["KeySchema"].append({"AttributeName": range_key, "KeyType": "RANGE"})
    if declared.get("streamEnabled"):
        wanted["StreamSpecification"] = {"StreamEnabled": True, "StreamViewType": declared["streamViewType"]}
    if encryption := declared.get("serverSideEncryption"):
        wanted["SSESpecification"] = {
            "Enabled": encryption["enabled"],
            "SSEType": "KMS",
            "KMSMasterKeyId": encryption["kmsKeyArn"],
        }
    table = _absent_is_none(lambda: dynamodb.describe_table(TableName=name)["Table"])
    outcome: Outcome = "unchanged"
    if table is None:
        table = dynamodb.create_table(TableName=name, **wanted)["TableDescription"]
        dynamodb.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 30})
        outcome = "created"
    elif table["KeySchema"] != wanted["KeySchema"]:
        raise UnknownPropertyError("hashKey (of a table that exists with another key)")
    present = {replica["RegionName"] for replica in table.get("Replicas", ())}
    for replica in declared.get("replicas", ()):
        if replica["regionName"] not in present:
            create = {"RegionName": replica["regionName"], "KMSMasterKeyId": replica.get("kmsKeyArn")}
            dynamodb.update_table(
                TableName=name, ReplicaUpdates=[{"Create": {key: value for key, value in create.items() if value}}]
            )
            outcome = outcome if outcome == "created" else "updated"
    if declared.get("pointInTimeRecovery", {}).get("enabled"):
        backups = dynamodb.describe_continuous_backups(TableName=name)["ContinuousBackupsDescription"]
        if backups.get("PointInTimeRecoveryDescription", {}).get("PointInTimeRecoveryStatus") != "ENABLED":
            dynamodb.update_continuous_backups(
                TableName=name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
            )
            outcome = outcome if outcome == "created" else "updated"
    if (ttl := declared.get("ttl")) and ttl["enabled"]:
        known = dynamodb.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
        if known.get("TimeToLiveStatus") != "ENABLED" or known.get("AttributeName") != ttl["attributeName"]:
            expires = {"AttributeName": ttl["attributeName"], "Enabled": True}
            dynamodb.update_time_to_live(TableName=name, TimeToLiveSpecification=expires)
            outcome = outcome if outcome == "created" else "updated"
    return outcome, {"id": name, "name": name, "arn": table["TableArn"], "streamArn": table.get("LatestStreamArn", "")}


def _secret(declared: Declared) -> tuple[Outcome, Outputs]:
    """A secret here, and one of the same name in each replica's region: the emulated AWS does not replicate them itself."""
    name = declared["name"]
    description, key = declared.get("description", ""), declared.get("kmsKeyId")
    regions = {declared.region: key, **{replica["region"]: replica.get("kmsKeyId") for replica in declared.get("replicas", ())}}
    outcome: Outcome = "unchanged"
    arn = ""
    for region, key_id in regions.items():
        manager = declared.at("secretsmanager", region)
        secret = _absent_is_none(lambda manager=manager: manager.describe_secret(SecretId=name))  # type: ignore[misc]
        if secret is None:
            secret = manager.create_secret(Name=name, Description=description, **({"KmsKeyId": key_id} if key_id else {}))
            outcome = "created"
        arn = arn or secret["ARN"]
    return outcome, {"id": arn, "arn": arn, "name": name}


def _secret_version(declared: Declared) -> tuple[Outcome, Outputs]:
    """The value, the same in every region that has the secret. One that exists stays, where the program ignores later ones."""
    secret_id, value = declared["secretId"], declared["secretString"]
    name = declared.at("secretsmanager").describe_secret(SecretId=secret_id)["Name"]
    present = _secret_value(declared.at("secretsmanager"), name)
    outcome: Outcome = "unchanged"
    if present is None or (present != value and "secretString" not in declared.resource.options.ignore_changes):
        outcome = "updated" if present else "created"
        present = value
        declared.at("secretsmanager").put_secret_value(SecretId=name, SecretString=value)
    for region in declared.regions:
        manager = declared.at("secretsmanager", region)
        has_secret = _absent_is_none(lambda manager=manager: manager.describe_secret(SecretId=name)) is not None  # type: ignore[misc]
        if has_secret and _secret_value(manager, name) != present:
            manager.put_secret_value(SecretId=name, SecretString=present)
    return outcome, {"id": secret_id, "arn": secret_id, "secretId": secret_id}


def _secret_value(manager: Any, name: str) -> str | None:
    answer = _absent_is_none(lambda: manager.get_secret_value(SecretId=name))
    return answer.get("SecretString") if answer else None


def _tagged_key(kms: Any, urn: str) -> Any:
    """The key that was made for `urn`. Keys have no names; a tag tells them apart."""
    for page in kms.get_paginator("list_keys").paginate():
        for key in page["Keys"]:
            tags = kms.list_resource_tags(KeyId=key["KeyId"])["Tags"]
            if {"TagKey": URN_TAG, "TagValue": urn} in tags:
                return kms.describe_key(KeyId=key["KeyId"])["KeyMetadata"]
    return None


def _absent_is_none(read: Callable[[], Any]) -> Any:
    """What `read` returns, or None where AWS says that there is no such thing."""
    try:
        return read()
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "404" or code.startswith("NoSuch") or "NotFound" in code:
            return None
        raise


def _parsed(configuration: Any) -> Any:
    return json.loads(configuration) if isinstance(configuration, str) else configuration


def _contains(present: Any, wanted: Any) -> bool:
    """Whether `present` says everything that `wanted` says; what AWS adds is its own."""
    if isinstance(wanted, Mapping):
        return isinstance(present, Mapping) and all(_contains(present.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(present, list) and len(present) == len(wanted) and all(map(_contains, present, wanted))
    return bool(present == wanted)


_UPPER = {
    "id": "ID", "sseAlgorithm": "SSEAlgorithm", "kmsMasterKeyId": "KMSMasterKeyID", "replicaKmsKeyId": "ReplicaKmsKeyID",
}  # fmt: skip
"""Names that S3's own API does not form from the program's by a capital first letter."""


def _s3_shape(value: Any) -> Any:
    """The program's names as S3's: `bucketKeyEnabled` is `BucketKeyEnabled`."""
    if isinstance(value, Mapping):
        return {_UPPER.get(key, key[0].upper() + key[1:]): _s3_shape(item) for key, item in value.items()}
    return [_s3_shape(item) for item in value] if isinstance(value, list) else value


def _public_access(declared: Declared) -> Any:
    names = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
    return _s3_shape({name: bool(declared.get(name)) for name in names})


REALISERS: Mapping[str, Realise] = {
    "aws:kms/key:Key": _kms_key,
    "aws:kms/replicaKey:ReplicaKey": _kms_replica_key,
    "aws:kms/alias:Alias": _kms_alias,
    "aws:s3/bucket:Bucket": _bucket,
    "aws:s3/bucketVersioning:BucketVersioning": _bucket_setting(
        "bucket_versioning", "VersioningConfiguration", lambda it: _s3_shape(it["versioningConfiguration"]), is_bare=True
    ),
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": _bucket_setting(
        "bucket_encryption", "ServerSideEncryptionConfiguration", lambda it: {"Rules": _s3_shape(it["rules"])}
    ),
    "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": _bucket_setting(
        "public_access_block", "PublicAccessBlockConfiguration", _public_access
    ),
    "aws:s3/bucketOwnershipControls:BucketOwnershipControls": _bucket_setting(
        "bucket_ownership_controls", "OwnershipControls", lambda it: {"Rules": [_s3_shape(it["rule"])]}
    ),
    "aws:s3/bucketPolicy:BucketPolicy": _bucket_setting("bucket_policy", "Policy", lambda it: it["policy"]),
    "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": _bucket_setting(
        "bucket_lifecycle_configuration", "LifecycleConfiguration", lambda it: {"Rules": _s3_shape(it["rules"])}, is_bare=True
    ),
    "aws:s3/bucketObjectLockConfiguration:BucketObjectLockConfiguration": _bucket_setting(
        "object_lock_configuration",
        "ObjectLockConfiguration",
        lambda it: {"ObjectLockEnabled": "Enabled", "Rule": _s3_shape(it["rule"])},
    ),
    "aws:s3/bucketReplicationConfig:BucketReplicationConfig": _bucket_setting(
        "bucket_replication", "ReplicationConfiguration", lambda it: {"Role": it["role"], "Rules": _s3_shape(it["rules"])}
    ),
    "aws:dynamodb/table:Table": _dynamodb_table,
    "aws:secretsmanager/secret:Secret": _secret,
    "aws:secretsmanager/secretVersion:SecretVersion": _secret_version,
}
"""The function for each type that is realised by calls; every other AWS type but the cache is recorded only."""
