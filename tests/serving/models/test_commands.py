"""`flotilla release` as a person and as a machine run it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from serving.errors import UserError
from serving.models import commands
from serving.models.publish import publish
from serving.target import Target
from tests.serving.models.conftest import HOME


@pytest.fixture
def cli(target: Target, conversion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """The command line on a region that is up, with a conversion that is ready."""
    (tmp_path / "access.json").write_bytes(msgspec.json.encode(target))
    monkeypatch.setenv("FLOTILLA_STATE", str(tmp_path))
    monkeypatch.setattr("serving.models.publish.converted", lambda *_: conversion)
    app = typer.Typer()
    commands.register(app)
    app.command()(lambda: None)
    return app


def run(app: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["release", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_publishing_says_what_was_sent_and_the_second_time_that_nothing_was(cli: typer.Typer) -> None:
    assert f"in {HOME}: 0 MB sent." in run(cli, "publish")
    assert "nothing to send, it was there already" in run(cli, "publish")


def test_publishing_for_a_machine_gives_the_release(cli: typer.Typer) -> None:
    ref = json.loads(run(cli, "publish", "--json"))
    assert (ref["model_class"], ref["alias_revision"], ref["regions"]) == ("small", 1, [HOME])


def test_the_list_marks_what_a_class_stands_for(cli: typer.Typer, target: Target, conversion: Path) -> None:
    first = publish(target, HOME, "small", conversion)
    (conversion / "files" / "config.json").write_text("[]")
    second = publish(target, HOME, "small", conversion)
    releases = json.loads(run(cli, "list", "--json"))["releases"]
    assert {release["release_id"]: release["weight"] for release in releases} == {first.release_id: 0, second.release_id: 100}
    assert first.release_id[:12] in run(cli, "list")


def test_an_empty_registry_says_what_to_do(cli: typer.Typer) -> None:
    assert "flotilla release publish" in run(cli, "list")


@pytest.mark.parametrize(("option", "value"), [("--model", "huge"), ("--source", "elsewhere")])
def test_a_value_that_is_not_offered_is_named(cli: typer.Typer, option: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{option} is '{value}'; must be one of"):
        run(cli, "publish", option, value)
