"""Every object of every stack is taken by a real API server: its fields by their schema, custom resources by their rules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from kube import RefusedError
from regions import Region

pytestmark = pytest.mark.cluster
KUBERNETES, CHART = "kubernetes:", "kubernetes:helm.sh/v4:Chart"


def test_every_object_is_accepted_without_a_warning(region: Region) -> None:
    """A lenient server drops a field that its schema does not know, in silence; this one is told to refuse it."""
    refused = [answer.refusal for answer in region.answers if answer.refusal]
    warnings = [f"{answer.object}: {warning}" for answer in region.answers for warning in answer.warnings]
    assert not refused + warnings

    resources = [*region.cluster.resources, *region.serving.resources]
    ours = [each for each in resources if each.type.startswith(KUBERNETES) and each.type != CHART]
    assert len(region.answers) == len(ours) >= 20


def _misspell(manifest: dict[str, Any]) -> None:
    manifest["spec"]["template"]["spec"]["terminationGracePeriod"] = 30


def _text_for_a_number(manifest: dict[str, Any]) -> None:
    manifest["spec"]["template"]["spec"]["priority"] = "high"


def _two_volumes_of_one_name(manifest: dict[str, Any]) -> None:
    volumes = manifest["spec"]["template"]["spec"]["volumes"]
    volumes.append(copy.deepcopy(volumes[0]))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_misspell, "terminationGracePeriod"),
        (_text_for_a_number, "priority"),
        (_two_volumes_of_one_name, "volumes"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_fault_in_a_workload_is_refused(region: Region, spoil: Callable[[dict[str, Any]], None], expected: str) -> None:
    manifest = copy.deepcopy(region.declared("Deployment")[0].manifest)
    spoil(manifest)
    with pytest.raises(RefusedError, match=expected):
        region.kube.apply(manifest)


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        pytest.param(
            {
                "apiVersion": "karpenter.sh/v1",
                "kind": "NodePool",
                "metadata": {"name": "planted"},
                "spec": {"template": {"spec": {"requirements": []}}},
            },
            "nodeClassRef",
            id="a pool without a node class",
        ),
        pytest.param(
            {
                "apiVersion": "keda.sh/v1alpha1",
                "kind": "ScaledObject",
                "metadata": {"name": "planted", "namespace": "default"},
                "spec": {"scaleTargetRef": {"name": "x"}, "minReplicas": 1, "triggers": []},
            },
            "minReplicas",
            id="KEDA's minReplicaCount under the autoscaler's name",
        ),
        pytest.param(
            {
                "apiVersion": "elbv2.k8s.aws/v1beta1",
                "kind": "TargetGroupBinding",
                "metadata": {"name": "planted", "namespace": "default"},
                "spec": {"serviceRef": {"name": "x", "port": 1}, "targetGroupArn": "x"},
            },
            "targetGroupArn",
            id="a binding with a misspelt ARN",
        ),
        pytest.param(
            {
                "apiVersion": "monitoring.coreos.com/v1",
                "kind": "PodMonitor",
                "metadata": {"name": "planted", "namespace": "default"},
                "spec": {"selector": {}, "podMetricsEndpoints": [{"portName": "x"}]},
            },
            "portName",
            id="a monitor with a misspelt port",
        ),
    ],
)
def test_a_fault_in_a_custom_resource_is_refused(region: Region, manifest: dict[str, Any], expected: str) -> None:
    with pytest.raises(RefusedError, match=expected):
        region.kube.apply(manifest)
