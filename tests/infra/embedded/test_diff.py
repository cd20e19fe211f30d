"""What would change: verdicts, property paths, what forces a replacement, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from infra.embedded.diff import REMADE, GraphDiff, PropertyChange, Refusal, ResourceChange, Verdict, compare, compare_in_order
from infra.embedded.graph import Graph, Options, Resource, Secret, token
from infra.embedded.property_paths import ABSENT, kept, parse, values_at

VPC, SUBNET, BUCKET, TABLE = "aws:ec2/vpc:Vpc", "aws:ec2/subnet:Subnet", "aws:s3/bucket:Bucket", "aws:dynamodb/table:Table"
POLICY, DEPLOYMENT = "aws:s3/bucketPolicy:BucketPolicy", "kubernetes:apps/v1:Deployment"
PRIORITY = "kubernetes:scheduling.k8s.io/v1:PriorityClass"
AWS_PROVIDER, KUBERNETES_PROVIDER = "pulumi:providers:aws", "pulumi:providers:kubernetes"
GROUP = "test:group:Group"


def urn(kind: str, name: str, *ancestors: str) -> str:
    return f"urn:pulumi:s::p::{'$'.join([*ancestors, kind])}::{name}"


def resource(
    name: str, options: Options | None = None, kind: str = BUCKET, parent: Resource | None = None, **inputs: Any
) -> Resource:
    ancestors = [parent.urn.split("::")[2]] if parent else []
    return Resource(
        urn(kind, name, *ancestors),
        kind,
        name,
        parent.urn if parent else "",
        not kind.startswith("test:"),
        inputs,
        inputs,
        options or Options(),
    )


def graph(*resources: Resource) -> Graph:
    return Graph("s", resources, {})


def only(diff: GraphDiff) -> ResourceChange:
    (change,) = diff.changes
    return change


def verdicts(diff: GraphDiff) -> dict[str, str]:
    return {change.resource.name: change.verdict.value for change in diff.changes}


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, [("a", 1, 2)]),
        ({"a": 1}, {"a": True}, [("a", 1, True)]),
        ({"a": {"b": 1, "c": 1}}, {"a": {"b": 1, "d": 1}}, [("a.c", 1, ABSENT), ("a.d", ABSENT, 1)]),
        ({"a": [1, 2]}, {"a": [1, 3, 4]}, [("a[1]", 2, 3), ("a[2]", ABSENT, 4)]),
        (
            {"env": [{"name": "B", "value": "1"}]},
            {"env": [{"name": "A", "value": "0"}, {"name": "B", "value": "2"}]},
            [("env[B].value", "1", "2"), ("env[A]", ABSENT, {"name": "A", "value": "0"})],
        ),
        ({"c": [{"name": "A"}, {"name": "B"}]}, {"c": [{"name": "B"}, {"name": "A"}]}, [("c (order)", ["A", "B"], ["B", "A"])]),
        (
            {"r": [{"regionName": "b"}]},
            {"r": [{"regionName": "b"}, {"regionName": "c"}]},
            [("r[c]", ABSENT, {"regionName": "c"})],
        ),
        ({"data": {"x.json": '{"a": {"b": 1}}'}}, {"data": {"x.json": '{"a":{"b":2}}'}}, [("data.x.json/a.b", 1, 2)]),
        ({"data": '{"a": 1}'}, {"data": '{ "a": 1 }'}, []),
        ({"key": Secret("one")}, {"key": Secret("two")}, []),
        ({"key": Secret("one")}, {"key": "one"}, [("key", "[secret]", "one")]),
    ],
)
def test_properties_are_compared_one_by_one(
    before: dict[str, Any], after: dict[str, Any], changes: list[tuple[str, Any, Any]]
) -> None:
    change = only(compare(graph(resource("r", **before)), graph(resource("r", **after))))
    assert change.properties == tuple(PropertyChange(*item) for item in changes)
    assert change.verdict is (Verdict.UPDATED if changes else Verdict.UNCHANGED)


def test_every_resource_gets_one_verdict_and_options_count_as_properties() -> None:
    before = graph(resource("kept"), resource("gone"), resource("loosened", Options(protect=True)), resource("moved", bucket="a"))
    after = graph(
        resource("new"), resource("kept", Options(depends_on=("x",))), resource("loosened"), resource("moved", bucket="b")
    )
    diff = compare(before, after)
    assert [(change.resource.name, change.verdict.value) for change in diff.changes] == [
        ("new", "created"),
        ("kept", "unchanged"),
        ("loosened", "updated"),
        ("moved", "replaced"),
        ("gone", "deleted"),
    ]
    assert diff.changes[2].properties == (PropertyChange("options.protect", True, ABSENT),)
    assert diff.counts() == dict.fromkeys(Verdict, 1)
    assert not diff.is_empty and compare(before, before).is_empty


def test_without_one_side_everything_is_new_or_goes() -> None:
    some = graph(resource("a"), resource("b"))
    assert compare(None, some).counts()[Verdict.CREATED] == 2
    assert compare(some, None).counts()[Verdict.DELETED] == 2


REPLACING = [
    # (type, before, after, what it is replaced for)
    (VPC, {"cidrBlock": "10.0.0.0/16"}, {"cidrBlock": "10.1.0.0/16"}, ("cidrBlock",)),
    (VPC, {"tags": {"a": "b"}}, {"tags": {"a": "c"}}, ()),
    (TABLE, {"hashKey": "a"}, {"hashKey": "b"}, ("hashKey",)),
    (TABLE, {"billingMode": "PAY_PER_REQUEST"}, {"billingMode": "PROVISIONED"}, ()),
    ("aws:eks/nodeGroup:NodeGroup", {"scalingConfig": {"minSize": 1}}, {"scalingConfig": {"minSize": 2}}, ()),
    ("aws:eks/nodeGroup:NodeGroup", {"subnetIds": ["a", "b"]}, {"subnetIds": ["b", "a"]}, ()),
    ("aws:eks/nodeGroup:NodeGroup", {"subnetIds": ["a", "b"]}, {"subnetIds": ["a", "c"]}, ("subnetIds",)),
    ("aws:eks/cluster:Cluster", {"version": "1.35"}, {"version": "1.36"}, ()),
    ("aws:eks/cluster:Cluster", {"encryptionConfig": {"key": "a"}}, {"encryptionConfig": {"key": "b"}}, ()),
    ("aws:eks/cluster:Cluster", {"encryptionConfig": {"key": "a"}}, {}, ("encryptionConfig",)),
    ("aws:elasticache/replicationGroup:ReplicationGroup", {"engineVersion": "8.0"}, {"engineVersion": "8.1"}, ()),
    ("aws:elasticache/replicationGroup:ReplicationGroup", {"engineVersion": "8.1"}, {"engineVersion": "8.0"}, ("engineVersion",)),
    ("aws:elasticache/replicationGroup:ReplicationGroup", {"engine": "redis"}, {"engine": "valkey"}, ()),
    ("aws:elasticache/replicationGroup:ReplicationGroup", {"engine": "valkey"}, {"engine": "redis"}, ("engine",)),
    (DEPLOYMENT, {"spec": {"replicas": 1}}, {"spec": {"replicas": 2}}, ()),
    (DEPLOYMENT, {"spec": {"selector": {"a": "b"}}}, {"spec": {"selector": {"a": "c"}}}, ("spec.selector",)),
    (DEPLOYMENT, {"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}, ("metadata.name",)),
    ("kubernetes:keda.sh/v1alpha1:ScaledObject", {"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}, ("metadata.name",)),
    (GROUP, {"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}, ()),
]


@pytest.mark.parametrize(("kind", "before", "after", "forced"), REPLACING)
def test_what_a_provider_would_replace_is_replaced(
    kind: str, before: dict[str, Any], after: dict[str, Any], forced: tuple[str, ...]
) -> None:
    change = only(compare(graph(resource("r", kind=kind, **before)), graph(resource("r", kind=kind, **after))))
    assert change.forced_by == forced
    if before != after and not any(isinstance(value, list) for value in before.values()):
        assert change.verdict is (Verdict.REPLACED if forced else Verdict.UPDATED)


def test_a_replacement_reaches_all_that_holds_what_it_computes() -> None:
    """A new VPC has a new id: each subnet is made anew; a policy that only mentions one is updated, and a secret stays hidden."""

    def of(cidr: str) -> Graph:
        vpc = resource("vpc", kind=VPC, cidrBlock=cidr)
        subnet = resource("subnet", kind=SUBNET, vpcId=token(vpc.urn, "id"), cidrBlock="10.0.1.0/24")
        policy = resource("policy", kind=POLICY, bucket="b", policy=f"for {token(subnet.urn, 'arn')}")
        hidden = resource("hidden", kind=POLICY, bucket="b", policy=Secret(token(subnet.urn, "arn")))
        return graph(vpc, subnet, policy, hidden, resource("bystander"))

    diff = compare(of("10.0.0.0/16"), of("10.1.0.0/16"))
    assert verdicts(diff) == {
        "vpc": "replaced",
        "subnet": "replaced",
        "policy": "updated",
        "hidden": "updated",
        "bystander": "unchanged",
    }
    assert diff.changes[1].forced_by == ("vpcId",)
    assert diff.changes[1].properties[0].after == token(urn(VPC, "vpc"), "id") + REMADE
    assert diff.changes[3].properties == (PropertyChange("policy", "[secret]", "[secret]" + REMADE),)


def test_a_replacement_or_a_rename_in_one_stack_reaches_those_after_it() -> None:
    user = resource("user", kind=SUBNET, vpcId=token(urn(VPC, "vpc"), "id"))

    def vpc(name: str, *aliases: str, cidr: str = "10.0.0.0/16") -> Graph:
        return graph(resource(name, Options(aliases=aliases), kind=VPC, cidrBlock=cidr))

    _, later = compare_in_order([(vpc("vpc"), vpc("vpc", cidr="10.1.0.0/16")), (graph(user), graph(user))])
    assert only(later).verdict is Verdict.REPLACED
    follower = replace(user, inputs={"vpcId": token(urn(VPC, "new"), "id")})
    _, later = compare_in_order([(vpc("vpc"), vpc("new", "name=vpc")), (graph(user), graph(follower))])
    assert only(later).verdict is Verdict.UNCHANGED


def test_another_cluster_or_region_behind_a_provider_replaces_what_it_has_made() -> None:
    def on(kubeconfig: str, region: str) -> Graph:
        cluster = resource("kubernetes", kind=KUBERNETES_PROVIDER, kubeconfig=kubeconfig)
        cloud = resource("aws", kind=AWS_PROVIDER, region=region)
        bucket = resource("bucket", Options(provider=cloud.urn))
        return graph(
            cluster,
            cloud,
            resource("pod", Options(provider=cluster.urn), kind=DEPLOYMENT),
            replace(bucket, outputs={**bucket.outputs, "region": token(bucket.urn, "region")}),
        )

    def kubeconfig(server: str, user: str) -> str:
        return f'{{"clusters": [{{"cluster": {{"server": "{server}"}}}}], "users": ["{user}"]}}'

    before = on(kubeconfig("one", "a"), "us-east-2")
    assert verdicts(compare(before, on(kubeconfig("one", "b"), "us-east-2")))["pod"] == "unchanged"
    other_cluster = verdicts(compare(before, on(kubeconfig("two", "a"), "us-east-2")))
    assert other_cluster == {"kubernetes": "replaced", "aws": "unchanged", "pod": "replaced", "bucket": "unchanged"}
    other_region = verdicts(compare(before, on(kubeconfig("one", "a"), "us-west-2")))
    assert other_region == {"kubernetes": "unchanged", "aws": "updated", "pod": "unchanged", "bucket": "replaced"}


def test_what_will_not_go_through_is_refused_by_name() -> None:
    protected = Options(protect=True)
    gone = only(compare(graph(resource("r", protected)), graph()))
    assert (gone.verdict, gone.refusal) == (Verdict.DELETED, Refusal.PROTECTED)
    replaced = only(compare(graph(resource("r", protected, bucket="a")), graph(resource("r", bucket="b"))))
    assert (replaced.verdict, replaced.refusal) == (Verdict.REPLACED, Refusal.PROTECTED), "what the state says counts"
    newly = only(compare(graph(resource("r", bucket="a")), graph(resource("r", protected, bucket="b"))))
    assert newly.refusal is None
    sides = [graph(resource("r", options, kind=PRIORITY, value=value)) for options in (None, None) for value in (1, 2)]
    immutable = only(compare(sides[0], sides[1]))
    assert (immutable.verdict, immutable.refusal, immutable.forced_by) == (Verdict.UPDATED, Refusal.IMMUTABLE, ("value",))
    mended = only(compare(sides[0], graph(resource("r", Options(replace_on_changes=("value",)), kind=PRIORITY, value=2))))
    assert (mended.verdict, mended.refusal) == (Verdict.REPLACED, None)


def test_ignored_changes_are_no_changes() -> None:
    before = graph(resource("r", tags={"a": "1", "b": "1"}, bucket="x"))
    after = graph(resource("r", Options(ignore_changes=("tags.a", "bucket")), tags={"a": "2", "b": "2"}, bucket="y"))
    change = only(compare(before, after))
    assert [item.path for item in change.properties] == ["tags.b", "options.ignore_changes"]
    assert change.verdict is Verdict.UPDATED


def test_a_resource_that_stays_in_the_cloud_or_goes_first_is_told() -> None:
    kept_there = only(compare(graph(resource("r", Options(retain_on_delete=True))), graph()))
    assert kept_there.is_left_behind and not kept_there.deletes_first
    first = Options(delete_before_replace=True)
    goes_first = only(compare(graph(resource("r", first, bucket="a")), graph(resource("r", first, bucket="b"))))
    assert goes_first.deletes_first and not goes_first.is_left_behind


@pytest.mark.parametrize(
    ("alias", "is_found"),
    [("name=old", True), (urn(BUCKET, "old"), True), ("name=other", False), ("", False)],
)
def test_a_renamed_resource_is_found_by_its_alias(alias: str, is_found: bool) -> None:
    renamed = resource("new", Options(aliases=(alias,) if alias else ()))
    user = [resource("user", kind=POLICY, bucket=token(urn(BUCKET, name), "id")) for name in ("old", "new")]
    diff = compare(graph(resource("old"), user[0]), graph(renamed, user[1]))
    if is_found:
        assert verdicts(diff) == {"new": "unchanged", "user": "unchanged"}, "what refers to it has not changed either"
        assert diff.changes[0].formerly == urn(BUCKET, "old")
    else:
        assert verdicts(diff) == {"new": "created", "user": "replaced", "old": "deleted"}


def test_children_follow_a_renamed_parent_as_the_engine_has_it() -> None:
    before_parent = resource("old", kind=GROUP)
    after_parent = resource("new", Options(aliases=("name=old",)), kind=GROUP)
    before = graph(before_parent, resource("old-bucket", parent=before_parent), resource("plain", parent=before_parent))
    after = graph(after_parent, resource("new-bucket", parent=after_parent), resource("plain", parent=after_parent))
    assert verdicts(compare(before, after)) == dict.fromkeys(("new", "new-bucket", "plain"), "unchanged")
    without = graph(replace(after_parent, options=Options()), *after.resources[1:])
    assert compare(before, without).counts()[Verdict.CREATED] == 2, "`plain` has the same URN: its parent's name is not in it"


def test_property_paths_read_as_the_engine_reads_them() -> None:
    assert parse('a["b.c"][0].*') == ("a", "b.c", 0, "*")
    assert values_at({"a": [{"b": 1}, {"b": 2}]}, parse("a[*].b")) == [1, 2]
    assert values_at({"a": 1}, parse("b.c")) == [ABSENT]
    assert kept({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}}, parse("a.b")) == {"a": {"b": 1, "c": 3}}
    assert kept({"a": [{"b": 1}]}, {"a": [{"b": 2}, {"b": 3}]}, parse("a[*].b")) == {"a": [{"b": 1}, {}]}
    assert kept({}, {"a": 1}, parse("a")) == {}
