"""`make guardrails-peers`: what others' checkers say of prod's graph, beside our own rules.

parliament and cloudsplaining read every policy of a role, kubernetes-validate every object of Kubernetes' own kinds; custom kinds
are held against their definitions by `make test-cluster`. checkov is not asked: it reads templates and plans of other tools, and
would judge a translation of our graph. A finding that somebody answers for is in peer_waivers.yaml, with owner, reason, end.
Exits 1 where a finding is not waived, or where a waiver has expired or covers nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path

import yaml

from infra import config
from infra.embedded.graph import Graph
from infra.embedded.recorder import environment_stacks, record
from tests.cluster.manifests import declared

PEER_PYTHON = Path(".peers/guardrails/bin/python")
WAIVERS = Path(__file__).with_name("peer_waivers.yaml")
TOKEN = re.compile(r"\$\{<[^>]*>#[^}]*\}|\$\{[^}]*#[^}]*\}")
SHAPES = {
    "aws:s3/bucket:Bucket": "arn:aws:s3:::known-when-deployed",
    "aws:dynamodb/table:Table": "arn:aws:dynamodb:us-east-2:222222222222:table/known",
    "aws:kms/key:Key": "arn:aws:kms:us-east-2:222222222222:key/known",
    "aws:kms/replicaKey:ReplicaKey": "arn:aws:kms:us-east-2:222222222222:key/known",
    "aws:secretsmanager/secret:Secret": "arn:aws:secretsmanager:us-east-2:222222222222:secret:known",
    "aws:cloudwatch/logGroup:LogGroup": "arn:aws:logs:us-east-2:222222222222:log-group:known",
    "aws:ecr/repository:Repository": "arn:aws:ecr:us-east-2:222222222222:repository/known",
    "aws:sqs/queue:Queue": "arn:aws:sqs:us-east-2:222222222222:known",
    "aws:iam/role:Role": "arn:aws:iam::222222222222:role/known",
    "aws:eks/cluster:Cluster": "arn:aws:eks:us-east-2:222222222222:cluster/known",
}
"""What stands for an ARN that AWS gives, by the type that it is of: parliament compares kinds."""
TIMEOUT_S = 300.0


def main() -> int:
    """The command."""
    graphs = record(environment_stacks("prod"))
    said = json.loads(
        subprocess.run(
            [str(PEER_PYTHON), "-W", "ignore", str(Path(__file__).with_name("peer_checks.py"))],
            input=json.dumps({"policies": policies(graphs), "manifests": manifests(graphs)}),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=TIMEOUT_S,
        ).stdout
    )
    counts = Counter((issue, resource) for issue, resource in said["findings"])
    waivers = yaml.safe_load(WAIVERS.read_text(encoding="utf-8"))["waivers"]
    granted = {(item["issue"], item["resource"]) for item in waivers if item["expires"] >= today()}
    listed = {(item["issue"], item["resource"]) for item in waivers}
    for (issue, resource), number in sorted(counts.items()):
        say(f"{'waived ' if (issue, resource) in granted else 'FINDING'} {issue} {resource} ({number})")
    for issue, resource in sorted(listed - (granted & counts.keys())):
        say(f"UNUSED  waiver of {issue} for {resource}: expired, or nothing to waive")
    say(f"{said['num_valid']} objects fit Kubernetes' schemas; checked elsewhere: {', '.join(said['custom_kinds'])}")
    open_findings = sum(number for key, number in counts.items() if key not in granted)
    holds = not open_findings and listed == granted & counts.keys()
    figures = {"num_policies": len(policies(graphs)), "num_objects": said["num_valid"], "num_findings": sum(counts.values())}
    say(json.dumps({**figures, "num_not_waived": open_findings, "num_waivers": len(waivers), "holds": holds}))
    return 0 if holds else 1


def policies(graphs: dict[str, Graph]) -> list[tuple[str, str]]:
    """Every policy that a role has, by its resource's name; what AWS computes is an ARN that stands for it."""
    return [
        (resource.name, TOKEN.sub(stand_in, str(resource.inputs["policy"])))
        for graph in graphs.values()
        for resource in graph.resources
        if resource.type.startswith("aws:iam/") and "policy" in resource.inputs
    ]


def stand_in(token: re.Match[str]) -> str:
    """An ARN of the kind that the token's resource is."""
    kind = token[0].rpartition("#")[0].rpartition("::")[0].rpartition("::")[2].rpartition("$")[2]
    return SHAPES.get(kind, f"arn:aws:unknown:::{kind}")


def manifests(graphs: dict[str, Graph]) -> list[object]:
    """Every Kubernetes object, as the provider would send it."""
    return [item.manifest for item in declared(*graphs.values())]


def today() -> date:
    return config.today()


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
