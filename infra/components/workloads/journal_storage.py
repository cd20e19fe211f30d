"""Where journals lie: encrypted volumes that outlive claim, set and stack, made in the zone of the pod that first needs one."""

from __future__ import annotations

import pulumi
from pulumi_kubernetes.storage import v1 as storage

from infra.components.component import Component
from infra.components.workloads import pods
from infra.naming import JOURNAL_STORAGE, StackName


class JournalStorage(Component):
    """The StorageClass of the gateways' journals. A volume holds usage that nobody else has, so it is never deleted for us."""

    def __init__(
        self, name: str, kms_key_arn: pulumi.Input[str], stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("workloads:JournalStorage", name, stack, opts)
        storage.StorageClass(
            JOURNAL_STORAGE,
            metadata={"name": JOURNAL_STORAGE, "labels": pods.labels(stack, name, JOURNAL_STORAGE)},
            provisioner="ebs.csi.aws.com",
            parameters={"type": "gp3", "encrypted": "true", "kmsKeyId": kms_key_arn},
            reclaim_policy="Retain",
            volume_binding_mode="WaitForFirstConsumer",
            allow_volume_expansion=True,
            opts=self.child(),
        )
        self.register_outputs({})
