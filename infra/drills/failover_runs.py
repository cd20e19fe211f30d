"""`flotilla failover` as real processes: run to the end, or killed within and after every step and run again.

Within a step the process is killed as it says that the step begins; between two while it asks, with `--step`, whether to take
the next. Where a kill landed is read from the run's record and not assumed.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from infra.drills.two_regions import TwoRegions
from infra.recovery import failover
from infra.recovery.guard import Guard
from infra.recovery.operations import Recovery
from infra.recovery.record import TAKEN, RunRecord, State
from infra.recovery.table import FailoverTable
from policies.failover.items import CONTROL, DEPLOYS, FLOOR, FREEZE, TAKEOVER
from serving.errors import UserError

LIMIT_S = 240.0
MAX_TRIES = 4
"""Kills that came too late for what they were meant for, in a row."""
DULL = frozenset({"run_id", "at_s", "by", "reason"})
"""Whose run it was, and when: two runs that came to the same end differ in it."""
_LINE = re.compile(r"(?:^|\s)([A-Z]{4,})\s+([a-z-]+)")


@dataclass(frozen=True)
class Ran:
    """A process that came to its end."""

    exit_code: int
    took_s: float
    last_line: str


@dataclass
class Kills:
    """Where kills landed, by the record: the step that was running, or the last one that was done."""

    within: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    num_kills: int = 0


async def run(regions: TwoRegions, *arguments: str, on_line: Callable[[str], None] = lambda _: None) -> Ran:
    """Runs `flotilla failover …` to its end; `on_line` is told what it prints as it does."""
    began_s, last = time.monotonic(), ""
    process = await _start(regions, *arguments)
    async with asyncio.timeout(LIMIT_S):
        assert process.stdout is not None
        async for line in process.stdout:
            last = line.decode().strip() or last
            on_line(last)
        code = await process.wait()
    return Ran(code, time.monotonic() - began_s, last)


async def run_killed(regions: TwoRegions, lost: str, on_line: Callable[[str], None]) -> Kills:
    """Runs the failover of `lost` with a SIGKILL within every step and one after it, and then to its end.

    Raises:
        UserError: a run failed, or kills came too late for a step again and again.
    """
    kills, before = Kills(), await asyncio.to_thread(record_of, regions, lost)
    names = [step.name for step in failover.STEPS]
    for name in names:
        for wanted, landed in ((State.RUNNING, kills.within), (State.DONE, kills.after)):
            if wanted is State.DONE and name == names[-1]:
                continue  # what follows the last step is the end
            for _ in range(MAX_TRIES):
                record = await asyncio.to_thread(_record_since, regions, lost, before)
                if record is not None and (record.state is not State.RUNNING or _is_past(record, name, wanted)):
                    break
                if await _killed_at(regions, lost, name, wanted, record):
                    kills.num_kills += 1
                    _note(kills, await asyncio.to_thread(_record_since, regions, lost, before))
                    on_line(f"killed: {name} {wanted}")
                if landed.get(name):
                    break
    ran = await run(regions, "run", lost, "--reason", "drill", on_line=on_line)
    if ran.exit_code:
        raise UserError(f"the run after {kills.num_kills} kills exited with {ran.exit_code}: {ran.last_line}")
    return kills


def record_of(regions: TwoRegions, lost: str) -> RunRecord | None:
    """The newest run for `lost`, as the survivors have it."""
    return Recovery(regions.estate).status(lost)


def end_state(regions: TwoRegions, lost: str, survivor: str) -> dict[str, Any]:
    """What the survivor's table tells others to do, and how each step of the newest run ended."""
    estate = regions.estate
    table = FailoverTable(Guard(estate, lost), estate.failover_table, survivor)
    keys = [(CONTROL, lost), (FREEZE, DEPLOYS), (TAKEOVER, lost)]
    keys += [(FLOOR, f"{survivor}#{model_class}") for model_class in estate.committed_req_per_min]
    items = {" ".join(key): table.get_values(key) or {} for key in keys}
    found: dict[str, Any] = {key: {name: value for name, value in its.items() if name not in DULL} for key, its in items.items()}
    record = record_of(regions, lost)
    assert record is not None
    return found | {"run": str(record.state), "steps": {step.name: str(step.state) for step in record.steps}}


def _record_since(regions: TwoRegions, lost: str, before: RunRecord | None) -> RunRecord | None:
    record = record_of(regions, lost)
    return None if record is None or (before is not None and record.run_id == before.run_id) else record


def _note(kills: Kills, record: RunRecord | None) -> None:
    if record is None:  # killed before its record was there
        return
    running = [step.name for step in record.steps if step.state is State.RUNNING]
    done = [step.name for step in record.steps if step.state in (State.DONE, State.UNVERIFIED)]
    place, name = (kills.within, running[0]) if running else (kills.after, done[-1] if done else "")
    place[name] = place.get(name, 0) + 1


def _is_past(record: RunRecord, name: str, wanted: State) -> bool:
    """A kill can no longer land there: the step is done; or the one after it has begun."""
    step = record.step(name)
    if wanted is State.RUNNING:
        return step.state in (State.DONE, State.UNVERIFIED)
    place = record.steps.index(step)
    return record.steps[place + 1].state is not State.PENDING


async def _killed_at(regions: TwoRegions, lost: str, name: str, wanted: State, record: RunRecord | None) -> bool:
    """Runs until the process says that `name` is in the state, and kills it; False if it ended before.

    By a thread that waits for nothing else: most steps last milliseconds.
    """
    answers = _num_asked(record, name) if wanted is State.DONE else None
    return await asyncio.to_thread(_kill_as_it_says, regions, lost, name, _said_as(wanted), answers)


def _num_asked(record: RunRecord | None, name: str) -> int:
    """Steps that are still to be taken, `name` the last of them."""
    names = [step.name for step in failover.STEPS]
    to_take = names[: names.index(name) + 1]
    return sum(record is None or record.step(one).state not in TAKEN for one in to_take)


def _kill_as_it_says(regions: TwoRegions, lost: str, name: str, words: tuple[str, ...], answers: int | None) -> bool:
    """`answers`: it asks before each step, and is answered so often."""
    command = regions.command("failover", "run", lost, "--reason", "drill", *(["--step"] if answers is not None else []))
    with subprocess.Popen(
        command,
        env=_env(regions),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("y\n" * (answers or 0))
        process.stdin.flush()
        for line in process.stdout:
            said = _LINE.search(line)
            if said is not None and said[2] == name and said[1] in words:
                process.kill()
                break
        return process.wait(LIMIT_S) == -signal.SIGKILL


def _said_as(state: State) -> tuple[str, ...]:
    return (state.upper(),) if state is State.RUNNING else (State.DONE.upper(), State.UNVERIFIED.upper())


async def _start(regions: TwoRegions, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *regions.command("failover", *arguments),
        env=_env(regions),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


def _env(regions: TwoRegions) -> dict[str, str]:
    return {**regions.env, "FLOTILLA_API_KEY": regions.target.api_key}
