"""A region of the end-to-end tests: how to speak to it, and how to hurt it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from serving.target import RegionTarget, Target

REPOSITORY = Path(__file__).parents[2]
FLOTILLA = Path(sys.executable).parent / "flotilla"
REGION = "us-east-2"
PORT_OFFSET = 20_000
"""Keeps this region's ports clear of one that the developer has up."""


@dataclass
class LocalRegion:
    """A region that is up: how to speak to it, and how to hurt it."""

    state: Path
    env: dict[str, str]

    def run(self, *arguments: str, timeout_s: float = 400, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(FLOTILLA), *arguments],
            cwd=REPOSITORY,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"flotilla {' '.join(arguments)} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def up(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.run("up", "--port-offset", str(PORT_OFFSET), "--json").stdout)
        return report

    @property
    def target(self) -> Target:
        import msgspec

        return msgspec.json.decode((self.state / "access.json").read_bytes(), type=Target)

    @property
    def home(self) -> RegionTarget:
        return self.target.regions[REGION]

    def pods(self) -> list[dict[str, Any]]:
        pods: list[dict[str, Any]] = json.loads(self.run("status", "--json").stdout)["pods"]
        return pods

    def pod(self, workload: str) -> dict[str, Any]:
        (pod,) = [pod for pod in self.pods() if pod["workload"] == workload]
        return pod

    def counters(self) -> dict[str, float]:
        """The real engine's own counters, canary prompts subtracted; and how many requests it has finished."""
        address = self.pod("engine-small")["address"]
        vllm = _scrape(f"http://{address}:8000/metrics")
        supervisor = _scrape(f"http://{address}:8001/metrics")

        def total(samples: dict[str, float], name: str, *having: str) -> float:
            return sum(
                value for key, value in samples.items() if key.split("{")[0] == name and all(part in key for part in having)
            )

        return {
            "prompt": total(vllm, "vllm:prompt_tokens_total")
            - total(supervisor, "flotilla_engine_canary_tokens_total", 'kind="input"'),
            "generation": total(vllm, "vllm:generation_tokens_total")
            - total(supervisor, "flotilla_engine_canary_tokens_total", 'kind="output"'),
            "requests": total(vllm, "vllm:request_success_total"),
            "running": total(vllm, "vllm:num_requests_running"),
        }

    def usage(self, tenant: str = "demo") -> dict[str, int]:
        """Sums over the tenant's ledger rows."""
        rows: list[dict[str, int]] = json.loads(self.run("usage", "--tenant", tenant, "--json").stdout)["rows"]
        names = ("requests", "uncached_input_tokens", "cached_input_tokens", "output_tokens", "cost_pico_usd")
        return {name: sum(row[name] for row in rows) for name in names}


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Seconds until `condition` held."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.25)
    return time.monotonic() - began


def _scrape(url: str) -> dict[str, float]:
    samples = {}
    with urlopen(url, timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                samples[name] = float(value)
    return samples
