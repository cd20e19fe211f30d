"""The graphs of another commit: its own program and stack files, recorded beside ours.

The commit's tree goes into a temporary folder and a process of its own, which runs the same interpreter with that tree first on
the path (`record_tree`). So the commit's code meets today's installed packages: a difference that a new version of a provider's
classes makes is not shown, one that our code makes is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from infra.embedded import record_tree
from infra.embedded.graph import Graph
from infra.embedded.graph_json import decode
from serving.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDER = "infra/embedded/recorder.py"


def commit_of(ref: str, repository: Path = REPOSITORY) -> str:
    """The commit that `ref` names.

    Raises:
        UserError: git is missing, this is no checkout, or nothing has that name.
    """
    if shutil.which("git") is None:
        raise UserError("--against needs git, which is not on the PATH", "install git")
    found = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if found.returncode:
        inside = _git(repository, "rev-parse", "--git-dir").returncode == 0
        what = f"{ref}: no such commit" if inside else f"{repository}: is no git checkout"
        raise UserError(what, "name a branch, tag or commit that `git rev-parse` knows" if inside else "run it in a clone")
    return found.stdout.decode().strip()


def graphs_at(ref: str, stacks: Sequence[str] = (), repository: Path = REPOSITORY) -> dict[str, Graph]:
    """The graph of every stack of the commit `ref`, or of those of `stacks` that it has with those that they refer to.

    Raises:
        UserError: there is no such commit, it is older than the recorder, or its program does not load.
    """
    commit = commit_of(ref, repository)
    with tempfile.TemporaryDirectory(prefix="flotilla-against-") as folder:
        tree, answer_file = Path(folder) / "tree", Path(folder) / "answer.json"
        _check_out(repository, commit, tree)
        if not (tree / RECORDER).exists():
            raise UserError(f"{ref} has no {RECORDER}: it is older than the recorder", "compare with a later commit")
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        command = [sys.executable, "-P", record_tree.__file__, str(answer_file), *stacks]
        run = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if not answer_file.exists():
            raise _unloadable(ref, (run.stderr.decode(errors="replace").strip().splitlines() or ["it ended early"])[-1])
        answer = json.loads(answer_file.read_text(encoding="utf-8"))
    if "error" in answer:
        raise _unloadable(ref, answer["error"])
    try:
        return {stack: decode(text, f"{ref}, {stack}") for stack, text in answer["graphs"].items()}
    except UserError as error:
        raise UserError(error.message, "compare with a later commit") from error


def _check_out(repository: Path, commit: str, tree: Path) -> None:
    """Puts the commit's files into `tree`."""
    archive = tree.with_suffix(".tar")
    done = _git(repository, "archive", "--format=tar", f"--output={archive}", commit)
    if done.returncode:
        raise UserError(f"git archive {commit}: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(archive) as files:
        files.extractall(tree, filter="data")


def _git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True)  # noqa: S607 (the PATH's git)


def _unloadable(ref: str, reason: str) -> UserError:
    return UserError(f"{ref}: its program does not load: {reason}", "compare with a commit whose own preview works")
