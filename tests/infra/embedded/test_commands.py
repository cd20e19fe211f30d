"""The commands themselves, where nothing is up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from infra.embedded import commands
from serving.errors import UserError


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    commands.register(app)
    return app


def run(app: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_status_says_that_nothing_is_up(app: typer.Typer, tmp_path: Path) -> None:
    assert "Nothing is up" in run(app, "status", "--state", str(tmp_path / "none"))
    assert json.loads(run(app, "status", "--json", "--state", str(tmp_path / "none")))["up"] is False


def test_down_of_nothing_is_no_fault_and_makes_no_folder(app: typer.Typer, tmp_path: Path) -> None:
    assert "Nothing was up" in run(app, "down", "--purge", "--state", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_the_state_folder_comes_from_the_environment(app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOTILLA_STATE", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="elsewhere/logs"):
        run(app, "logs", "gateway")


@pytest.mark.parametrize("arguments", [(), ("local.edge", "--all")])
def test_preview_wants_a_stack_or_all(app: typer.Typer, arguments: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="--all"):
        run(app, "preview", *arguments)


@pytest.mark.parametrize("command", ["up", "down", "status", "logs"])
def test_other_systems_are_refused_in_one_line(app: typer.Typer, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="Linux only, and this is darwin"):
        run(app, command)
