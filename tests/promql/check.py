"""`make check-promql`: what a real Prometheus makes of the rules and queries that prod's graph holds.

promtool is built from Prometheus' Go module, pinned by `go.mod` and `go.sum` here, into the cache folder, once: minutes, which is
why no suite waits for it. It checks that every alert and every query of a ScaledObject parses, and evaluates them over the series
of `cases.yaml`. Exits 1 where one does not parse or a case comes out otherwise.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from infra.embedded.graph import Graph
from infra.embedded.recorder import environment_stacks, record

HERE = Path(__file__).parent
STACK = "prod.serving.us-east-2"
PACKAGE = "github.com/prometheus/prometheus/cmd/promtool"
BUILD_TIMEOUT_S = 1200.0
CHECK_TIMEOUT_S = 60.0


def main() -> int:
    """The command."""
    promtool = built()
    groups = rules_of(record(environment_stacks("prod"))[STACK])
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.yaml"
        rules.write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
        cases = Path(folder) / "cases.yaml"
        cases.write_text((HERE / "cases.yaml").read_text(encoding="utf-8"), encoding="utf-8")
        for verb, file in (("check", rules), ("test", cases)):
            if subprocess.run([promtool, verb, "rules", file], check=False, timeout=CHECK_TIMEOUT_S).returncode:
                return 1
    print(
        f"{sum(len(group['rules']) for group in groups)} alerts and queries of {STACK} parse, and every case comes out as it says"
    )
    return 0


def rules_of(graph: Graph) -> list[Mapping[str, Any]]:
    """The groups of alerts, and the queries of ScaledObjects as recording rules, named by workload and trigger."""
    groups: list[Mapping[str, Any]] = []
    queries: list[Mapping[str, str]] = []
    for resource in graph.resources:
        spec = resource.inputs.get("spec") or {}
        if resource.type.endswith(":PrometheusRule"):
            groups += spec["groups"]
        elif resource.type.endswith(":ScaledObject"):
            queries += [
                {"record": f"{resource.name}_{index}".replace("-", "_"), "expr": trigger["metadata"]["query"]}
                for index, trigger in enumerate(spec["triggers"])
                if "query" in trigger["metadata"]
            ]
    assert groups and queries, "nothing to look at"
    return [*groups, {"name": "queries", "rules": queries}]


def built() -> Path:
    """promtool, from the cache where it was built before from the same pins."""
    pins = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in ("go.mod", "go.sum"))).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flotilla" / "promtool" / pins
    promtool = cache / "promtool"
    if not promtool.exists():
        cache.mkdir(parents=True, exist_ok=True)
        print(f"building {PACKAGE} into {cache}, once: minutes", flush=True)
        unfinished = cache / f"promtool.{os.getpid()}"
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false", "GOWORK": "off"}
        command = ["go", "build", "-tags", "remove_all_sd,netgo", "-ldflags", "-s -w", "-o", str(unfinished), PACKAGE]
        subprocess.run(command, cwd=HERE, env=environment, check=True, timeout=BUILD_TIMEOUT_S)
        unfinished.replace(promtool)
    return promtool


if __name__ == "__main__":
    sys.exit(main())
