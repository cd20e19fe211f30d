"""Comparing commits: each is recorded by its own program, and the working tree is neither read nor touched."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.embedded import against
from infra.embedded.against import REPOSITORY, commit_of, graphs_at
from infra.embedded.preview import preview_against
from serving.errors import UserError

STACK = "staging.edge"
SERVING = "staging.serving.us-east-2"
STACK_FILE = "stacks/Pulumi.staging.edge.yaml"

Git = Callable[..., str]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in miniature: the program of this tree as commit `first`, then another domain as `second`; then a dirty tree."""
    root = tmp_path_factory.mktemp("clone")
    for folder in ("infra", "serving", "policies", "stacks"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    git(root, "init", "--quiet")
    commit(root, "first")
    path = root / STACK_FILE
    path.write_text(path.read_text().replace("staging.flotilla.example.com", "elsewhere.example.com"))
    commit(root, "second")
    path.write_text("this is no stack file")
    return root


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    done = subprocess.run(["git", "-C", str(root), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(root: Path, tag: str) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", tag)
    git(root, "tag", tag)


@pytest.fixture
def in_clone(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes commits those of the clone."""
    for function in (commit_of, graphs_at):
        monkeypatch.setattr(function, "__defaults__", (*(function.__defaults__ or ())[:-1], repository))
    return repository


def test_two_commits_are_compared_and_the_working_tree_is_not_touched(in_clone: Path) -> None:
    before = git(in_clone, "status", "--porcelain")
    report = preview_against(STACK, "first..second")
    assert [stack.stack for stack in report.stacks] == [STACK]
    paths = {item.path: (item.before, item.after) for c in report.stacks[0].diff.changes for item in c.properties}
    assert any("staging.flotilla" in str(old) and "elsewhere" in str(new) for old, new in paths.values()), paths
    assert report.against.startswith("first (") and ", at second (" in report.against
    assert preview_against(STACK, "second..second").is_empty
    assert git(in_clone, "status", "--porcelain") == before == f"M {STACK_FILE}"


def test_the_working_tree_is_compared_with_a_commit_of_the_same_program(in_clone: Path) -> None:
    """`REPOSITORY`'s own program is what `first` holds."""
    report = preview_against(STACK, "first")
    assert report.is_empty and [stack.presence.value for stack in report.stacks] == ["both"]


@pytest.mark.parametrize(
    ("stack", "ref", "told"),
    [
        (STACK, "no-such-branch", "no-such-branch: no such commit"),
        (STACK, "first..no-such-branch", "no-such-branch: no such commit"),
        ("staging.edgy", "first", "no such stack, on neither side"),
    ],
)
def test_what_cannot_be_compared_is_one_line(in_clone: Path, stack: str, ref: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        preview_against(stack, ref)
    assert told in caught.value.message and "\n" not in caught.value.message and caught.value.hint


def test_a_commit_whose_program_does_not_load_is_named(in_clone: Path) -> None:
    git(in_clone, "checkout", "--quiet", "--force", "first")
    (in_clone / STACK_FILE).write_text("config: {flotilla:domain: 7}\n")
    commit(in_clone, "broken")
    with pytest.raises(UserError, match=r"broken: its program does not load: .*Pulumi\.staging\.edge") as caught:
        graphs_at("broken", [STACK])
    assert "\n" not in caught.value.message


def test_a_commit_older_than_the_recorder_and_a_folder_without_git_are_named(in_clone: Path, tmp_path: Path) -> None:
    git(in_clone, "rm", "--quiet", "-r", "-f", "infra")
    commit(in_clone, "old")
    with pytest.raises(UserError, match="older than the recorder"):
        graphs_at("old")
    with pytest.raises(UserError, match="is no git checkout"):
        against.commit_of("HEAD", tmp_path)
