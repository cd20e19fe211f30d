"""The state folder: who may write, how it is written, and what is said when it cannot be."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.embedded import state as files
from infra.embedded.desired import Desired
from infra.embedded.state import Instance, State
from serving.errors import UserError


def test_files_are_private_and_replaced_whole(state: State) -> None:
    files.write_json(state.instance_file, Instance(port_offset=5))
    before = state.instance_file.stat()
    files.write_json(state.instance_file, Instance(port_offset=6))
    assert state.instance() == Instance(port_offset=6)
    assert state.instance_file.stat().st_mode & 0o777 == 0o600
    assert state.instance_file.stat().st_ino != before.st_ino
    assert not list(state.root.glob(".*"))


def test_a_full_disk_is_one_line_that_names_the_file_and_keeps_the_old_one(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(state.desired_file, Desired())
    before = state.desired_file.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(UserError) as raised:
        files.write_json(state.desired_file, Instance())
    assert raised.value.message == f"{state.desired_file}: the disk is full"
    assert state.desired_file.read_bytes() == before


def test_too_little_space_is_refused_with_the_folder_and_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_500_000_000})())
    with pytest.raises(UserError, match=r"local: 1\.4 GiB free on its disk, must be 2 or more"):
        State(tmp_path / "local").prepare()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/local"):
        State(tmp_path / "file" / "local").prepare()


def test_a_broken_document_is_named(state: State) -> None:
    state.instance_file.write_text("{")
    with pytest.raises(UserError, match=r"instance\.json"):
        state.instance()


def test_one_at_a_time_and_the_refusal_names_the_other(state: State) -> None:
    program = (
        "import sys; from pathlib import Path; from infra.embedded.state import State, exclusively\n"
        "with exclusively(State(Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(state.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=rf"another flotilla \(pid {other.pid}\)"), files.exclusively(state):
        pass
    other.kill()
    other.communicate()
    with files.exclusively(state):  # a kill leaves no lock behind
        pass


def test_addresses_are_loopback_distinct_and_follow_from_the_folder(tmp_path: Path) -> None:
    here, there = State(tmp_path / "here"), State(tmp_path / "there")
    addresses = [here.address(index) for index in (1, 2, 255, 256, 4094)]
    assert len(set(addresses)) == 5
    assert all(address.startswith("127.") and not address.startswith("127.0.") for address in addresses)
    assert addresses == [State(tmp_path / "here").address(index) for index in (1, 2, 255, 256, 4094)]
    assert here.address(1) != there.address(1)
