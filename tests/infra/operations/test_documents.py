"""Every command that the operator's documents tell people to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from infra.cli import app

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = ("docs/operations.md", "docs/benchmarks.md", "docs/image.md", "README.md", "CONTRIBUTING.md")


def commands() -> dict[str, typer.main.TyperGroup | typer.core.TyperCommand]:
    """Every command by the words that name it, groups too."""
    top = typer.main.get_command(app)
    found = {}
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        found[name] = command
        found |= {f"{name} {inner}": sub for inner, sub in getattr(command, "commands", {}).items()}
    return found


def unknown_in(text: str) -> list[str]:
    """Commands and options in `text` that there are not."""
    known, unknown = commands(), []
    typed = re.findall(r"(?:`|\$ (?:\.venv/bin/)?)flotilla ([a-z][a-z -]*)((?:[^`\n#|]*))", text)
    for words, rest in typed:
        first, _, second = words.strip().partition(" ")
        second = second.split(" ")[0]
        name = f"{first} {second}" if hasattr(known.get(first), "commands") and second else first
        if name not in known:
            unknown.append(name)
            continue
        options = {option for parameter in known[name].params for option in parameter.opts}
        unknown += [f"{name} {option}" for option in re.findall(r"(?<!\S)(--[a-z-]+)", f"{words}{rest}") if option not in options]
    return unknown


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_their_options_exist(document: str) -> None:
    assert unknown_in((ROOT / document).read_text()) == []


def test_a_misspelt_command_or_option_is_found() -> None:
    assert unknown_in("`flotilla prevew`, `flotilla keys rename x`") == ["prevew", "keys rename"]
    assert unknown_in("$ flotilla preview --all --aginst main   # --not-this") == ["preview --aginst"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", (ROOT / document).read_text()))
    assert named <= targets


def test_there_is_something_to_check() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    assert {"preview", "preflight", "destroy-check", "leftovers", "image pin", "keys revoke"} <= set(commands())
    assert text.count("flotilla ") > 15 and text.count("make deploy") > 3
