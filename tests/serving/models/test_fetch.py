"""Fetching on moto: ranges, resuming, and every way in which a release can be other than its name says."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from serving.models import fetch as fetching
from serving.models.documents import FetchError, fetch_canaries
from serving.models.fetch import FetchedRelease, fetch_release
from serving.models.files import Progress
from serving.models.manifest import Manifest, ReleaseFile, canaries_key, release_prefix
from serving.models.publish import publish
from serving.models.ranges import FetchStoppedError
from serving.target import Target
from tests.serving.models.conftest import HOME, CountingS3

BUCKET = f"artifacts-{HOME}"
WEIGHTS = bytes(range(256)) * 400
PART_BYTES = 10_000


@pytest.fixture
def release_id(target: Target, s3: CountingS3, conversion: Path) -> str:
    release_id = publish(target, HOME, "small", conversion).release_id
    s3.calls.clear()
    return release_id


def fetch(s3: CountingS3, release_id: str, cache: Path, **options: Any) -> FetchedRelease:
    return fetch_release(s3.client, BUCKET, "small", release_id, cache, **{"part_bytes": PART_BYTES, "concurrency": 4, **options})


def put_manifest(s3: CountingS3, *files: ReleaseFile, model: str = "small") -> str:
    """Writes a manifest that no publisher of ours would, and the objects it names; the release's id."""
    manifest = Manifest(model, "Tiny", "elsewhere", 2048, {}, files)
    prefix = release_prefix("small", manifest.release_id)
    s3.client.put_object(Bucket=BUCKET, Key=f"{prefix}manifest.json", Body=manifest.encode())
    for file in files:
        s3.client.put_object(Bucket=BUCKET, Key=prefix + file.path, Body=b"{}")
    return manifest.release_id


def file_of(path: str, content: bytes = b"{}") -> ReleaseFile:
    return ReleaseFile(path, len(content), hashlib.sha256(content).hexdigest())


def test_every_file_arrives_in_ranges_and_is_verified(s3: CountingS3, release_id: str, tmp_path: Path) -> None:
    seen: list[Progress] = []
    fetched = fetch(s3, release_id, tmp_path, on_progress=seen.append)
    assert fetched.folder == tmp_path / "releases" / "small" / release_id
    assert (fetched.folder / "model.safetensors").read_bytes() == WEIGHTS
    total = sum(file.size_bytes for file in fetched.manifest.files)
    assert (fetched.fetched_bytes, fetched.verified_bytes) == (total, total)
    assert s3.keys("GetObject").count("model.safetensors") == 11  # 102,400 bytes in parts of 10,000
    assert [progress.stage for progress in seen][-1] == "verify"
    assert seen[-2] == Progress("fetch", total, total)
    assert sorted(path.name for path in fetched.folder.iterdir()) == [
        ".lock",
        ".verified",
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_a_verified_copy_is_taken_as_it_is_without_asking_the_bucket(s3: CountingS3, release_id: str, tmp_path: Path) -> None:
    fetch(s3, release_id, tmp_path)
    s3.calls.clear()
    again = fetch(s3, release_id, tmp_path)
    assert (s3.calls, again.fetched_bytes, again.verified_bytes) == ([], 0, 0)


def test_a_copy_that_was_touched_since_is_hashed_again_and_mended(s3: CountingS3, release_id: str, tmp_path: Path) -> None:
    folder = fetch(s3, release_id, tmp_path).folder
    garbled = bytearray(WEIGHTS)
    garbled[5000] ^= 1
    (folder / "model.safetensors").write_bytes(garbled)
    s3.calls.clear()
    again = fetch(s3, release_id, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert set(s3.keys("GetObject")) == {"model.safetensors"}
    assert again.fetched_bytes == len(WEIGHTS)


def test_after_a_boot_everything_is_hashed_again(
    s3: CountingS3, release_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that never reached the disk before a crash read as zeros under an unchanged time."""
    fetch(s3, release_id, tmp_path)
    (tmp_path / "boot_id").write_text("another boot\n")
    monkeypatch.setattr(fetching, "_BOOT_ID", tmp_path / "boot_id")
    again = fetch(s3, release_id, tmp_path)
    assert (again.fetched_bytes, again.verified_bytes > 0) == (0, True)


def test_a_fetch_that_was_stopped_goes_on_where_it_was(s3: CountingS3, release_id: str, tmp_path: Path) -> None:
    stop = threading.Event()
    asked: list[str] = []

    def stop_after_five(params: dict[str, Any], **_: Any) -> None:
        asked.append(params["Key"])
        if len(asked) > 5:
            stop.set()

    s3.before("GetObject", stop_after_five)
    with pytest.raises(FetchStoppedError):
        fetch(s3, release_id, tmp_path, stop=stop, concurrency=1)
    again = fetch(s3, release_id, tmp_path)
    assert 0 < again.fetched_bytes < again.verified_bytes
    assert (again.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_parts_of_another_size_are_not_mixed(s3: CountingS3, release_id: str, tmp_path: Path) -> None:
    stop = threading.Event()
    s3.before("GetObject", lambda params, **_: stop.set() if "bytes=50000-" in params.get("Range", "") else None)
    with pytest.raises(FetchStoppedError):
        fetch(s3, release_id, tmp_path, stop=stop, concurrency=1)
    again = fetch(s3, release_id, tmp_path, part_bytes=7_000)
    assert (again.folder / "model.safetensors").read_bytes() == WEIGHTS


def test_two_files_with_equal_content_both_arrive(s3: CountingS3, tmp_path: Path) -> None:
    release_id = put_manifest(s3, file_of("a.json"), file_of("b/a.json"), file_of("c/a.json"))
    folder = fetch(s3, release_id, tmp_path).folder
    assert [(folder / path).read_text() for path in ("a.json", "b/a.json", "c/a.json")] == ["{}"] * 3


def test_an_empty_file_arrives(s3: CountingS3, tmp_path: Path) -> None:
    release_id = put_manifest(s3, file_of("empty.txt", b""))
    assert (fetch(s3, release_id, tmp_path).folder / "empty.txt").read_bytes() == b""


def replace(s3: CountingS3, release_id: str, path: str, content: bytes) -> None:
    s3.client.put_object(Bucket=BUCKET, Key=release_prefix("small", release_id) + path, Body=content)


def test_a_corrupt_object_is_fetched_twice_and_then_named(s3: CountingS3, release_id: str, tmp_path: Path) -> None:
    garbled = bytearray(WEIGHTS)
    garbled[77] ^= 1
    replace(s3, release_id, "model.safetensors", bytes(garbled))
    with pytest.raises(FetchError, match=rf"corrupt, twice .*releases/small/{release_id}/model\.safetensors"):
        fetch(s3, release_id, tmp_path)
    assert s3.keys("GetObject").count("model.safetensors") == 22
    folder = tmp_path / "releases" / "small" / release_id
    assert not (folder / ".verified").exists()
    assert not (folder / "model.safetensors").exists(), "nothing that is wrong stays to be found by an engine"


def test_a_corrupt_object_that_was_mended_in_between_is_no_failure(s3: CountingS3, release_id: str, tmp_path: Path) -> None:
    replace(s3, release_id, "config.json", b"[]")

    def mend(progress: Progress) -> None:
        if progress.stage == "verify":
            replace(s3, release_id, "config.json", b"{}")

    fetched = fetch(s3, release_id, tmp_path, on_progress=mend)
    assert (fetched.folder / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("content", [WEIGHTS[:-1], WEIGHTS + b"x", b""], ids=["truncated", "too long", "empty"])
def test_an_object_of_another_length_is_named_with_both_lengths(
    s3: CountingS3, release_id: str, tmp_path: Path, content: bytes
) -> None:
    replace(s3, release_id, "model.safetensors", content)
    with pytest.raises(FetchError, match=r"model\.safetensors"):
        fetch(s3, release_id, tmp_path)


def test_an_object_that_is_not_there_is_named(s3: CountingS3, release_id: str, tmp_path: Path) -> None:
    s3.client.delete_object(Bucket=BUCKET, Key=release_prefix("small", release_id) + "config.json")
    with pytest.raises(FetchError, match=r"config\.json: not there \(yet\)"):
        fetch(s3, release_id, tmp_path)


def test_a_release_that_has_not_been_replicated_yet_says_so(s3: CountingS3, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"manifest\.json: not there \(yet\)"):
        fetch(s3, "0" * 64, tmp_path)


def test_a_manifest_whose_digest_is_not_the_releases_name_is_refused(s3: CountingS3, release_id: str, tmp_path: Path) -> None:
    replace(s3, release_id, "manifest.json", b'{"model": "small"}')
    with pytest.raises(FetchError, match="its digest is"):
        fetch(s3, release_id, tmp_path)


@pytest.mark.parametrize("path", ["../escaped.json", "/tmp/escaped.json", "a/../../../escaped.json"])
def test_a_path_out_of_the_release_is_refused_before_anything_is_written(s3: CountingS3, tmp_path: Path, path: str) -> None:
    release_id = put_manifest(s3, file_of("fine.json"), file_of(path))
    with pytest.raises(FetchError, match="not a plain relative path"):
        fetch(s3, release_id, tmp_path / "cache")
    assert [found.name for found in tmp_path.rglob("*.json")] == []


@pytest.mark.parametrize("path", ["pytorch_model.bin", "modeling_tiny.py", "weights.pkl"])
def test_a_pickle_or_a_program_is_refused(s3: CountingS3, tmp_path: Path, path: str) -> None:
    with pytest.raises(FetchError, match="kind that is refused"):
        fetch(s3, put_manifest(s3, file_of(path)), tmp_path)


def test_a_manifest_of_another_model_is_refused(s3: CountingS3, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="for large, must be for small"):
        fetch(s3, put_manifest(s3, file_of("a.json"), model="large"), tmp_path)


def test_a_manifest_that_names_a_file_twice_is_refused(s3: CountingS3, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="twice"):
        fetch(s3, put_manifest(s3, file_of("a.json"), file_of("a.json")), tmp_path)


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(
    s3: CountingS3, release_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(FetchError, match="GB are free"):
        fetch(s3, release_id, tmp_path)
    assert s3.keys("GetObject") == ["manifest.json"]


def test_a_disk_that_fills_up_is_one_line(
    s3: CountingS3, release_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(FetchError, match="no space left in"):
        fetch(s3, release_id, tmp_path)


def test_processes_that_want_the_same_release_take_turns(s3: CountingS3, release_id: str, tmp_path: Path) -> None:
    results: list[FetchedRelease] = []
    threads = [threading.Thread(target=lambda: results.append(fetch(s3, release_id, tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.fetched_bytes > 0 for result in results) == [False, False, True]


def test_canaries_are_found_by_their_key(s3: CountingS3, release_id: str) -> None:
    exact = {"key": "vllm-9.9-cpu-tp1", "made_by": "a test", "prompts": [{"prompt": "a", "expected": "b", "max_tokens": 1}]}
    key = canaries_key("small", release_id, "vllm-9.9-cpu-tp1")
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=msgspec.json.encode(exact))
    assert set(fetch_canaries(s3.client, BUCKET, "small", release_id)) == {"reference", "vllm-9.9-cpu-tp1"}


def test_a_release_without_canaries_cannot_be_proven(s3: CountingS3) -> None:
    with pytest.raises(FetchError, match="holds no canary prompts"):
        fetch_canaries(s3.client, BUCKET, "small", put_manifest(s3, file_of("a.json")))
