"""Ways to make a recorded graph insecure or fragile, one small change each: what the guardrails are measured by.

A mutation says which change it makes to which resources, not which rule should notice; any mandatory finding that was not there
before counts. Changes are those that a hurried person makes: a switch, a star, a forgotten block, a wrong type.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from infra.embedded.graph import Graph, Resource

Change = Callable[[Resource], Resource | None]
"""The changed resource, or None where it is taken out."""
Path = tuple[str | int, ...]
ROLE_POLICIES = ("aws:iam/policy:Policy", "aws:iam/rolePolicy:RolePolicy")
WORKLOADS = ("kubernetes:apps/v1:Deployment", "kubernetes:apps/v1:StatefulSet")
POD: Path = ("spec", "template", "spec")
CONTAINER: Path = (*POD, "containers", 0)


@dataclass(frozen=True)
class Mutation:
    """One kind of mistake."""

    name: str
    types: tuple[str, ...]
    change: Change
    where: Callable[[Resource], bool] = lambda _: True
    """Resources on which it is a mistake."""

    def victims(self, graph: Graph) -> Iterator[Resource]:
        """Resources of the graph that it can be made on; those that it would leave as they are do not count."""
        return (found for found in graph.of_type(*self.types) if self.where(found) and self.change(found) != found)

    def made(self, graph: Graph, victim: Resource) -> Graph:
        """The graph with the mistake in it."""
        changed = self.change(victim)
        kept = (changed if found is victim else found for found in graph.resources)
        return replace(graph, resources=tuple(found for found in kept if found is not None))


def put(path: Path, value: Any) -> Change:
    """Sets the property at `path`; where the way there does not exist, nothing changes."""

    def change(resource: Resource) -> Resource:
        inputs = copy.deepcopy(dict(resource.inputs))
        holder = _holder(inputs, path)
        if holder is not None:
            holder[path[-1]] = value
        return replace(resource, inputs=inputs)

    return change


def drop(path: Path) -> Change:
    """Takes the property at `path` out."""

    def change(resource: Resource) -> Resource:
        inputs = copy.deepcopy(dict(resource.inputs))
        holder = _holder(inputs, path)
        if isinstance(holder, dict):
            holder.pop(path[-1], None)
        elif isinstance(holder, list) and isinstance(path[-1], int) and path[-1] < len(holder):
            holder.pop(path[-1])
        return replace(resource, inputs=inputs)

    return change


def gone(_resource: Resource) -> None:
    """Takes the whole resource out."""


def unprotected(resource: Resource) -> Resource:
    """Lets Pulumi delete it."""
    return replace(resource, options=replace(resource.options, protect=False))


def unprovided(resource: Resource) -> Resource:
    """Leaves its provider to chance."""
    return replace(resource, options=replace(resource.options, provider=""))


def statement(key: str, value: Any) -> Change:
    """Sets `key` in the first statement of its policy that allows something."""

    def change(resource: Resource) -> Resource:
        name = "policy" if "policy" in resource.inputs else "assumeRolePolicy"
        document = json.loads(resource.inputs[name])
        for item in document["Statement"]:
            if item["Effect"] == "Allow":
                item[key] = value
                item.pop("Condition", None)
                break
        return replace(resource, inputs={**resource.inputs, name: json.dumps(document)})

    return change


def without_statements(resource: Resource) -> Resource:
    """Empties its policy."""
    return replace(resource, inputs={**resource.inputs, "policy": json.dumps({"Version": "2012-10-17", "Statement": []})})


def _opened(resource: Resource) -> Resource:
    """Allows everybody everything, besides what its policy says."""
    document = json.loads(resource.inputs["policy"])
    document["Statement"].append({"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"})
    return replace(resource, inputs={**resource.inputs, "policy": json.dumps(document)})


def _holder(inputs: dict[str, Any], path: Path) -> Any:
    holder: Any = inputs
    for step in path[:-1]:
        if (isinstance(holder, list) and isinstance(step, int) and step < len(holder)) or (
            isinstance(holder, dict) and isinstance(step, str) and step in holder
        ):
            holder = holder[step]
        else:
            return None
    return holder if isinstance(holder, dict | list) else None


def _is_granted(policy: Resource) -> bool:
    return "boundary" not in policy.name and '"Allow"' in str(policy.inputs.get("policy", ""))


def _is_gpu_pool(pool: Resource) -> bool:
    return any(
        str(value).startswith(("p4", "g6"))
        for item in pool.inputs["spec"]["template"]["spec"]["requirements"]
        for value in item.get("values", ())
    )


def _is_spot_pool(pool: Resource) -> bool:
    return "spot" in str(pool.inputs["spec"]["template"]["spec"]["requirements"])


def _s3(noun: str) -> str:
    return f"aws:s3/{noun[0].lower()}{noun[1:]}:{noun}"


def _spec_requirements(resource: Resource) -> Resource:
    """A spot pool that takes on-demand nodes too."""
    inputs = copy.deepcopy(dict(resource.inputs))
    for item in inputs["spec"]["template"]["spec"]["requirements"]:
        if item["key"] == "karpenter.sh/capacity-type":
            item["values"] = ["spot", "on-demand"]
    return replace(resource, inputs=inputs)


def _on_spot(resource: Resource) -> Resource:
    """A workload that may run on spot nodes."""
    spot = {"key": "flotilla.dev/capacity", "operator": "Equal", "value": "spot", "effect": "NoSchedule"}
    inputs = copy.deepcopy(dict(resource.inputs))
    inputs["spec"]["template"]["spec"].setdefault("tolerations", []).append(spot)
    return replace(resource, inputs=inputs)


def _is_base(workload: Resource) -> bool:
    labels: Mapping[str, str] = workload.inputs["spec"]["template"]["metadata"]["labels"]
    return labels.get("flotilla.dev/fleet", "base") == "base"


MUTATIONS: tuple[Mutation, ...] = (
    Mutation("stop keeping versions", (_s3("BucketVersioning"),), put(("versioningConfiguration", "status"), "Suspended")),
    Mutation("forget versions", (_s3("BucketVersioning"),), gone),
    Mutation("allow public ACLs", (_s3("BucketPublicAccessBlock"),), put(("blockPublicAcls",), False)),
    Mutation("allow public policies", (_s3("BucketPublicAccessBlock"),), put(("blockPublicPolicy",), False)),
    Mutation("open a bucket", (_s3("BucketPublicAccessBlock"),), gone),
    Mutation(
        "encrypt a bucket with AWS's key",
        (_s3("BucketServerSideEncryptionConfiguration"),),
        put(("rules", 0, "applyServerSideEncryptionByDefault"), {"sseAlgorithm": "AES256"}),
    ),
    Mutation("leave a bucket plain", (_s3("BucketServerSideEncryptionConfiguration"),), gone),
    Mutation("speak plain HTTP to a bucket", (_s3("BucketPolicy"),), without_statements),
    Mutation("bring ACLs back", (_s3("BucketOwnershipControls"),), put(("rule", "objectOwnership"), "ObjectWriter")),
    Mutation("never clean up", (_s3("BucketLifecycleConfiguration"),), gone),
    Mutation("stop replication", (_s3("BucketReplicationConfig"),), gone),
    Mutation("replicate some time", (_s3("BucketReplicationConfig"),), drop(("rules", 0, "destination", "replicationTime"))),
    Mutation("replicate unseen", (_s3("BucketReplicationConfig"),), drop(("rules", 0, "destination", "metrics"))),
    Mutation(
        "replicate deletions",
        (_s3("BucketReplicationConfig"),),
        put(("rules", 0, "deleteMarkerReplication", "status"), "Enabled"),
    ),
    Mutation("pause replication", (_s3("BucketReplicationConfig"),), put(("rules", 0, "status"), "Disabled")),
    Mutation("lock nothing", (_s3("BucketObjectLockConfiguration"),), drop(("rule",))),
    Mutation("destroy a bucket with its contents", (_s3("Bucket"),), put(("forceDestroy",), True)),
    Mutation("un-protect a bucket", (_s3("Bucket"),), unprotected),
    Mutation("drop a tag of a bucket", (_s3("Bucket"),), drop(("tags", "stack"))),
    Mutation("drop all tags of a table", ("aws:dynamodb/table:Table",), drop(("tags",))),
    Mutation("un-protect a table", ("aws:dynamodb/table:Table",), unprotected),
    Mutation("let a table be deleted", ("aws:dynamodb/table:Table",), put(("deletionProtectionEnabled",), False)),
    Mutation("no way back for a table", ("aws:dynamodb/table:Table",), put(("pointInTimeRecovery", "enabled"), False)),
    Mutation("no way back for a replica", ("aws:dynamodb/table:Table",), put(("replicas", 0, "pointInTimeRecovery"), False)),
    Mutation("leave a table plain", ("aws:dynamodb/table:Table",), put(("serverSideEncryption", "enabled"), False)),
    Mutation("keep a table in one region", ("aws:dynamodb/table:Table",), put(("replicas",), [])),
    Mutation("never rotate a key", ("aws:kms/key:Key",), put(("enableKeyRotation",), False)),
    Mutation("delete a key at once", ("aws:kms/key:Key",), put(("deletionWindowInDays",), 7)),
    Mutation("un-protect a key", ("aws:kms/key:Key", "aws:kms/replicaKey:ReplicaKey"), unprotected),
    Mutation("movable tags", ("aws:ecr/repository:Repository",), put(("imageTagMutability",), "MUTABLE")),
    Mutation("plain images", ("aws:ecr/repository:Repository",), drop(("encryptionConfigurations",))),
    Mutation("plain secret", ("aws:secretsmanager/secret:Secret",), drop(("kmsKeyId",))),
    Mutation("plain replica of a secret", ("aws:secretsmanager/secret:Secret",), drop(("replicas", 0, "kmsKeyId"))),
    Mutation("plain cache", ("aws:elasticache/replicationGroup:ReplicationGroup",), put(("atRestEncryptionEnabled",), False)),
    Mutation(
        "plain way to the cache",
        ("aws:elasticache/replicationGroup:ReplicationGroup",),
        put(("transitEncryptionEnabled",), False),
    ),
    Mutation("cache in one zone", ("aws:elasticache/replicationGroup:ReplicationGroup",), put(("multiAzEnabled",), False)),
    Mutation("allow everything", ROLE_POLICIES, statement("Action", "*"), _is_granted),
    Mutation("allow a whole service", ROLE_POLICIES, statement("Action", ["s3:*"]), _is_granted),
    Mutation(
        "write anywhere",
        ROLE_POLICIES,
        lambda found: statement("Resource", "*")(statement("Action", ["s3:PutObject"])(found)),
        _is_granted,
    ),
    Mutation(
        "pass any role",
        ROLE_POLICIES,
        lambda found: statement("Resource", "*")(statement("Action", ["iam:PassRole"])(found)),
        _is_granted,
    ),
    Mutation("unbound a role", ("aws:iam/role:Role",), drop(("permissionsBoundary",))),
    Mutation("let anybody in", ("aws:iam/role:Role",), statement("Principal", "*")),
    Mutation("let any account in", ("aws:iam/role:Role",), statement("Principal", {"AWS": "*"})),
    Mutation(
        "give administrator's rights",
        ("aws:iam/rolePolicyAttachment:RolePolicyAttachment",),
        put(("policyArn",), "arn:aws:iam::aws:policy/AdministratorAccess"),
    ),
    Mutation(
        "give all of S3",
        ("aws:iam/rolePolicyAttachment:RolePolicyAttachment",),
        put(("policyArn",), "arn:aws:iam::aws:policy/AmazonS3FullAccess"),
    ),
    Mutation(
        "open a port",
        ("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule",),
        put(("cidrIpv4",), "0.0.0.0/0"),
        lambda found: found.inputs.get("fromPort") not in (80, 443),
    ),
    Mutation(
        "open SSH",
        ("aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule",),
        lambda found: put(("fromPort",), 22)(put(("cidrIpv4",), "0.0.0.0/0")(found)),
    ),
    Mutation(
        "open the Kubernetes API",
        ("aws:eks/cluster:Cluster",),
        lambda found: put(("vpcConfig", "publicAccessCidrs"), ["0.0.0.0/0"])(
            put(("vpcConfig", "endpointPublicAccess"), True)(found)
        ),
    ),
    Mutation("nodes over the Internet", ("aws:eks/cluster:Cluster",), put(("vpcConfig", "endpointPrivateAccess"), False)),
    Mutation("plain Kubernetes secrets", ("aws:eks/cluster:Cluster",), drop(("encryptionConfig",))),
    Mutation("no audit", ("aws:eks/cluster:Cluster",), put(("enabledClusterLogTypes",), ["api"])),
    Mutation(
        "access by config map", ("aws:eks/cluster:Cluster",), put(("accessConfig", "authenticationMode"), "API_AND_CONFIG_MAP")
    ),
    Mutation(
        "hidden administrator",
        ("aws:eks/cluster:Cluster",),
        put(("accessConfig", "bootstrapClusterCreatorAdminPermissions"), True),
    ),
    Mutation("a cluster that can go", ("aws:eks/cluster:Cluster",), put(("deletionProtection",), False)),
    Mutation("extended support", ("aws:eks/cluster:Cluster",), put(("upgradePolicy", "supportType"), "EXTENDED")),
    Mutation("un-protect a cluster", ("aws:eks/cluster:Cluster",), unprotected),
    Mutation(
        "plain HTTP",
        ("aws:lb/listener:Listener",),
        put(("protocol",), "HTTP"),
        lambda found: found.inputs.get("protocol") == "HTTPS",
    ),
    Mutation(
        "old TLS",
        ("aws:lb/listener:Listener",),
        put(("sslPolicy",), "ELBSecurityPolicy-2016-08"),
        lambda found: found.inputs.get("protocol") == "HTTPS",
    ),
    Mutation("pass malformed headers", ("aws:lb/loadBalancer:LoadBalancer",), put(("dropInvalidHeaderFields",), False)),
    Mutation("keep logs for ever", ("aws:cloudwatch/logGroup:LogGroup",), drop(("retentionInDays",))),
    Mutation("IMDSv1", ("aws:ec2/launchTemplate:LaunchTemplate",), put(("metadataOptions", "httpTokens"), "optional")),
    Mutation(
        "credentials for pods", ("aws:ec2/launchTemplate:LaunchTemplate",), put(("metadataOptions", "httpPutResponseHopLimit"), 2)
    ),
    Mutation(
        "IMDSv1 on Karpenter's nodes",
        ("kubernetes:karpenter.k8s.aws/v1:EC2NodeClass",),
        put(("spec", "metadataOptions", "httpTokens"), "optional"),
    ),
    Mutation(
        "plain disks", ("aws:ec2/launchTemplate:LaunchTemplate",), put(("blockDeviceMappings", 0, "ebs", "encrypted"), "false")
    ),
    Mutation(
        "plain disks on Karpenter's nodes",
        ("kubernetes:karpenter.k8s.aws/v1:EC2NodeClass",),
        put(("spec", "blockDeviceMappings", 0, "ebs", "encrypted"), False),
    ),
    Mutation("plain volumes", ("kubernetes:storage.k8s.io/v1:StorageClass",), put(("parameters", "encrypted"), "false")),
    Mutation(
        "journals that go with their claims", ("kubernetes:storage.k8s.io/v1:StorageClass",), put(("reclaimPolicy",), "Delete")
    ),
    Mutation(
        "floating image of nodes",
        ("kubernetes:karpenter.k8s.aws/v1:EC2NodeClass",),
        put(("spec", "amiSelectorTerms"), [{"alias": "al2023@latest"}]),
    ),
    Mutation("floating release of nodes", ("aws:eks/nodeGroup:NodeGroup",), drop(("releaseVersion",))),
    Mutation(
        "NVMe left alone",
        ("kubernetes:karpenter.k8s.aws/v1:EC2NodeClass",),
        drop(("spec", "instanceStorePolicy")),
        lambda found: found.inputs["spec"].get("instanceStorePolicy") == "RAID0",
    ),
    Mutation("pool without limit", ("kubernetes:karpenter.sh/v1:NodePool",), drop(("spec", "limits"))),
    Mutation("mixed pool", ("kubernetes:karpenter.sh/v1:NodePool",), _spec_requirements, _is_spot_pool),
    Mutation(
        "spot for anybody",
        ("kubernetes:karpenter.sh/v1:NodePool",),
        put(("spec", "template", "spec", "taints"), []),
        _is_spot_pool,
    ),
    Mutation(
        "consolidate GPU nodes",
        ("kubernetes:karpenter.sh/v1:NodePool",),
        put(("spec", "disruption", "consolidationPolicy"), "WhenEmptyOrUnderutilized"),
        _is_gpu_pool,
    ),
    Mutation(
        "replace GPU nodes each month",
        ("kubernetes:karpenter.sh/v1:NodePool",),
        put(("spec", "template", "spec", "expireAfter"), "720h"),
        _is_gpu_pool,
    ),
    Mutation("image by tag", WORKLOADS, put((*CONTAINER, "image"), "registry.example/flotilla:latest")),
    Mutation("run as root", WORKLOADS, put((*POD, "securityContext", "runAsNonRoot"), False)),
    Mutation("any system call", WORKLOADS, drop((*POD, "securityContext", "seccompProfile"))),
    Mutation("privileged", WORKLOADS, put((*CONTAINER, "securityContext", "privileged"), True)),
    Mutation("gain rights", WORKLOADS, put((*CONTAINER, "securityContext", "allowPrivilegeEscalation"), True)),
    Mutation("keep capabilities", WORKLOADS, drop((*CONTAINER, "securityContext", "capabilities"))),
    Mutation("writable root", WORKLOADS, put((*CONTAINER, "securityContext", "readOnlyRootFilesystem"), False)),
    Mutation("host network", WORKLOADS, put((*POD, "hostNetwork"), True)),
    Mutation("host folder", WORKLOADS, put((*POD, "volumes", 0), {"name": "root", "hostPath": {"path": "/"}})),
    Mutation("token of the API", WORKLOADS, put((*POD, "automountServiceAccountToken"), True)),
    Mutation("no readiness", WORKLOADS, drop((*CONTAINER, "readinessProbe"))),
    Mutation("no liveness", WORKLOADS, drop((*CONTAINER, "livenessProbe"))),
    Mutation("no limit of memory", WORKLOADS, drop((*CONTAINER, "resources", "limits"))),
    Mutation("no budget", ("kubernetes:policy/v1:PodDisruptionBudget",), gone),
    Mutation("a budget that blocks", ("kubernetes:policy/v1:PodDisruptionBudget",), put(("spec", "maxUnavailable"), 0)),
    Mutation("base on spot", WORKLOADS, _on_spot, _is_base),
    Mutation("no grace", WORKLOADS, drop((*POD, "terminationGracePeriodSeconds"))),
    Mutation(
        "grace shorter than preStop",
        WORKLOADS,
        put((*POD, "terminationGracePeriodSeconds"), 1),
        lambda found: "preStop" in str(found.inputs),
    ),
    Mutation(
        "no Pod Security", ("kubernetes:core/v1:Namespace",), drop(("metadata", "labels", "pod-security.kubernetes.io/enforce"))
    ),
    Mutation(
        "loosen our own namespace",
        ("kubernetes:core/v1:Namespace",),
        put(("metadata", "labels", "pod-security.kubernetes.io/enforce"), "privileged"),
        lambda found: found.inputs["metadata"]["name"] == "serving",
    ),
    Mutation(
        "serve over plain HTTP",
        ("aws:lb/listener:Listener",),
        put(("defaultActions",), [{"type": "forward", "targetGroupArn": "arn"}]),
        lambda found: found.inputs.get("protocol") == "HTTP",
    ),
    Mutation(
        "open by default",
        ("kubernetes:networking.k8s.io/v1:NetworkPolicy",),
        gone,
        lambda found: not found.inputs["spec"].get("ingress") and not found.inputs["spec"].get("egress"),
    ),
    Mutation(
        "reach the metadata service",
        ("kubernetes:networking.k8s.io/v1:NetworkPolicy",),
        lambda found: put(("spec", "egress"), [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}])(found),
    ),
    Mutation(
        "let everybody in by policy",
        ("kubernetes:networking.k8s.io/v1:NetworkPolicy",),
        lambda found: put(("spec", "ingress"), [{"ports": [{"port": 8000}]}])(found),
    ),
    Mutation(
        "silence is no load",
        ("kubernetes:keda.sh/v1alpha1:ScaledObject",),
        put(("spec", "triggers", 0, "metadata", "ignoreNullValues"), "true"),
    ),
    Mutation("no fallback", ("kubernetes:keda.sh/v1alpha1:ScaledObject",), drop(("spec", "fallback"))),
    Mutation("any provider", (_s3("Bucket"), "aws:eks/cluster:Cluster", *WORKLOADS), unprovided),
    Mutation("any account", ("pulumi:providers:aws",), drop(("allowedAccountIds",))),
    Mutation("another region", ("pulumi:providers:aws",), put(("region",), "eu-west-1")),
    Mutation("unlabelled object", WORKLOADS, drop(("metadata", "labels"))),
    Mutation("a key in plain text", ("kubernetes:core/v1:ConfigMap",), put(("data", "key"), "AKIA" + "Q" * 16)),
    Mutation(
        "slow health check",
        ("aws:route53/healthCheck:HealthCheck",),
        put(("requestInterval",), 30),
        lambda found: found.inputs["type"] != "CALCULATED",
    ),
    Mutation("let everybody read a bucket", (_s3("BucketPolicy"),), _opened),
    Mutation("let everybody use a key", ("aws:kms/key:Key",), _opened),
    Mutation("no scans", ("aws:ecr/registryScanningConfiguration:RegistryScanningConfiguration",), gone),
    Mutation(
        "two zones",
        ("aws:ec2/subnet:Subnet",),
        lambda found: put(("availabilityZone",), f"{found.inputs['availabilityZone'][:-1]}a")(found),
    ),
    Mutation(
        "inline rule for everybody",
        ("aws:ec2/securityGroup:SecurityGroup",),
        put(("ingress",), [{"fromPort": 0, "toPort": 65535, "protocol": "tcp", "cidrBlocks": ["0.0.0.0/0"]}]),
    ),
    Mutation("a load balancer that can go", ("aws:lb/loadBalancer:LoadBalancer",), put(("enableDeletionProtection",), False)),
    Mutation(
        "a floor on luck",
        ("aws:ec2/launchTemplate:LaunchTemplate",),
        drop(("capacityReservationSpecification",)),
        lambda found: "capacityReservationSpecification" in found.inputs,
    ),
    Mutation(
        "a reserved pool that shrinks",
        ("aws:eks/nodeGroup:NodeGroup",),
        put(("scalingConfig", "minSize"), 0),
        lambda found: any(str(name).startswith("p4") for name in found.inputs.get("instanceTypes", ())),
    ),
    Mutation(
        "two who decide the size", WORKLOADS, put(("spec", "replicas"), 3), lambda found: "replicas" not in found.inputs["spec"]
    ),
    Mutation(
        "any administrator",
        ("aws:eks/accessPolicyAssociation:AccessPolicyAssociation",),
        put(("principalArn",), "*"),
        lambda found: "ClusterAdmin" in str(found.inputs.get("policyArn")),
    ),
)
