"""The stacks through the real Pulumi engine: deploying a region, destroying one, and previewing `local` with no cloud.

Orders and guards live here, so that nobody has to remember them: preflight before each `pulumi up`, cluster before serving and
backwards to destroy, the account typed out before anything goes, and what is left looked for by its tags afterwards.

A preview needs providers that configure themselves and outputs of earlier stacks. For `local` neither takes a cloud: the account
is the emulated AWS's, and each stack's outputs are put into a throw-away state from the recorded graph once it has been shown.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.embedded.aws_server import environment as aws_environment
from infra.embedded.graph import Graph
from infra.embedded.graph_json import hidden
from infra.embedded.ports import free_port
from infra.embedded.recorder import environment_stacks, record
from infra.naming import LOCAL, PROJECT
from serving.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
AWS_PORT = 4566

Run = Callable[[Sequence[str]], None]
"""Runs `pulumi` with these arguments.

Raises:
    UserError: it ended with another code than 0.
"""


def is_installed() -> bool:
    """Whether `pulumi` is on the PATH."""
    return shutil.which("pulumi") is not None


def require_installed() -> None:
    """Raises UserError where `pulumi` is not on the PATH."""
    if not is_installed():
        raise UserError(
            "pulumi is not on the PATH",
            "install the Pulumi CLI (https://www.pulumi.com/docs/install/); `flotilla preview` needs none",
        )


def run_pulumi(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Runs `pulumi` in the project, its output going where ours goes.

    Raises:
        UserError: it ended with another code than 0.
    """
    done = subprocess.run(["pulumi", *arguments], cwd=ROOT, env={**os.environ, **(environment or {})})  # noqa: S607 (the PATH's)
    if done.returncode:
        raise UserError(f"pulumi {' '.join(arguments)}: ended with {done.returncode}", "what it wrote above says why")


def deploy(environment: str, region: str, check: Callable[[str], None], run: Run = run_pulumi) -> None:
    """`pulumi up` of the region's cluster and then of its serving, each after `check` of it.

    Raises:
        UserError: from `check`, or because pulumi did not end well; the rest is then left as it is.
    """
    for stack in _regional(environment, region):
        check(stack)
        run(["up", "--stack", stack])


def destroy(environment: str, region: str, run: Run = run_pulumi) -> Iterator[str]:
    """`pulumi destroy` of the region's serving and then of its cluster. Gives each stack once it is gone.

    Raises:
        UserError: pulumi did not end well: something is protected, or still in use.
    """
    for stack in reversed(_regional(environment, region)):
        run(["destroy", "--stack", stack])
        yield stack


def preview_local(run: Callable[[Sequence[str], Mapping[str, str]], None] = run_pulumi) -> list[str]:
    """Previews every stack of `local`, and gives a line for each that did not end well."""
    faults: list[str] = []
    graphs = record(environment_stacks(LOCAL))
    with tempfile.TemporaryDirectory(prefix="flotilla-engine-") as name, _emulated_aws(Path(name)) as url:
        folder = Path(name)
        (folder / "state").mkdir()
        settings = {
            "PULUMI_BACKEND_URL": f"file://{folder / 'state'}",
            "PULUMI_CONFIG_PASSPHRASE": "throw-away",
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "flotilla",
            "AWS_SECRET_ACCESS_KEY": "flotilla",
        }
        for stack, graph in graphs.items():
            run(["stack", "init", stack, "--non-interactive"], settings)
            try:
                run(["preview", "--stack", stack, "--non-interactive"], settings)
            except UserError as error:
                faults.append(error.message)
            outputs = folder / f"{stack}.json"
            outputs.write_text(json.dumps(_state_with_outputs(graph)), encoding="utf-8")
            run(["stack", "import", "--stack", stack, "--file", str(outputs)], settings)
    return faults


def _regional(environment: str, region: str) -> list[str]:
    """Cluster and serving of the region, in this order."""
    known = environment_stacks(environment)
    stacks = [f"{environment}.cluster.{region}", f"{environment}.serving.{region}"]
    if not set(stacks) <= set(known):
        raise UserError(f"{environment} has no region {region!r}", f"it has the stacks {', '.join(known)}")
    return stacks


def _state_with_outputs(graph: Graph) -> dict[str, Any]:
    """A deployment, as `pulumi stack import` reads it, of a stack with nothing in it but its outputs."""
    root = {
        "urn": f"urn:pulumi:{graph.stack}::{PROJECT}::pulumi:pulumi:Stack::{PROJECT}-{graph.stack}",
        "custom": False,
        "type": "pulumi:pulumi:Stack",
        "outputs": hidden(graph.outputs),
    }
    manifest = {"time": "2026-01-01T00:00:00Z", "magic": "", "version": ""}
    return {"version": 3, "deployment": {"manifest": manifest, "resources": [root]}}


@contextmanager
def _emulated_aws(folder: Path) -> Iterator[str]:
    """An emulated AWS for as long as it is needed; the providers wait for it to answer."""
    port = free_port(LOOPBACK, AWS_PORT)
    server = subprocess.Popen(
        [sys.executable, "-m", "infra.embedded.aws_server"],
        env={**os.environ, **aws_environment(LOOPBACK, port, folder / "aws")},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield f"http://{LOOPBACK}:{port}"
    finally:
        server.terminate()
        server.wait(10)
