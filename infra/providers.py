"""Explicit providers, one a region. Every stack file disables default ones: they follow the shell's region and account."""

from __future__ import annotations

import pulumi
import pulumi_aws as aws
import pulumi_kubernetes as kubernetes


def aws_provider(name: str, region: str, account_id: str) -> aws.Provider:
    """A provider for `region` that refuses every account but `account_id`."""
    return aws.Provider(name, region=region, allowed_account_ids=[account_id])


def kubernetes_provider(name: str, kubeconfig: pulumi.Input[str]) -> kubernetes.Provider:
    """A provider for one cluster.

    It never gives up on objects of a cluster it cannot reach: forgetting them would delete nothing and lose everything.
    """
    return kubernetes.Provider(name, kubeconfig=kubeconfig, delete_unreachable=False, enable_server_side_apply=True)
