"""docs/answers.md: what it rests on is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from infra.cli import app

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/answers.md").read_text(encoding="utf-8")
LINKS = sorted(set(re.findall(r"\]\(([^)\s]+)\)", TEXT)))
COMMANDS = sorted(set(re.findall(r"`((?:make|flotilla) [^`]+)`", TEXT)))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def anchors(file: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_is_something_to_look_at() -> None:
    assert len(LINKS) > 30 and len(COMMANDS) > 10


@pytest.mark.parametrize("link", LINKS)
def test_a_file_that_an_answer_rests_on_exists(link: str) -> None:
    path, _, anchor = link.partition("#")
    file = ROOT / "docs" / path
    assert file.exists(), link
    assert not anchor or anchor in anchors(file), link


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_shows_an_answer_exists_and_takes_its_options(command: str) -> None:
    program, *words = command.split()
    if program == "make":
        assert words[0] in TARGETS, command
        return
    found = get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found = found.commands[words.pop(0)]  # type: ignore[attr-defined]
    assert not getattr(found, "commands", {}), f"{command}: no such command"
    known = {name for parameter in found.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known, command
