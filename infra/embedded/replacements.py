"""Which changes of a property make a provider replace a resource rather than update it, by resource type.

The engine asks the provider; we have none, so this is a table. An empty row says that no change of an own property replaces the
resource, which is not the same as a type that is missing here: a test compares the rows with what the stacks declare.

A path names the property as the program's graph does, and counts for all that lies below it. It leads through lists: what follows
a list's name is that of every item. One that ends in `[]` is a set: the order of its items does not count.

Three tables, since three parties decide:

- `GROUPS`: what the provider replaces.
- `KEEPS`: cases in which it keeps the resource although such a property changed.
- `IMMUTABLE`: what it would update in place and the API server refuses. Such a change fails half-way through an `up`; the remedy
  is `replace_on_changes`, or a new name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from infra.embedded.property_paths import ABSENT

AWS = "aws:"
KUBERNETES = "kubernetes:"
CHART = "kubernetes:helm.sh/v4:Chart"
SET = "[]"


@dataclass(frozen=True)
class Group:
    """Rows that were read in one place."""

    source: str
    """Where, and on which day."""
    rows: Mapping[str, tuple[str, ...]]
    """Property paths by type; none means that no change of a property replaces it."""


@dataclass(frozen=True)
class Sides:
    """A resource before and after, and the provider that will have it: plain values, secrets hidden."""

    before: Mapping[str, Any]
    after: Mapping[str, Any]
    provider: Mapping[str, Any]


_TERRAFORM = "https://registry.terraform.io/providers/hashicorp/aws/latest/docs/resources"
_ASKED = "and PlanResourceChange of provider 5.100.0, asked for each property alone; 2026-11-23"


def _terraform(*pages: str) -> str:
    """Pulumi's AWS classes are those of the Terraform provider, whose pages mark these properties "Forces new resource"."""
    return f"{_TERRAFORM}/{{{','.join(pages)}}}, {_ASKED}"


GROUPS = (
    Group(
        _terraform("vpc", "subnet", "route_table", "route", "internet_gateway", "nat_gateway", "eip", "flow_log", "ec2_tag"),
        {
            "aws:ec2/vpc:Vpc": ("cidrBlock", "instanceTenancy", "ipv4IpamPoolId", "ipv4NetmaskLength"),
            "aws:ec2/subnet:Subnet": (
                "availabilityZone",
                "availabilityZoneId",
                "cidrBlock",
                "ipv6Native",
                "outpostArn",
                "vpcId",
            ),
            "aws:ec2/routeTable:RouteTable": ("vpcId",),
            "aws:ec2/route:Route": (
                "destinationCidrBlock",
                "destinationIpv6CidrBlock",
                "destinationPrefixListId",
                "routeTableId",
            ),
            "aws:ec2/routeTableAssociation:RouteTableAssociation": ("gatewayId", "subnetId"),
            "aws:ec2/internetGateway:InternetGateway": (),
            "aws:ec2/natGateway:NatGateway": ("allocationId", "connectivityType", "privateIp", "subnetId"),
            "aws:ec2/eip:Eip": ("address", "domain", "ipamPoolId", "networkBorderGroup", "publicIpv4Pool"),
            "aws:ec2/defaultNetworkAcl:DefaultNetworkAcl": ("defaultNetworkAclId",),
            "aws:ec2/defaultRouteTable:DefaultRouteTable": ("defaultRouteTableId",),
            "aws:ec2/flowLog:FlowLog": (
                "deliverCrossAccountRole",
                "destinationOptions",
                "eniId",
                "iamRoleArn",
                "logDestination",
                "logDestinationType",
                "logFormat",
                "maxAggregationInterval",
                "subnetId",
                "trafficType",
                "transitGatewayAttachmentId",
                "transitGatewayId",
                "vpcId",
            ),
            "aws:ec2/tag:Tag": ("key", "resourceId"),
        },
    ),
    Group(
        _terraform("security_group", "security_group_rule", "vpc_security_group_ingress_rule", "vpc_endpoint"),
        {
            "aws:ec2/securityGroup:SecurityGroup": ("description", "name", "namePrefix", "vpcId"),
            "aws:ec2/defaultSecurityGroup:DefaultSecurityGroup": ("vpcId",),
            "aws:ec2/securityGroupRule:SecurityGroupRule": (
                "cidrBlocks",
                "fromPort",
                "ipv6CidrBlocks",
                "prefixListIds",
                "protocol",
                "securityGroupId",
                "self",
                "sourceSecurityGroupId",
                "toPort",
                "type",
            ),
            "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": ("securityGroupId",),
            "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": ("securityGroupId",),
            "aws:ec2/vpcEndpoint:VpcEndpoint": (
                "resourceConfigurationArn",
                "serviceName",
                "serviceNetworkArn",
                "serviceRegion",
                "vpcEndpointType",
                "vpcId",
            ),
        },
    ),
    Group(
        _terraform("launch_template", "placement_group", "ec2_capacity_reservation"),
        {
            "aws:ec2/launchTemplate:LaunchTemplate": ("name", "namePrefix"),
            "aws:ec2/placementGroup:PlacementGroup": ("name", "partitionCount", "spreadLevel", "strategy"),
            "aws:ec2/capacityReservation:CapacityReservation": (
                "availabilityZone",
                "ebsOptimized",
                "ephemeralStorage",
                "instanceMatchCriteria",
                "instancePlatform",
                "instanceType",
                "tenancy",
            ),
        },
    ),
    Group(
        _terraform("eks_cluster", "eks_node_group", "eks_addon", "eks_access_entry", "eks_pod_identity_association"),
        {
            "aws:eks/cluster:Cluster": (
                "accessConfig.bootstrapClusterCreatorAdminPermissions",
                "bootstrapSelfManagedAddons",
                "computeConfig.nodeRoleArn",
                "encryptionConfig",
                "kubernetesNetworkConfig.ipFamily",
                "kubernetesNetworkConfig.serviceIpv4Cidr",
                "name",
                "outpostConfig.controlPlaneInstanceType",
                "outpostConfig.controlPlanePlacement",
                "remoteNetworkConfig.remoteNodeNetworks.cidrs[]",
                "remoteNetworkConfig.remotePodNetworks.cidrs[]",
                "roleArn",
            ),
            "aws:eks/nodeGroup:NodeGroup": (
                "amiType",
                "capacityType",
                "clusterName",
                "diskSize",
                "instanceTypes",
                "launchTemplate.id",
                "launchTemplate.name",
                "nodeGroupName",
                "nodeGroupNamePrefix",
                "nodeRoleArn",
                "remoteAccess",
                "subnetIds[]",
            ),
            "aws:eks/addon:Addon": ("addonName", "clusterName"),
            "aws:eks/accessEntry:AccessEntry": ("clusterName", "principalArn", "type"),
            "aws:eks/accessPolicyAssociation:AccessPolicyAssociation": (
                "accessScope.namespaces[]",
                "accessScope.type",
                "clusterName",
                "policyArn",
                "principalArn",
            ),
            "aws:eks/podIdentityAssociation:PodIdentityAssociation": ("clusterName", "namespace", "serviceAccount"),
        },
    ),
    Group(
        _terraform("iam_role", "iam_role_policy", "iam_policy", "iam_instance_profile", "iam_openid_connect_provider"),
        {
            "aws:iam/role:Role": ("name", "namePrefix", "path"),
            "aws:iam/rolePolicy:RolePolicy": ("name", "namePrefix", "role"),
            "aws:iam/rolePolicyAttachment:RolePolicyAttachment": ("policyArn", "role"),
            "aws:iam/policy:Policy": ("description", "name", "namePrefix", "path"),
            "aws:iam/instanceProfile:InstanceProfile": ("name", "namePrefix", "path"),
            "aws:iam/openIdConnectProvider:OpenIdConnectProvider": ("url",),
            "aws:iam/serviceLinkedRole:ServiceLinkedRole": ("awsServiceName", "customSuffix"),
        },
    ),
    Group(
        _terraform("kms_key", "kms_alias", "kms_replica_key", "secretsmanager_secret", "secretsmanager_secret_version"),
        {
            "aws:kms/key:Key": ("customKeyStoreId", "customerMasterKeySpec", "keyUsage", "multiRegion", "xksKeyId"),
            "aws:kms/alias:Alias": ("name", "namePrefix"),
            "aws:kms/replicaKey:ReplicaKey": ("primaryKeyArn",),
            "aws:kms/keyPolicy:KeyPolicy": (),
            "aws:secretsmanager/secret:Secret": ("name", "namePrefix"),
            "aws:secretsmanager/secretVersion:SecretVersion": (
                "secretBinary",
                "secretId",
                "secretString",
                "secretStringWoVersion",
            ),
            "aws:secretsmanager/secretPolicy:SecretPolicy": ("secretArn",),
        },
    ),
    Group(
        _terraform("s3_bucket", "s3_bucket_replication_configuration", "s3_bucket_object_lock_configuration"),
        {
            "aws:s3/bucket:Bucket": (
                "bucket",
                "bucketPrefix",
                "objectLockConfiguration.objectLockEnabled",
                "objectLockEnabled",
            ),
            "aws:s3/bucketAcl:BucketAcl": ("bucket", "expectedBucketOwner"),
            "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration": ("bucket", "expectedBucketOwner"),
            "aws:s3/bucketLogging:BucketLogging": ("bucket", "expectedBucketOwner"),
            "aws:s3/bucketMetric:BucketMetric": ("bucket", "name"),
            "aws:s3/bucketNotification:BucketNotification": ("bucket",),
            "aws:s3/bucketObjectLockConfiguration:BucketObjectLockConfiguration": (
                "bucket",
                "expectedBucketOwner",
                "objectLockEnabled",
            ),
            "aws:s3/bucketOwnershipControls:BucketOwnershipControls": ("bucket",),
            "aws:s3/bucketPolicy:BucketPolicy": ("bucket",),
            "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": ("bucket",),
            "aws:s3/bucketReplicationConfig:BucketReplicationConfig": ("bucket",),
            "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": (
                "bucket",
                "expectedBucketOwner",
            ),
            "aws:s3/bucketVersioning:BucketVersioning": ("bucket", "expectedBucketOwner"),
        },
    ),
    Group(
        _terraform("ecr_repository", "ecr_replication_configuration", "ecr_repository_creation_template"),
        {
            "aws:ecr/repository:Repository": ("encryptionConfigurations", "name"),
            "aws:ecr/lifecyclePolicy:LifecyclePolicy": ("policy", "repository"),
            "aws:ecr/pullThroughCacheRule:PullThroughCacheRule": (
                "ecrRepositoryPrefix",
                "upstreamRegistryUrl",
                "upstreamRepositoryPrefix",
            ),
            "aws:ecr/registryPolicy:RegistryPolicy": (),
            "aws:ecr/registryScanningConfiguration:RegistryScanningConfiguration": (),
            "aws:ecr/replicationConfiguration:ReplicationConfiguration": (),
            "aws:ecr/repositoryCreationTemplate:RepositoryCreationTemplate": ("prefix",),
            "aws:ecr/repositoryPolicy:RepositoryPolicy": ("repository",),
        },
    ),
    Group(
        _terraform("dynamodb_table", "dynamodb_table_replica", "dynamodb_resource_policy"),
        {
            "aws:dynamodb/table:Table": (
                "hashKey",
                "importTable",
                "localSecondaryIndexes[]",
                "name",
                "rangeKey",
                "restoreDateTime",
                "restoreSourceName",
                "restoreSourceTableArn",
                "restoreToLatestTime",
            ),
            "aws:dynamodb/tableReplica:TableReplica": ("globalTableArn", "kmsKeyArn", "tableClassOverride"),
            "aws:dynamodb/resourcePolicy:ResourcePolicy": ("resourceArn",),
        },
    ),
    Group(
        _terraform("elasticache_replication_group", "elasticache_subnet_group", "elasticache_user", "elasticache_user_group"),
        {
            "aws:elasticache/replicationGroup:ReplicationGroup": (
                "atRestEncryptionEnabled",
                "dataTieringEnabled",
                "engine",
                "engineVersion",
                "globalReplicationGroupId",
                "kmsKeyId",
                "networkType",
                "port",
                "replicationGroupId",
                "securityGroupNames[]",
                "snapshotArns[]",
                "snapshotName",
                "subnetGroupName",
                "transitEncryptionEnabled",
            ),
            "aws:elasticache/parameterGroup:ParameterGroup": ("description", "family", "name"),
            "aws:elasticache/subnetGroup:SubnetGroup": ("name",),
            "aws:elasticache/user:User": ("userId", "userName"),
            "aws:elasticache/userGroup:UserGroup": ("userGroupId",),
        },
    ),
    Group(
        _terraform("budgets_budget", "budgets_budget_action", "ce_anomaly_monitor", "ce_anomaly_subscription"),
        {
            "aws:budgets/budget:Budget": ("accountId", "name", "namePrefix"),
            "aws:budgets/budgetAction:BudgetAction": ("accountId", "actionType", "budgetName"),
            "aws:costexplorer/anomalyMonitor:AnomalyMonitor": ("monitorDimension", "monitorSpecification", "monitorType"),
            "aws:costexplorer/anomalySubscription:AnomalySubscription": ("accountId", "name"),
        },
    ),
    Group(
        _terraform("sqs_queue", "sqs_queue_policy", "sns_topic", "sns_topic_subscription", "cloudwatch_event_rule"),
        {
            "aws:sqs/queue:Queue": ("fifoQueue", "name", "namePrefix"),
            "aws:sqs/queuePolicy:QueuePolicy": ("queueUrl",),
            "aws:sqs/redrivePolicy:RedrivePolicy": ("queueUrl",),
            "aws:sns/topic:Topic": ("fifoTopic", "name", "namePrefix"),
            "aws:sns/topicPolicy:TopicPolicy": ("arn",),
            "aws:sns/topicSubscription:TopicSubscription": ("endpoint", "protocol", "topic"),
            "aws:cloudwatch/eventRule:EventRule": ("eventBusName", "name", "namePrefix"),
            "aws:cloudwatch/eventTarget:EventTarget": ("eventBusName", "rule", "targetId"),
        },
    ),
    Group(
        _terraform("cloudwatch_log_group", "cloudwatch_metric_alarm", "prometheus_workspace", "ssm_parameter"),
        {
            "aws:cloudwatch/compositeAlarm:CompositeAlarm": ("actionsEnabled", "alarmName"),
            "aws:cloudwatch/logGroup:LogGroup": ("logGroupClass", "name", "namePrefix"),
            "aws:cloudwatch/logResourcePolicy:LogResourcePolicy": ("policyName",),
            "aws:cloudwatch/metricAlarm:MetricAlarm": ("name",),
            "aws:amp/workspace:Workspace": ("kmsKeyArn",),
            "aws:ssm/parameter:Parameter": ("dataType", "name"),
        },
    ),
    Group(
        # A network load balancer is replaced too when a subnet or its last security group goes; ours are application ones.
        _terraform("lb", "lb_target_group", "lb_listener", "lb_listener_rule", "lb_listener_certificate"),
        {
            "aws:lb/loadBalancer:LoadBalancer": (
                "customerOwnedIpv4Pool",
                "internal",
                "loadBalancerType",
                "name",
                "namePrefix",
            ),
            "aws:lb/listener:Listener": ("loadBalancerArn",),
            "aws:lb/listenerCertificate:ListenerCertificate": ("certificateArn", "listenerArn"),
            "aws:lb/listenerRule:ListenerRule": ("listenerArn",),
            "aws:lb/targetGroup:TargetGroup": (
                "ipAddressType",
                "name",
                "namePrefix",
                "port",
                "protocol",
                "protocolVersion",
                "targetType",
                "vpcId",
            ),
            "aws:lb/targetGroupAttachment:TargetGroupAttachment": ("availabilityZone", "port", "targetGroupArn", "targetId"),
        },
    ),
    Group(
        _terraform("acm_certificate", "acm_certificate_validation", "wafv2_web_acl", "wafv2_web_acl_association"),
        {
            "aws:acm/certificate:Certificate": (
                "certificateAuthorityArn",
                "domainName",
                "keyAlgorithm",
                "subjectAlternativeNames[]",
                "validationMethod",
                "validationOptions[]",
            ),
            "aws:acm/certificateValidation:CertificateValidation": ("certificateArn", "validationRecordFqdns[]"),
            "aws:wafv2/ipSet:IpSet": ("ipAddressVersion", "name", "namePrefix", "scope"),
            "aws:wafv2/regexPatternSet:RegexPatternSet": ("name", "namePrefix", "scope"),
            "aws:wafv2/ruleGroup:RuleGroup": ("capacity", "name", "namePrefix", "scope"),
            "aws:wafv2/webAcl:WebAcl": ("name", "namePrefix", "scope"),
            "aws:wafv2/webAclAssociation:WebAclAssociation": ("resourceArn", "webAclArn"),
            "aws:wafv2/webAclLoggingConfiguration:WebAclLoggingConfiguration": ("logDestinationConfigs[]", "resourceArn"),
        },
    ),
    Group(
        _terraform("route53_zone", "route53_record", "route53_health_check", "cloudfront_distribution"),
        {
            "aws:route53/healthCheck:HealthCheck": (
                "measureLatency",
                "referenceName",
                "requestInterval",
                "routingControlArn",
                "type",
            ),
            "aws:route53/record:Record": ("name", "zoneId"),
            "aws:route53/zone:Zone": ("delegationSetId", "name"),
            "aws:cloudfront/cachePolicy:CachePolicy": (),
            "aws:cloudfront/distribution:Distribution": ("staging",),
            "aws:cloudfront/originAccessControl:OriginAccessControl": (),
            "aws:cloudfront/originRequestPolicy:OriginRequestPolicy": (),
            "aws:cloudfront/responseHeadersPolicy:ResponseHeadersPolicy": (),
            "aws:globalaccelerator/accelerator:Accelerator": ("ipAddresses",),
            "aws:globalaccelerator/endpointGroup:EndpointGroup": ("endpointGroupRegion", "listenerArn"),
            "aws:globalaccelerator/listener:Listener": ("acceleratorArn",),
        },
    ),
    Group(
        # The provider of 5.100.0 has no such resource; this one's update leaves these four out.
        "https://github.com/hashicorp/terraform-provider-aws/blob/main/internal/service/arcregionswitch/plan.go, 2026-11-23",
        {"aws:arcregionswitch/plan:Plan": ("name", "primaryRegion", "recoveryApproach", "regions")},
    ),
    Group(
        # Since version 7 another region replaces each regional resource, not the provider: see `region_of`.
        "https://github.com/pulumi/pulumi-aws/pull/5656 and the docstrings of pulumi_kubernetes.Provider 4.34, 2026-11-23",
        {
            "pulumi:providers:aws": (),
            "pulumi:providers:kubernetes": ("cluster", "clusterIdentifier", "context", "kubeconfig"),
        },
    ),
    Group(
        # `metadata.name` and `metadata.namespace` count for every kind, custom resources too: `_METADATA`.
        "https://github.com/pulumi/pulumi-kubernetes/blob/master/provider/pkg/provider/diff.go, 2026-11-23",
        {
            "kubernetes:apps/v1:DaemonSet": ("spec.selector",),
            "kubernetes:apps/v1:Deployment": ("spec.selector",),
            "kubernetes:apps/v1:StatefulSet": (
                "spec.podManagementPolicy",
                "spec.revisionHistoryLimit",
                "spec.selector",
                "spec.serviceName",
                "spec.volumeClaimTemplates",
            ),
            "kubernetes:autoscaling/v2:HorizontalPodAutoscaler": (),
            "kubernetes:batch/v1:CronJob": (),
            "kubernetes:batch/v1:Job": ("spec.completions", "spec.parallelism", "spec.selector", "spec.template"),
            "kubernetes:core/v1:ConfigMap": ("binaryData", "data"),
            "kubernetes:core/v1:LimitRange": (),
            "kubernetes:core/v1:Namespace": (),
            "kubernetes:core/v1:PersistentVolumeClaim": (
                "spec.accessModes",
                "spec.selector",
                "spec.storageClassName",
                "spec.volumeName",
            ),
            "kubernetes:core/v1:ResourceQuota": ("spec.scopes",),
            "kubernetes:core/v1:Secret": ("data", "stringData", "type"),
            "kubernetes:core/v1:Service": ("spec.clusterIP",),
            "kubernetes:core/v1:ServiceAccount": (),
            "kubernetes:networking.k8s.io/v1:Ingress": (),
            "kubernetes:networking.k8s.io/v1:IngressClass": (),
            "kubernetes:networking.k8s.io/v1:NetworkPolicy": (),
            "kubernetes:node.k8s.io/v1:RuntimeClass": (),
            "kubernetes:policy/v1:PodDisruptionBudget": (),
            "kubernetes:rbac.authorization.k8s.io/v1:ClusterRole": (),
            "kubernetes:rbac.authorization.k8s.io/v1:ClusterRoleBinding": ("roleRef",),
            "kubernetes:rbac.authorization.k8s.io/v1:Role": (),
            "kubernetes:rbac.authorization.k8s.io/v1:RoleBinding": ("roleRef",),
            "kubernetes:scheduling.k8s.io/v1:PriorityClass": (),
            "kubernetes:storage.k8s.io/v1:StorageClass": ("parameters", "provisioner"),
            "kubernetes:storage.k8s.io/v1:VolumeAttributesClass": (),
            # Custom resources: the provider knows none of their fields.
            "kubernetes:elbv2.k8s.aws/v1beta1:IngressClassParams": (),
            "kubernetes:elbv2.k8s.aws/v1beta1:TargetGroupBinding": (),
            "kubernetes:karpenter.k8s.aws/v1:EC2NodeClass": (),
            "kubernetes:karpenter.sh/v1:NodePool": (),
            "kubernetes:keda.sh/v1alpha1:ScaledObject": (),
            "kubernetes:keda.sh/v1alpha1:TriggerAuthentication": (),
            "kubernetes:keda.sh/v1alpha1:ClusterTriggerAuthentication": (),
            "kubernetes:monitoring.coreos.com/v1:PodMonitor": (),
            "kubernetes:monitoring.coreos.com/v1:PrometheusRule": (),
            "kubernetes:monitoring.coreos.com/v1:ServiceMonitor": (),
            # A component: its objects are rendered by the engine, and each has a verdict of its own there.
            CHART: (),
        },
    ),
)

TABLE: Mapping[str, tuple[str, ...]] = {name: paths for group in GROUPS for name, paths in group.rows.items()}
_METADATA = ("metadata.name", "metadata.namespace")

IMMUTABLE: Mapping[str, tuple[str, ...]] = {
    # kubernetes/pkg/apis/{scheduling,storage,core,node}/validation, "…Update", v1.37
    "kubernetes:core/v1:PersistentVolumeClaim": ("spec.dataSource", "spec.volumeMode"),
    "kubernetes:node.k8s.io/v1:RuntimeClass": ("handler",),
    "kubernetes:scheduling.k8s.io/v1:PriorityClass": ("preemptionPolicy", "value"),
    "kubernetes:storage.k8s.io/v1:StorageClass": ("reclaimPolicy", "volumeBindingMode"),
    # Rules in the custom resource definition of Karpenter 1.14.1.
    "kubernetes:karpenter.sh/v1:NodePool": ("spec.template.spec.nodeClassRef.group", "spec.template.spec.nodeClassRef.kind"),
    # The controller's webhook, aws-load-balancer-controller/webhooks/elbv2/targetgroupbinding_validator.go
    "kubernetes:elbv2.k8s.aws/v1beta1:TargetGroupBinding": ("spec.targetGroupARN", "spec.targetType"),
}


def is_known(resource_type: str) -> bool:
    """Whether the table has a row for a type."""
    return resource_type in TABLE


def forced_by(resource_type: str, sides: Sides) -> tuple[str, ...]:
    """The changed properties for which the provider replaces the resource; none, if it would update it in place."""
    paths = TABLE.get(resource_type, ())
    if resource_type.startswith(KUBERNETES) and resource_type != CHART:
        paths = (*paths, *_METADATA)
    changed = _changed(paths, sides)
    return tuple(path for path in changed if not KEEPS.get((resource_type, path), _never)(sides))


def refused_by(resource_type: str, sides: Sides) -> tuple[str, ...]:
    """The changed properties that the API server refuses to change in place."""
    return tuple(_changed(IMMUTABLE.get(resource_type, ()), sides))


def region_of(inputs: Mapping[str, Any], provider: Mapping[str, Any]) -> str:
    """The region of an AWS resource; empty if it is not known."""
    return str(inputs.get("region") or provider.get("region") or "")


def _changed(paths: tuple[str, ...], sides: Sides) -> Iterator[str]:
    for path in paths:
        name = path.removesuffix(SET)
        before, after = (list(_values(inputs, name.split("."))) for inputs in (sides.before, sides.after))
        if path.endswith(SET):
            before, after = (sorted(_members(values), key=_as_text) for values in (before, after))
        if _as_text(before) != _as_text(after):
            yield name


def _values(value: Any, names: list[str]) -> Iterator[Any]:
    """What lies at `names`, that of each item where a list is on the way; nothing where it is not there."""
    if isinstance(value, list) and names:
        for item in value:
            yield from _values(item, names)
    elif not names:
        yield value
    elif isinstance(value, Mapping) and value.get(names[0], ABSENT) is not ABSENT:
        yield from _values(value[names[0]], names[1:])


def _members(values: list[Any]) -> list[Any]:
    return [member for value in values for member in (value if isinstance(value, list) else [value])]


def _as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _never(_: Sides) -> bool:
    return False


def _is_mutable_config_map(sides: Sides) -> bool:
    return _is_true(sides.provider.get("enableConfigMapMutable")) and not sides.before.get("immutable")


def _is_mutable_secret(sides: Sides) -> bool:
    return _is_true(sides.provider.get("enableSecretMutable")) and not sides.before.get("immutable")


def _is_true(value: Any) -> bool:
    """Providers get their flags as text."""
    return value in (True, "true")


def _has_cluster_identifier(sides: Sides) -> bool:
    """With an identifier of its own the provider is replaced for another identifier and nothing else."""
    return bool(sides.before.get("clusterIdentifier")) and bool(sides.after.get("clusterIdentifier"))


def _is_same_cluster(sides: Sides) -> bool:
    """Whether two kubeconfigs reach one cluster: other users or other names of contexts do not matter."""
    return _has_cluster_identifier(sides) or _clusters(sides.before) == _clusters(sides.after)


def _clusters(provider: Mapping[str, Any]) -> Any:
    text = provider.get("kubeconfig")
    try:
        return [item["cluster"] for item in json.loads(str(text))["clusters"]]
    except (ValueError, KeyError, TypeError):
        return text


def _is_valkey_from_redis(sides: Sides) -> bool:
    return (sides.before.get("engine"), sides.after.get("engine")) == ("redis", "valkey")


def _is_newer_engine(sides: Sides) -> bool:
    """An older version replaces the group; the version goes back when redis becomes valkey, and that does not."""
    return _is_valkey_from_redis(sides) or _version(sides.after) >= _version(sides.before)


def _takes_tls_in_place(sides: Sides) -> bool:
    """Since engine version 7.0.5 encryption in transit goes on and off in place."""
    return _version(sides.before) >= (7, 0, 5) or sides.before.get("engine") == "valkey"


def _version(inputs: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", str(inputs.get("engineVersion", ""))))


KEEPS: Mapping[tuple[str, str], Callable[[Sides], bool]] = {
    ("aws:ec2/vpc:Vpc", "instanceTenancy"): lambda sides: sides.after.get("instanceTenancy", "default") == "default",
    # Only taking it away replaces the cluster; a first key and another key are set in place.
    ("aws:eks/cluster:Cluster", "encryptionConfig"): lambda sides: bool(sides.after.get("encryptionConfig")),
    ("aws:elasticache/replicationGroup:ReplicationGroup", "engine"): _is_valkey_from_redis,
    ("aws:elasticache/replicationGroup:ReplicationGroup", "engineVersion"): _is_newer_engine,
    ("aws:elasticache/replicationGroup:ReplicationGroup", "transitEncryptionEnabled"): _takes_tls_in_place,
    ("kubernetes:core/v1:ConfigMap", "binaryData"): _is_mutable_config_map,
    ("kubernetes:core/v1:ConfigMap", "data"): _is_mutable_config_map,
    ("kubernetes:core/v1:Secret", "data"): _is_mutable_secret,
    ("kubernetes:core/v1:Secret", "stringData"): _is_mutable_secret,
    ("pulumi:providers:kubernetes", "cluster"): _has_cluster_identifier,
    ("pulumi:providers:kubernetes", "context"): _has_cluster_identifier,
    ("pulumi:providers:kubernetes", "kubeconfig"): _is_same_cluster,
}
