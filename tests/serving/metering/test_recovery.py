"""What a dead writer left open is sealed once, the same way whoever does it and however often it is interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from serving.metering.events import CountSource, Outcome
from serving.metering.framing import decode_segment, encode_record
from serving.metering.recovery import recover
from serving.metering.segments import CORRUPT, OPEN, SEALED, TORN, JournalLocked, SegmentName, WriterLock

SOURCE = "gateway-0-0"


def test_an_event_without_a_close_bills_its_last_progress(folder: Any, records: Any) -> None:
    event = records.open(prompt_tokens=50)
    folder.write(event, records.progress(event, 32), records.progress(event, 64), suffix=OPEN)
    (found,) = recover(folder.path, SOURCE)
    assert (found.num_records, found.num_crashed, found.torn_bytes) == (3, 1, 0)
    (close,) = folder.closes()
    assert (close.open, close.outcome, close.source) == (event, Outcome.GATEWAY_CRASH, CountSource.ENGINE_RUNNING)
    assert (close.prompt_tokens, close.output_tokens) == (50, 64)


def test_an_event_whose_engine_never_reported_bills_nothing(folder: Any, records: Any) -> None:
    folder.write(records.open(), suffix=OPEN)
    recover(folder.path, SOURCE)
    (close,) = folder.closes()
    assert (close.outcome, close.source) == (Outcome.GATEWAY_CRASH, CountSource.NONE)
    assert (close.prompt_tokens, close.cached_tokens, close.output_tokens, close.cost_pico_usd) == (0, 0, 0, 0)


def test_a_crashed_event_ends_when_its_writer_was_last_known_to_live(folder: Any, records: Any) -> None:
    early, late = records.open(opened_at_ms=1000), records.open(opened_at_ms=9000)
    folder.write(early, records.open(opened_at_ms=2000), late, records.close(late, closed_at_ms=9500), suffix=OPEN)
    recover(folder.path, SOURCE)
    assert {close.closed_at_ms for close in folder.closes()} == {9500}


def test_a_torn_tail_is_cut_off_and_the_original_kept(folder: Any, records: Any) -> None:
    first, second = records.open(), records.open()
    path = folder.write(first, records.close(first), second, suffix=OPEN)
    original = path.read_bytes() + encode_record(records.close(second))[:-1]
    path.write_bytes(original)
    (found,) = recover(folder.path, SOURCE)
    assert found.torn_bytes == len(encode_record(records.close(second))) - 1
    assert path.with_suffix(TORN).read_bytes() == original
    assert [(close.open.event_id, close.outcome) for close in folder.closes()] == [
        (first.event_id, Outcome.FINISHED),
        (second.event_id, Outcome.GATEWAY_CRASH),
    ]


def test_only_the_newest_segment_says_who_never_closed(folder: Any, records: Any) -> None:
    """Here the writer died between opening a segment and sealing the one before."""
    ended, running = records.open(), records.open()
    folder.write(ended, running, records.progress(running, 5), seq=3, suffix=OPEN)
    folder.write(running, records.progress(running, 5), records.progress(running, 8), seq=4, suffix=OPEN)
    assert [found.num_crashed for found in recover(folder.path, SOURCE)] == [0, 1]
    (close,) = folder.closes()
    assert (close.open, close.output_tokens) == (running, 8)


def test_every_epoch_has_its_own_newest_segment(folder: Any, records: Any) -> None:
    for epoch in (1_000_000_000_001, 1_000_000_000_002):
        folder.write(records.open(), epoch=epoch, suffix=OPEN)
    assert [found.num_crashed for found in recover(folder.path, SOURCE)] == [1, 1]


def test_other_writers_segments_are_left_alone(folder: Any, records: Any) -> None:
    folder.write(records.open(), suffix=OPEN, source="gateway-0-1")
    assert recover(folder.path, SOURCE) == []
    assert not folder.is_settled()


def test_a_segment_with_nothing_in_it_leaves_nothing(folder: Any) -> None:
    folder.write(suffix=OPEN)
    recover(folder.path, SOURCE)
    assert folder.names() == []


def test_what_was_never_acknowledged_is_swept(folder: Any, records: Any) -> None:
    for suffix in (".open.tmp", ".seg.tmp"):
        folder.write(records.open(), suffix=suffix)
    assert recover(folder.path, SOURCE) == []
    assert folder.names() == []


def test_an_unreadable_segment_is_set_aside_and_named(folder: Any, records: Any) -> None:
    path = folder.write(records.open(), suffix=OPEN)
    path.write_bytes(b"garbage" * 100)
    (found,) = recover(folder.path, SOURCE)
    assert "not a usage segment" in found.problem
    assert path.with_suffix(CORRUPT).read_bytes() == b"garbage" * 100


class Interrupted(Exception):
    """The process died here."""


def left_behind(folder: Any, records: Any) -> Path:
    """Two segments of a dead writer: one that was not sealed in time, and a newest that is torn and has events open."""
    ended, running = records.open(), records.open()
    folder.write(ended, running, records.close(ended), seq=0, suffix=OPEN)
    newest = folder.write(running, records.progress(running, 7), records.open(), seq=1, suffix=OPEN)
    newest.write_bytes(newest.read_bytes() + b"torn")
    return folder.path


def test_interrupted_at_any_step_and_repeated_it_gives_the_same_bytes(
    folder: Any, records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(folder, records)
    expected_path = tmp_path / "uninterrupted"
    shutil.copytree(folder.path, expected_path)
    recover(expected_path, SOURCE)
    expected = {path.name: path.read_bytes() for path in expected_path.iterdir()}
    assert sorted(Path(name).suffix for name in expected) == [SEALED, SEALED, TORN]

    num_interrupted = 0
    for step in range(40):
        trial = tmp_path / f"step-{step}"
        shutil.copytree(folder.path, trial)
        steps = iter(range(100))

        def counted(real: Any, steps: Any = steps, step: int = step) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(steps) == step:
                    raise Interrupted
                return real(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for owner, name in ((Path, "rename"), (Path, "unlink")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            for name in ("write", "fsync"):
                patch.setattr(f"serving.metering.segments.os.{name}", counted(getattr(__import__("os"), name)))
            try:
                recover(trial, SOURCE)
                break
            except Interrupted:
                num_interrupted += 1
        recover(trial, SOURCE)
        assert {path.name: path.read_bytes() for path in trial.iterdir()} == expected, f"interrupted at step {step}"
    assert num_interrupted >= 8
    assert recover(expected_path, SOURCE) == []


def test_a_lock_is_held_by_one_and_its_epochs_only_grow(folder: Any, records: Any) -> None:
    lock = WriterLock.acquire(folder.path, SOURCE)
    with pytest.raises(JournalLocked, match="being written by another process"):
        WriterLock.acquire(folder.path, SOURCE)
    assert lock.next_epoch(5_000_000_000_000) == 5_000_000_000_000
    assert lock.next_epoch(4_000_000_000_000) == 5_000_000_000_001, "the clock went back"
    folder.write(records.open(), epoch=6_000_000_000_000)
    assert lock.next_epoch(4_000_000_000_000) == 6_000_000_000_001, "a segment of a later life is there"
    lock.release()
    again = WriterLock.acquire(folder.path, SOURCE)
    assert again.next_epoch(1) == 6_000_000_000_002
    again.release()


@pytest.mark.parametrize("source", ["", "-a", "a-", "A", "a/b", "../x", "a b"])
def test_a_source_that_could_leave_its_folder_is_refused(folder: Any, source: str) -> None:
    with pytest.raises(ValueError, match="must be lower-case"):
        WriterLock.acquire(folder.path, source)


def test_names_survive_the_way_through_a_file_name() -> None:
    name = SegmentName("gateway-0-0.small", 1_763_812_800_000, 1_234_567)
    assert SegmentName.of(Path(f"/x/{name.stem}{SEALED}")) == name
    assert SegmentName.of(Path("/x/gateway-0-0.lock")) is None


def test_sealed_bytes_do_not_depend_on_when_recovery_runs(folder: Any, records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder.write(records.open(), suffix=OPEN)
    copy = folder.path.parent / "copy"
    shutil.copytree(folder.path, copy)
    recover(folder.path, SOURCE)
    monkeypatch.setattr("time.time_ns", lambda: 10**18)
    recover(copy, SOURCE)
    sealed = path.with_suffix(SEALED)
    assert sealed.read_bytes() == (copy / sealed.name).read_bytes()
    assert len(decode_segment(sealed.read_bytes()).closes) == 1
