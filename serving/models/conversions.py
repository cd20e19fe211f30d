"""Runs the converter in the engine's environment and keeps what it makes.

Conversions lie in `<cache>/conversions/<source>-<version>-r<revision>/`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec

from serving.errors import UserError
from serving.models.files import Progress
from serving.twin import release

_REPOSITORY = Path(__file__).parents[2]


class ConversionFailedError(UserError):
    """The converter cannot run, or said why it cannot convert."""


def engine_python() -> Path:
    """Interpreter of the engine's environment: FLOTILLA_ENGINE_PYTHON, or `.venv-engine` beside the code.

    Raises:
        ConversionFailedError: there is none.
    """
    path = Path(os.environ.get("FLOTILLA_ENGINE_PYTHON") or _REPOSITORY / ".venv-engine" / "bin" / "python")
    if not path.is_file():
        raise ConversionFailedError(
            f"no engine environment: {path} is not there", "run `make setup`, or set FLOTILLA_ENGINE_PYTHON"
        )
    return path


def cache_dir() -> Path:
    """Where conversions are kept: FLOTILLA_CACHE, or `.flotilla/cache` of the working directory."""
    return Path(os.environ.get("FLOTILLA_CACHE") or Path(".flotilla") / "cache").absolute()


def converted(source: str, on_progress: Callable[[Progress], None]) -> Path:
    """Folder of the finished conversion of `source`; it is made once, and found again afterwards. A twin's needs no engine.

    Raises:
        ConversionFailedError: the engine's environment is absent, or the converter failed.
    """
    if source == release.SOURCE:
        return release.make(cache_dir() / "conversions")
    command = [
        str(engine_python()),
        "-m",
        "serving.models.convert",
        "--source",
        source,
        "--out",
        str(cache_dir() / "conversions"),
    ]
    with tempfile.TemporaryFile() as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        try:
            last = _follow(process.stdout, on_progress)
        except BaseException:
            process.kill()
            raise
        process.wait()
        if last.get("event") == "done":
            return Path(str(last["folder"]))
        if last.get("event") == "error":
            raise ConversionFailedError(f"converting {source}: {last['message']}", str(last["hint"]))
        errors.seek(0)
        written = errors.read().decode(errors="replace").strip().splitlines()
        sys.stderr.write("\n".join(written) + "\n")
        end = written[-1] if written else f"exit status {process.returncode}"
        raise ConversionFailedError(
            f"converting {source} failed: {end}", "run `make setup` again if the engine's environment is broken"
        )


def _follow(output: IO[bytes] | None, on_progress: Callable[[Progress], None]) -> dict[str, Any]:
    """Reports progress lines as they come; the last event that is not progress, or nothing. Other lines are not ours."""
    last: dict[str, Any] = {}
    for line in output or ():
        try:
            event = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.MsgspecError:
            continue
        if event.pop("event", "") == "progress":
            on_progress(msgspec.convert(event, Progress))
        else:
            last = msgspec.json.decode(line, type=dict[str, Any])
    return last
