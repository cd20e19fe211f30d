"""What survives a region: each property that a loss would turn on."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from infra.components.access import permissions_boundary
from infra.embedded.graph import Graph, Resource, Secret
from infra.embedded.recorder import record
from infra.errors import ConfigError
from infra.naming import parse_stack

REGIONS = ("us-east-2", "us-west-2")


PROD, LOCAL, ONE_REGION = "prod.foundation", "local.foundation", "staging.foundation"
BUCKETS = {"artifact": "artifacts", "archive": "archive", "state-mirror": "state-mirror", "body": "bodies"}
"""What the buckets of each kind of object are called."""
LOCKED = ("archive", "state-mirror")
REPLICATION = "aws:s3/bucketReplicationConfig:BucketReplicationConfig"
ROLE, ROLE_POLICY, POLICY = "aws:iam/role:Role", "aws:iam/rolePolicy:RolePolicy", "aws:iam/policy:Policy"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Graph]:
    return record([LOCAL, ONE_REGION, PROD])


@pytest.fixture(scope="module")
def foundation(recorded: dict[str, Graph]) -> Graph:
    return recorded[LOCAL]


@pytest.fixture(scope="module")
def prod(recorded: dict[str, Graph]) -> Graph:
    return recorded[PROD]


def one(graph: Graph, resource_type: str, name: str) -> Resource:
    (found,) = (resource for resource in graph.of_type(resource_type) if resource.name == name)
    return found


def statements(resource: Resource, name: str = "policy") -> dict[str, Any]:
    """The statements of a policy document by their names."""
    return {statement["Sid"]: statement for statement in json.loads(resource.inputs[name])["Statement"]}


@pytest.mark.parametrize("what", BUCKETS.values())
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


def test_what_proves_something_is_locked_and_nothing_else(foundation: Graph, prod: Graph) -> None:
    """A lock cannot be taken back: a release or a conversation that must go has to be deletable."""
    days = {}
    for lock in prod.of_type("aws:s3/bucketObjectLockConfiguration:BucketObjectLockConfiguration"):
        retention = lock.inputs["rule"]["defaultRetention"]
        assert retention["mode"] == "GOVERNANCE"
        days[lock.name] = retention["days"]
    assert days == {
        f"{what}-{region}-object-lock": wanted for what, wanted in (("archive", 400), ("state-mirror", 30)) for region in REGIONS
    }
    lockable = {bucket.name: bucket.inputs["objectLockEnabled"] for bucket in foundation.of_type("aws:s3/bucket:Bucket")}
    assert {name for name, locked in lockable.items() if locked} == {
        f"{what}-{region}-bucket" for what in LOCKED for region in REGIONS
    }


def test_conversations_and_batch_files_go_by_themselves_and_nothing_else_does(prod: Graph) -> None:
    kind = "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration"
    expiring = {
        rules.name: rule["expiration"]["days"]
        for rules in prod.of_type(kind)
        for rule in rules.inputs["rules"]
        if "expiration" in rule
    }
    assert expiring == {f"bodies-{region}-lifecycle": 30 for region in REGIONS}
    assert all("noncurrentVersionExpiration" in rules.inputs["rules"][0] for rules in prod.of_type(kind))


@pytest.mark.parametrize("what", BUCKETS)
@pytest.mark.parametrize(("source", "target"), [REGIONS, REGIONS[::-1]])
def test_every_object_replicates_both_ways_with_a_time_target_and_without_deletions(
    foundation: Graph, what: str, source: str, target: str
) -> None:
    config = one(foundation, REPLICATION, f"{what}-replication-from-{source}")
    (rule,) = config.inputs["rules"]
    assert rule["deleteMarkerReplication"] == {"status": "Disabled"}
    assert rule["sourceSelectionCriteria"]["replicaModifications"] == {"status": "Enabled"}
    destination = rule["destination"]
    assert f"{BUCKETS[what]}-{target}-bucket#arn" in destination["bucket"]
    key = "data-key-primary#arn" if target == "us-east-2" else f"data-key-replica-{target}#arn"
    assert key in destination["encryptionConfiguration"]["replicaKmsKeyId"], "encrypted with the key of where it arrives"
    assert destination["replicationTime"] == {"status": "Enabled", "time": {"minutes": 15}}
    assert destination["metrics"] == {"status": "Enabled", "eventThreshold": {"minutes": 15}}
    assert config.options.provider.endswith(f"aws-{source}")
    versionings = [urn for urn in config.options.depends_on if f"BucketVersioning::{BUCKETS[what]}-" in urn]
    assert len(versionings) == 2, "S3 refuses replication before both sides are versioned"


@pytest.mark.parametrize("what", BUCKETS)
def test_the_replicating_role_can_read_locks_where_there_are_any_and_can_delete_nothing(foundation: Graph, what: str) -> None:
    """S3 fails to replicate a locked object whose lock it may not read."""
    policy = statements(one(foundation, ROLE_POLICY, f"{what}-replication-policy"))
    reads = set(policy["ReadSource"]["Action"])
    assert ({"s3:GetObjectRetention", "s3:GetObjectLegalHold"} <= reads) == (what in LOCKED)
    assert "s3:ReplicateDelete" not in str(policy)
    buckets = {arn.removesuffix("/*") for arn in policy["ReadSource"]["Resource"]}
    assert buckets == {f"arn:aws:s3:::flotilla-local-{code}-{BUCKETS[what]}" for code in ("use2", "usw2")}


def test_one_region_has_all_of_it_and_no_replication(recorded: dict[str, Graph]) -> None:
    graph = recorded[ONE_REGION]
    assert len(list(graph.of_type("aws:s3/bucket:Bucket"))) == len(BUCKETS)
    replicating = (REPLICATION, "aws:kms/replicaKey:ReplicaKey", "aws:ecr/replicationConfiguration:ReplicationConfiguration")
    assert not list(graph.of_type(*replicating, "aws:ecr/repositoryCreationTemplate:RepositoryCreationTemplate"))
    assert [table.inputs["replicas"] for table in graph.of_type("aws:dynamodb/table:Table")] == [[]] * 8
    assert graph.outputs["regions"].keys() == {"us-east-2"}


def test_no_output_is_interim(recorded: dict[str, Graph]) -> None:
    assert all("INTERIM" not in json.dumps(graph.outputs) for graph in recorded.values())


@pytest.mark.parametrize(
    "table", ["registry", "tenants", "ledger", "idempotency", "failover", "prompts", "conversations", "batches"]
)
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


@pytest.mark.parametrize(("region", "other"), [REGIONS, REGIONS[::-1]])
def test_images_are_immutable_scanned_pruned_and_replicated(prod: Graph, region: str, other: str) -> None:
    repository = one(prod, "aws:ecr/repository:Repository", f"images-repository-{region}")
    assert repository.inputs["name"] == "flotilla/prod/serving" and repository.inputs["imageTagMutability"] == "IMMUTABLE"
    (encryption,) = repository.inputs["encryptionConfigurations"]
    assert encryption["encryptionType"] == "KMS" and "data-key-" in encryption["kmsKey"]
    scanning = one(prod, "aws:ecr/registryScanningConfiguration:RegistryScanningConfiguration", f"images-scanning-{region}")
    (rule,) = scanning.inputs["rules"]
    assert rule["scanFrequency"] == "SCAN_ON_PUSH"
    assert rule["repositoryFilters"] == [{"filter": "flotilla/prod/*", "filterType": "WILDCARD"}]
    pruning = json.loads(one(prod, "aws:ecr/lifecyclePolicy:LifecyclePolicy", f"images-lifecycle-{region}").inputs["policy"])
    assert [rule["selection"]["countNumber"] for rule in pruning["rules"]] == [14, 50]
    kind = "aws:ecr/replicationConfiguration:ReplicationConfiguration"
    (rule,) = one(prod, kind, f"images-replication-{region}").inputs["replicationConfiguration"]["rules"]
    assert rule["destinations"] == [{"region": other, "registryId": "222222222222"}]
    assert rule["repositoryFilters"] == [{"filter": "flotilla/prod/", "filterType": "PREFIX_MATCH"}]
    assert (
        prod.outputs["regions"][region]["image_repository"]
        == f"222222222222.dkr.ecr.{region}.amazonaws.com/flotilla/prod/serving"
    )


@pytest.mark.parametrize("region", REGIONS)
def test_a_repository_that_replication_makes_is_like_ours(prod: Graph, region: str) -> None:
    template = one(prod, "aws:ecr/repositoryCreationTemplate:RepositoryCreationTemplate", f"images-template-{region}").inputs
    ours = one(prod, "aws:ecr/repository:Repository", f"images-repository-{region}").inputs
    assert template["prefix"] == ours["name"].rpartition("/")[0] and template["appliedFors"] == ["REPLICATION"]
    assert {name: template[name] for name in ("imageTagMutability", "encryptionConfigurations")} == {
        name: ours[name] for name in ("imageTagMutability", "encryptionConfigurations")
    }
    assert (
        template["lifecyclePolicy"]
        == one(prod, "aws:ecr/lifecyclePolicy:LifecyclePolicy", f"images-lifecycle-{region}").inputs["policy"]
    )
    assert template["resourceTags"] == ours["tags"], "bills and orphans go by tags"
    assert "images-template-role#arn" in template["customRoleArn"], "ECR needs a role to give tags and a key"


def test_the_bill_is_watched_where_a_budget_is_given(prod: Graph, foundation: Graph) -> None:
    budget = one(prod, "aws:budgets/budget:Budget", "budget-monthly").inputs
    assert (budget["limitAmount"], budget["limitUnit"], budget["timeUnit"]) == ("2500000", "USD", "MONTHLY")
    told = [(it["notificationType"], it["threshold"]) for it in budget["notifications"]]
    assert told == [("ACTUAL", 50), ("ACTUAL", 80), ("ACTUAL", 100), ("FORECASTED", 100)]
    assert all(it["subscriberEmailAddresses"] == ["platform@example.com"] for it in budget["notifications"])
    assert not budget.get("costFilters"), "a tag that nobody activated for billing would make the alarm silent"
    assert not list(foundation.of_type("aws:budgets/budget:Budget"))


def test_every_role_carries_the_boundary(recorded: dict[str, Graph]) -> None:
    for graph in recorded.values():
        roles = list(graph.of_type(ROLE))
        assert all("boundary-policy#arn" in str(role.inputs.get("permissionsBoundary")) for role in roles), graph.stack
        assert bool(roles) == (graph.stack != ONE_REGION)


def allowed_by(boundary: dict[str, Any], action: str) -> bool:
    """Whether a boundary lets an action through somewhere: allowed by a statement, and by none denied everywhere."""
    denied = [it for it in boundary.values() if it["Effect"] == "Deny" and "Action" in it]
    allowed = [it for it in boundary.values() if it["Effect"] == "Allow"]
    return any(fnmatchcase(action, pattern) for it in allowed for pattern in it["Action"]) and not any(
        fnmatchcase(action, pattern) for it in denied for pattern in it["Action"]
    )


def test_the_boundary_lets_through_what_our_own_policies_give(graphs: dict[str, Graph]) -> None:
    """A boundary that forgets an action fails at run time, far from here."""
    num_checked = 0
    for stack, graph in graphs.items():
        foundation = graphs[f"{parse_stack(stack).environment}.foundation"]
        boundary = statements(one(foundation, POLICY, "boundary-policy"))
        for policy in graph.of_type(ROLE_POLICY):
            for name, statement in statements(policy).items():
                refused = [action for action in statement["Action"] if not allowed_by(boundary, action)]
                assert not refused, f"{stack}: {policy.name}, {name}"
                num_checked += len(statement["Action"])
    assert num_checked > 200


@pytest.mark.parametrize(
    "action",
    ["iam:CreateRole", "iam:PutRolePolicy", "iam:CreateUser", "organizations:LeaveOrganization", "s3:DeleteObjectVersion",
     "s3:BypassGovernanceRetention", "dynamodb:DeleteTable", "kms:ScheduleKeyDeletion", "route53:ChangeResourceRecordSets"],
)  # fmt: skip
def test_the_boundary_stops_escalation_and_the_end_of_data(prod: Graph, action: str) -> None:
    assert not allowed_by(statements(one(prod, POLICY, "boundary-policy")), action)


def test_the_boundary_keeps_roles_in_their_regions_and_to_their_own_data(prod: Graph) -> None:
    boundary = statements(one(prod, POLICY, "boundary-policy"))
    assert boundary["StayInRegions"]["Condition"] == {"StringNotEquals": {"aws:RequestedRegion": list(REGIONS)}}
    assert set(boundary["StayInRegions"]["NotAction"]) == {f"{service}:*" for service in permissions_boundary.GLOBAL_SERVICES}
    assert "arn:aws:s3:::flotilla-prod-*" in boundary["OwnData"]["Resource"]
    assert boundary["PassOwnRoles"]["Resource"] == ["arn:aws:iam::222222222222:role/flotilla-prod-*"]
    assert len(one(prod, POLICY, "boundary-policy").inputs["policy"]) <= 6144, "the quota of a managed policy"


def test_duties_are_taken_by_those_named_and_made_only_where_somebody_is(prod: Graph, foundation: Graph) -> None:
    trusts = {role.name: role.inputs["assumeRolePolicy"] for role in prod.of_type(ROLE) if "DutyRole" in role.parent}
    assert trusts.keys() == {"publisher-role", "responder-role", "auditor-role"}
    (trust,) = json.loads(trusts["responder-role"])["Statement"]
    assert trust["Principal"] == {"AWS": "arn:aws:iam::222222222222:root"}
    assert trust["Condition"]["ArnLike"]["aws:PrincipalArn"] == [
        "arn:aws:iam::222222222222:role/aws-reserved/sso.amazonaws.com/*/AWSReservedSSO_OnCall_*"
    ]
    assert not [role for role in foundation.of_type(ROLE) if "DutyRole" in role.parent]


@pytest.mark.parametrize(
    ("duty", "writes"),
    [
        ("publisher", {"registry", "artifacts", "repository"}),
        ("responder", {"failover"}),
        ("auditor", set()),
    ],
)
def test_a_duty_writes_only_what_it_is_for(prod: Graph, duty: str, writes: set[str]) -> None:
    written: set[str] = set()
    for statement in statements(one(prod, ROLE_POLICY, f"{duty}-policy")).values():
        if any(verb in action for action in statement["Action"] for verb in (":Put", ":Update", ":Delete", "Upload")):
            for resource in statement["Resource"]:
                written.add("repository" if ":repository/" in resource else resource.removesuffix("/*").rpartition("-")[2])
    assert written == writes


def test_a_responder_reaches_the_controls_of_every_region(prod: Graph) -> None:
    """In a lost region's hour only the other one's can be written."""
    controls = statements(one(prod, ROLE_POLICY, "responder-policy"))["Controls"]
    assert controls["Resource"] == [f"arn:aws:dynamodb:{region}:222222222222:table/flotilla-prod-failover" for region in REGIONS]


def test_a_principal_of_another_account_is_refused_before_any_resource(stacks_dir: Path) -> None:
    stack_file = stacks_dir / f"Pulumi.{PROD}.yaml"
    stack_file.write_text(stack_file.read_text().replace("222222222222:role/flotilla-publish", "333333333333:role/elsewhere"))
    with pytest.raises(ConfigError) as raised:
        record([PROD], stacks_dir=stacks_dir)
    assert raised.value.message == (
        "stacks/Pulumi.prod.foundation.yaml: `flotilla:duties.publishers` names arn:aws:iam::333333333333:role/elsewhere, must be"
        " of account 222222222222. Name a role of that account, which others may take."
    )
