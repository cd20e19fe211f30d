"""A Helm chart at the version that the program pins, as a resource.

The engine renders it and sees every object in it; a run without the engine sees the chart, its version and its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pulumi
from pulumi_kubernetes.helm.v4 import Chart

from infra import versions


def chart(pinned: versions.Chart, namespace: str, values: Mapping[str, Any], opts: pulumi.ResourceOptions) -> Chart:
    """`pinned` in `namespace`. The release has the chart's name, so what else names its objects can be written down."""
    is_oci = pinned.repository.startswith("oci://")
    return Chart(
        pinned.name,
        chart=pinned.repository if is_oci else pinned.name,
        version=pinned.version,
        repository_opts=None if is_oci else {"repo": pinned.repository},
        namespace=namespace,
        values=values,
        opts=opts,
    )
