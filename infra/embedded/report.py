"""What the commands say of a local region: after `up`, and in `status`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.embedded import access
from infra.embedded.desired import Status
from serving.target import Target

PHASES = {"running": "Running", "starting": "Starting", "back_off": "BackOff", "stopping": "Stopping"}


@dataclass
class UpReport:
    """What is up now, and what this run did for it."""

    target: Target
    model: str
    api_url: str = ""
    """One address for all regions; empty where there is one region."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Number of AWS resources by outcome."""
    workloads: Mapping[str, str] = field(default_factory=dict)
    """`started`, `changed`, `stopped` or `unchanged`, by workload."""
    recorded_only: Mapping[str, int] = field(default_factory=dict)
    other_changes: tuple[str, ...] = ()
    took_s: float = 0

    @property
    def is_unchanged(self) -> bool:
        """Everything was as it should be already."""
        return not self.other_changes and {*self.outcomes, *self.workloads.values()} == {"unchanged"}

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        _, region = self.target.region()
        return {
            "base_url": region.base_url,
            "api_url": self.api_url,
            "api_key": self.target.api_key,
            "curl": access.curl(region.base_url, self.target.api_key, self.model),
            "python": access.python(region.base_url, self.target.api_key, self.model),
            "regions": {name: {"base_url": it.base_url, "admin_url": it.admin_url} for name, it in self.target.regions.items()},
            "changed": not self.is_unchanged,
            "resources": dict(self.outcomes),
            "workloads": dict(self.workloads),
            "other_changes": list(self.other_changes),
            "recorded_only": dict(self.recorded_only),
            "took_s": round(self.took_s, 1),
        }


def print_up(console: Console, report: UpReport, state_note: str) -> None:
    """The end of `up` for people: what was done, how to reach it, and lines to paste, which are never wrapped."""
    _, region = report.target.region()
    counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(report.outcomes.items()))
    tally: dict[str, list[str]] = {}
    for key, change in report.workloads.items():
        tally.setdefault(change, []).append(key)
    lines = [f"AWS resources: {counts}", *(f"Workloads {change}: {', '.join(keys)}" for change, keys in sorted(tally.items()))]
    lines += [f"Also: {change}" for change in report.other_changes]
    num_recorded = sum(report.recorded_only.values())
    lines.append(
        f"Recorded only, as they mean nothing on one machine: {num_recorded} resources of {len(report.recorded_only)} types"
    )
    console.print()
    console.print(
        "Nothing to change: everything is up already." if report.is_unchanged else "The region is up.", style="bold green"
    )
    for line in lines:
        console.print(line, style="dim", soft_wrap=True, highlight=False, markup=False)
    pairs = [("Base URL", region.base_url), ("API key", report.target.api_key)]
    pairs += [("All", f"{report.api_url}/v1")] if report.api_url else []
    pairs += [(name, it.base_url) for name, it in report.target.regions.items() if it is not region]
    console.print()
    for name, value in pairs:
        console.print(Text.assemble((f"{name:<10}", "bold"), value), soft_wrap=True)
    for title, text in (
        ("In a shell:", access.curl(region.base_url, report.target.api_key, report.model)),
        ("In Python (.venv/bin/python has the client):", access.python(region.base_url, report.target.api_key, report.model)),
        ("Or:", f'{state_note}{_command()} chat "{access.QUESTION}"'),
    ):
        console.print()
        console.print(title, style="bold")
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def _command() -> str:
    """How this shell can call us again."""
    return "flotilla" if shutil.which("flotilla") else os.path.relpath(sys.argv[0])


def status_json(status: Status | None) -> dict[str, Any]:
    """The status for machines; `up` is false when no agent lives."""
    if status is None:
        return {"up": False, "pods": [], "workloads": [], "services": []}
    return {"up": True, **msgspec.to_builtins(status)}


def render_status(status: Status | None) -> RenderableType:
    """The status for people."""
    if status is None:
        return Text("Nothing is up. Start a region with `flotilla up`.")
    pods = _table("REGION", "POD", "READY", "STATUS", "RESTARTS", "AGE", "ADDRESS")
    pods.add_column()
    for pod in sorted(status.pods, key=lambda pod: (pod.region, pod.namespace, pod.name)):
        num_ready = sum(container.ready for container in pod.containers)
        reason = "; ".join(container.reason for container in pod.containers if container.reason)
        style = "" if pod.ready else "yellow"
        pods.add_row(
            pod.region or "all",
            f"{pod.namespace}/{pod.name}",
            f"{num_ready}/{len(pod.containers)}",
            Text(PHASES[pod.phase], style=style),
            str(pod.restarts),
            _age(pod.started_at_ms),
            pod.address,
            Text(reason, style="dim"),
        )
    services = _table("REGION", "SERVICE", "READY", "ON THIS MACHINE")
    for service in status.services:
        addresses = ", ".join(f"{name} {address}" for name, address in service.host_addresses.items())
        services.add_row(
            service.region or "all", f"{service.namespace}/{service.name}", f"{service.ready}/{service.total}", addresses
        )
    parts: list[RenderableType] = [pods, Text(), services]
    if any(workload.reason for workload in status.workloads):
        scaled = _table("SCALED", "READY", "REPLICAS", "DESIRED", "WHY")
        for workload in status.workloads:
            if workload.reason:
                desired = "?" if workload.desired is None else str(workload.desired)
                scaled.add_row(workload.key, str(workload.ready), str(workload.replicas), desired, workload.reason)
        parts += [Text(), scaled]
    if status.error:
        parts.append(Text(status.error, style="red"))
    return Group(*parts)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _age(since_ms: int) -> str:
    seconds = max(0, int(time.time() - since_ms / 1000))
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
