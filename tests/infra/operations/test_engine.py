"""What is asked of the Pulumi CLI, and in which order. The CLI here is a stand-in that writes down its arguments: none is on the
package index, so no test has run the real one."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import typer
from operations_support import Account
from typer.testing import CliRunner

from infra.embedded.recorder import environment_stacks
from infra.operations import commands, engine
from serving.errors import UserError

CLUSTER, SERVING = "staging.cluster.us-east-2", "staging.serving.us-east-2"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a `pulumi` on the PATH; the file that it writes down its arguments in. It fails where FAIL is among them."""
    log, program = tmp_path / "calls", tmp_path / "bin" / "pulumi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >> {log}\ncase "$*" in *"$FAIL"*) exit 7;; esac\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAIL", "nothing of this")
    return log


def test_a_region_goes_up_cluster_first_and_each_stack_is_checked_before_it(stand_in: Path) -> None:
    events: list[str] = []
    engine.deploy("staging", "us-east-2", lambda stack: events.append(f"check {stack}"))
    assert events == [f"check {CLUSTER}", f"check {SERVING}"]
    assert stand_in.read_text().splitlines() == [f"up --stack {CLUSTER}", f"up --stack {SERVING}"]


def test_what_preflight_refuses_never_reaches_the_engine(stand_in: Path) -> None:
    def refuse(stack: str) -> None:
        raise typer.Exit(1)

    with pytest.raises(typer.Exit):
        engine.deploy("staging", "us-east-2", refuse)
    assert not stand_in.exists()


def test_after_a_stack_that_failed_the_next_is_left_alone(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "cluster")
    with pytest.raises(UserError, match=f"pulumi up --stack {CLUSTER}: ended with 7"):
        engine.deploy("staging", "us-east-2", lambda stack: None)
    assert stand_in.read_text().splitlines() == [f"up --stack {CLUSTER}"]


def test_a_region_is_destroyed_backwards(stand_in: Path) -> None:
    assert list(engine.destroy("staging", "us-east-2")) == [SERVING, CLUSTER]
    assert stand_in.read_text().splitlines() == [f"destroy --stack {SERVING}", f"destroy --stack {CLUSTER}"]


def test_the_wrong_account_stops_a_destruction_before_the_engine(stand_in: Path, account: Account) -> None:
    app = typer.Typer()
    commands.register(app)
    for typed, told in (("1", "--account is '1'"), ("111111111111", "staging is in 111111111111")):
        result = CliRunner().invoke(app, ["destroy", "staging", "us-east-2", "--account", typed])
        assert isinstance(result.exception, UserError) and told in result.exception.message
    assert not stand_in.exists()


def test_each_stack_of_local_is_previewed_against_what_earlier_ones_export() -> None:
    calls: list[tuple[str, ...]] = []
    outputs: dict[str, object] = {}

    def run(arguments: Sequence[str], settings: Mapping[str, str]) -> None:
        assert settings["PULUMI_BACKEND_URL"].startswith("file:///") and settings["AWS_ENDPOINT_URL"].startswith(
            "http://127.0.0.1:"
        )
        calls.append((*arguments[:2], arguments[2]) if arguments[0] == "stack" else tuple(arguments[:3]))
        if arguments[1] == "import":
            state = json.loads(Path(arguments[-1]).read_text())
            (root,) = state["deployment"]["resources"]
            outputs[arguments[3]] = root["outputs"]
        if "local.edge" in arguments and arguments[0] == "preview":
            raise UserError("the edge failed")

    assert engine.preview_local(run) == ["the edge failed"]
    stacks = environment_stacks("local")
    assert [call[2] for call in calls if call[:2] == ("stack", "init")] == stacks
    assert [call[2] for call in calls if call[:2] == ("preview", "--stack")] == stacks
    assert list(outputs) == stacks and isinstance(outputs["local.foundation"], dict)
    assert outputs["local.foundation"]["tables"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["preview-engine"], 0, "skipped: pulumi is not on the PATH"),
        (["deploy", "staging", "us-east-2"], None, "pulumi is not on the PATH"),
        (["destroy", "staging", "us-east-2", "--account", "1"], None, "pulumi is not on the PATH"),
    ],
)
def test_without_the_cli_there_is_one_plain_line(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int | None, told: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    app = typer.Typer()
    commands.register(app)
    result = CliRunner().invoke(app, arguments)
    if code is None:
        assert isinstance(result.exception, UserError) and told in result.exception.message and result.exception.hint
    else:
        assert result.exit_code == code and told in result.stdout


def test_an_unknown_region_is_told_with_those_there_are(stand_in: Path) -> None:
    with pytest.raises(UserError, match="staging has no region 'eu-west-1'"):
        engine.deploy("staging", "eu-west-1", lambda stack: None)
    assert not stand_in.exists()
