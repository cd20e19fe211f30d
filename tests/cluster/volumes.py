"""What the EBS volume driver does, for claims of fake nodes: a volume in the zone that the scheduler chose.

It stands for the driver and is none: it makes the PersistentVolume that the driver would, held to its zone. Storage class,
binding and what the scheduler does with a zone are Kubernetes' own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kube import Kube

from infra.scheduling import ZONE

SELECTED_NODE = "volume.kubernetes.io/selected-node"
DRIVER = "ebs.csi.aws.com"
POLL_S = 0.3


@contextmanager
def volume_driver(kube: Kube) -> Iterator[None]:
    """Provides volumes for the time of the block."""
    stopping = threading.Event()
    thread = threading.Thread(target=_work, args=(kube, stopping), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _work(kube: Kube, stopping: threading.Event) -> None:
    made: set[str] = set()
    while not stopping.wait(POLL_S):
        for claim in kube.list("PersistentVolumeClaim"):
            metadata = claim["metadata"]
            node = metadata.get("annotations", {}).get(SELECTED_NODE)
            if node and metadata["uid"] not in made:
                made.add(metadata["uid"])
                _provide(kube, claim, node)


def _provide(kube: Kube, claim: dict[str, Any], node: str) -> None:
    metadata, spec = claim["metadata"], claim["spec"]
    zone = kube.get("Node", node)["metadata"]["labels"][ZONE]
    volume = f"pvc-{metadata['uid']}"
    reference = {"kind": "PersistentVolumeClaim", "apiVersion": "v1"} | {
        key: metadata[key] for key in ("namespace", "name", "uid")
    }
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume, "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER}},
            "spec": {
                "storageClassName": spec["storageClassName"],
                "accessModes": spec["accessModes"],
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                "csi": {"driver": DRIVER, "volumeHandle": volume},
                "claimRef": reference,
                "nodeAffinity": {
                    "required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": ZONE, "operator": "In", "values": [zone]}]}]}
                },
            },
        }
    )
