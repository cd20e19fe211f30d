"""Publishing on moto: what is sent, in which order, and what a second attempt does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.models import publish as publishing
from serving.models import upload
from serving.models.conversions import ConversionFailedError, converted
from serving.models.documents import fetch_canaries, fetch_manifest
from serving.models.files import Progress
from serving.models.publish import PublishError, publish
from serving.models.registry import AliasConflictError, list_releases, resolve
from serving.target import Target
from tests.serving.models.conftest import AWAY, HOME, TABLE, CountingS3, make_resources, make_target

BUCKET = f"artifacts-{HOME}"
UPLOADS = ("PutObject", "CreateMultipartUpload")


def test_files_come_first_then_canaries_and_the_manifest_last(target: Target, s3: CountingS3, conversion: Path) -> None:
    publish(target, HOME, "small", conversion)
    assert set(s3.keys(*UPLOADS)[:-2]) == {"model.safetensors", "config.json", "tokenizer.json"}
    assert s3.keys(*UPLOADS)[-2:] == ["reference.json", "manifest.json"]


def test_what_was_published_can_be_fetched_and_is_registered(target: Target, s3: CountingS3, conversion: Path) -> None:
    ref = publish(target, HOME, "small", conversion)
    manifest = fetch_manifest(s3.client, BUCKET, "small", ref.release_id)
    assert manifest.release_id == ref.release_id
    assert fetch_canaries(s3.client, BUCKET, "small", ref.release_id)["reference"].prompts[0].expected == " three"
    dynamodb = target.aws_client("dynamodb", HOME)
    assert [release.release_id for release in resolve(dynamodb, TABLE, "small").releases] == [ref.release_id]
    (record,) = list_releases(dynamodb, TABLE, "small")
    assert (record.model_name, record.num_files, record.size_bytes) == ("Tiny-Instruct", 3, ref.size_bytes)
    assert (ref.is_new, ref.uploaded_bytes, ref.alias_revision, ref.regions) == (True, ref.size_bytes, 1, (HOME,))


def test_equal_content_is_the_same_release_and_nothing_is_sent_again(target: Target, s3: CountingS3, conversion: Path) -> None:
    first = publish(target, HOME, "small", conversion)
    s3.calls.clear()
    second = publish(target, HOME, "small", conversion)
    assert s3.keys(*UPLOADS) == []
    assert (second.release_id, second.uploaded_bytes, second.is_new, second.alias_revision) == (first.release_id, 0, False, 1)


def test_other_content_is_another_release_beside_the_first(target: Target, s3: CountingS3, conversion: Path) -> None:
    first = publish(target, HOME, "small", conversion)
    (conversion / "files" / "config.json").write_text('{"changed": true}')
    second = publish(target, HOME, "small", conversion)
    assert second.release_id != first.release_id
    assert second.alias_revision == 2
    assert fetch_manifest(s3.client, BUCKET, "small", first.release_id).release_id == first.release_id


def test_a_publish_cut_off_halfway_sends_only_the_rest_the_next_time(
    target: Target, s3: CountingS3, conversion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = upload._put
    sent: list[str] = []

    def put_one_then_fail(*arguments: Any) -> None:
        if sent:
            raise ConnectionError("the network went away")
        whole(*arguments)
        sent.append(arguments[4].path)

    monkeypatch.setattr(upload, "_put", put_one_then_fail)
    monkeypatch.setattr(upload, "CONCURRENCY", 1)
    with pytest.raises(ConnectionError):
        publish(target, HOME, "small", conversion)
    assert list_releases(target.aws_client("dynamodb", HOME), TABLE, "small") == ()
    monkeypatch.setattr(upload, "_put", whole)
    s3.calls.clear()
    publish(target, HOME, "small", conversion)
    assert set(s3.keys(*UPLOADS)) == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "reference.json",
        "manifest.json",
    } - set(sent)


def test_a_large_file_goes_in_parts_and_comes_back_whole(
    target: Target, s3: CountingS3, conversion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PART_BYTES", 5 * 1024 * 1024)
    weights = bytes(range(256)) * (12 * 1024 * 4)  # 12 MiB: two parts of 5 MiB and one of 2
    (conversion / "files" / "model.safetensors").write_bytes(weights)
    ref = publish(target, HOME, "small", conversion)
    assert s3.keys("UploadPart") == ["model.safetensors"] * 3
    key = f"releases/small/{ref.release_id}/model.safetensors"
    assert s3.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == weights
    s3.calls.clear()
    assert publish(target, HOME, "small", conversion).uploaded_bytes == 0


def test_a_failed_upload_in_parts_leaves_no_parts_behind(
    target: Target, s3: CountingS3, conversion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PART_BYTES", 64 * 1024)  # below S3's least part size, which it tells at completion
    with pytest.raises(PublishError, match="EntityTooSmall"):
        publish(target, HOME, "small", conversion)
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=BUCKET)


def test_bytes_that_are_wrong_in_the_bucket_are_found_before_the_manifest_is_written(
    target: Target, s3: CountingS3, conversion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = upload._put

    def put_garbled(client: Any, bucket: str, prefix: str, folder: Path, file: Any, counter: Any) -> None:
        whole(client, bucket, prefix, folder, file, counter)
        if file.path == "config.json":
            client.put_object(Bucket=bucket, Key=prefix + file.path, Body=b"[]", Metadata={"sha256": file.sha256})

    monkeypatch.setattr(upload, "_put", put_garbled)
    with pytest.raises(PublishError, match=r"not the bytes that were sent: .*config\.json"):
        publish(target, HOME, "small", conversion)
    assert "manifest.json" not in s3.keys(*UPLOADS)


def test_a_pickle_among_the_files_is_refused_before_anything_is_sent(target: Target, s3: CountingS3, conversion: Path) -> None:
    (conversion / "files" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(PublishError, match=r"pytorch_model\.bin"):
        publish(target, HOME, "small", conversion)
    assert s3.keys(*UPLOADS) == []


def test_a_faster_publisher_is_told_from_success(
    target: Target, s3: CountingS3, conversion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(target, HOME, "small", conversion)
    stale = resolve(target.aws_client("dynamodb", HOME), TABLE, "small")
    (conversion / "files" / "config.json").write_text("[1]")
    publish(target, HOME, "small", conversion)
    (conversion / "files" / "config.json").write_text("[2]")
    monkeypatch.setattr(publishing, "resolve", lambda *_: stale)
    with pytest.raises(AliasConflictError):
        publish(target, HOME, "small", conversion)


def test_a_replica_that_does_not_arrive_is_an_error_that_says_what_to_do(
    moto: None, conversion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto keeps a replication configuration and copies nothing, as S3 does with objects that are older than it."""
    monkeypatch.setattr(publishing, "LOCAL_REPLICA_TIMEOUT_S", 0.3)
    target = make_target(HOME, AWAY)
    make_resources(target, replicated=True)
    with pytest.raises(PublishError, match=f"4 of 4 objects of the release did not reach {AWAY}") as caught:
        publish(target, HOME, "small", conversion)
    assert f"--region {AWAY}" in caught.value.hint
    assert list_releases(target.aws_client("dynamodb", HOME), TABLE, "small") == (), "not registered before it is everywhere"


def test_a_bucket_that_is_not_there_is_one_line(target: Target, conversion: Path) -> None:
    target.aws_client("s3", HOME).delete_bucket(Bucket=BUCKET)
    with pytest.raises(PublishError, match=f"publishing small to {HOME}: ") as caught:
        publish(target, HOME, "small", conversion)
    assert "\n" not in caught.value.message


def fake_engine_python(tmp_path: Path, script: str) -> Path:
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)
    return path


def test_progress_of_the_converter_is_passed_on_and_its_folder_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        json.dumps({"event": "progress", "stage": "convert", "done": 1, "total": 2, "unit": "steps", "detail": "dequantising"}),
        "a library that talks",
        json.dumps({"event": "done", "folder": "/somewhere", "reused": False}),
    ]
    interpreter = fake_engine_python(tmp_path, f"print({chr(10).join(lines)!r})")
    monkeypatch.setenv("FLOTILLA_ENGINE_PYTHON", str(interpreter))
    seen: list[Progress] = []
    assert converted("smollm2", seen.append) == Path("/somewhere")
    assert seen == [Progress("convert", 1, 2, "steps", "dequantising")]


FAILURES = [
    ("an error that it reports", 'print(\'{"event": "error", "message": "no weights", "hint": ""}\')', "no weights"),
    ("a crash", "raise SystemExit('MemoryError: out of memory')", "MemoryError: out of memory"),
    ("an end without a word", "import os; os._exit(9)", "exit status 9"),
]


@pytest.mark.parametrize(("script", "message"), [case[1:] for case in FAILURES], ids=[case[0] for case in FAILURES])
def test_a_converter_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str) -> None:
    monkeypatch.setenv("FLOTILLA_ENGINE_PYTHON", str(fake_engine_python(tmp_path, script)))
    with pytest.raises(ConversionFailedError, match=message) as caught:
        converted("smollm2", lambda _: None)
    assert "\n" not in caught.value.message


def test_an_absent_engine_environment_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOTILLA_ENGINE_PYTHON", str(tmp_path / "nowhere"))
    with pytest.raises(ConversionFailedError, match="no engine environment") as caught:
        converted("smollm2", lambda _: None)
    assert "make setup" in caught.value.hint
