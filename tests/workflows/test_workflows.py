"""The workflows: pinned, least in rights, never a fork's code with a token, and right by actionlint."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
ACTIONLINT = "github.com/rhysd/actionlint/cmd/actionlint@v1.7.7"
PINNED = re.compile(r"^[\w.-]+/[\w./-]+@[0-9a-f]{40}$")
MODULE = re.compile(r"python3? -m ([\w.]+)")


def workflow(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())  # type: ignore[no-any-return]


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    return workflow(path)["jobs"]  # type: ignore[no-any-return]


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job.get("steps", ())]


def test_there_are_workflows_to_look_at() -> None:
    assert {path.stem for path in FILES} == {
        "checks",
        "deploy",
        "deploy-stacks",
        "drift",
        "engine-preview",
        "image",
        "preview",
        "preview-comment",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_action_is_pinned_by_its_commit(path: Path) -> None:
    """A tag can be moved, and then runs with our token."""
    used = [step["uses"] for step in steps(path) if "uses" in step]
    used += [job["uses"] for job in jobs(path).values() if "uses" in job]
    assert used
    assert [name for name in used if not name.startswith("./") and not PINNED.match(name)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_rights_are_stated_and_nothing_is_written_unless_a_comment_is(path: Path) -> None:
    document = workflow(path)
    stated = [document["permissions"], *(job["permissions"] for job in jobs(path).values() if "permissions" in job)]
    written = {right for rights in stated for right, level in rights.items() if level == "write"}
    assert written <= {"id-token"} or (path.stem, written) == ("preview-comment", {"pull-requests"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_checkout_leaves_no_token_behind_and_every_job_ends(path: Path) -> None:
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    assert all("timeout-minutes" in job for job in jobs(path).values() if "uses" not in job)


def test_a_pull_requests_own_code_never_meets_a_token_or_a_secret() -> None:
    preview = (ROOT / ".github/workflows/preview.yml").read_text()
    assert "secrets." not in preview and "github.token" not in preview and "id-token" not in preview
    assert not any("pull_request_target" in path.read_text() for path in FILES)
    poster = steps(ROOT / ".github/workflows/preview-comment.yml")
    checkout = next(step for step in poster if step.get("uses", "").startswith("actions/checkout@"))
    assert "ref" not in checkout["with"], "the default branch's code posts, not the pull request's"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_workflow_calls_is_there(path: Path) -> None:
    text = path.read_text()
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for module in MODULE.findall(text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for target in re.findall(r"run: make ([\w./-]+)", text):
        assert target in targets, target


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_that_others_write_is_put_into_a_script(path: Path) -> None:
    """A branch's or a title's name in `run` is code: it goes through the environment instead."""
    for step in steps(path):
        for expression in re.findall(r"\$\{\{(.*?)\}\}", step.get("run", "")):
            assert not re.search(r"github\.(event|head_ref|base_ref)|inputs\.", expression), expression


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="actionlint is built from its Go module, and there is no Go here")
def test_actionlint_finds_nothing() -> None:
    run = subprocess.run(["go", "run", ACTIONLINT, *map(str, FILES)], capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr
