"""What may lie in a release."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.models.files import ReleaseFileError, check_release_path, describe_folder
from serving.models.manifest import Manifest, ReleaseFile, canaries_key, release_prefix


@pytest.mark.parametrize(
    "path", ["model.safetensors", "model-00001-of-00004.safetensors", "tokenizer/vocab.json", "chat_template.jinja"]
)
def test_weights_and_data_are_allowed(path: str) -> None:
    check_release_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "../outside.json",
        "a/../../outside.json",
        "/etc/passwd.json",
        "a//b.json",
        "./a.json",
        "a\\..\\b.json",
        "a\n.json",
        "",
        ".verified",
        "a/.hidden.json",
        "canaries/reference.json",
        "manifest.json",
        "a" * 256 + ".json",
    ],
)
def test_a_path_that_leaves_the_release_or_takes_a_reserved_name_is_refused(path: str) -> None:
    with pytest.raises(ReleaseFileError):
        check_release_path(path)


@pytest.mark.parametrize(
    "path", ["pytorch_model.bin", "model.pt", "weights.pkl", "modeling_tiny.py", "run.sh", "README", "x.json.exe"]
)
def test_a_file_that_runs_code_when_it_is_loaded_is_refused(path: str) -> None:
    with pytest.raises(ReleaseFileError, match="kind that is refused"):
        check_release_path(path)


def test_a_folder_is_described_by_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.json").write_text("{}")
    (tmp_path / "a.txt").write_text("")
    assert describe_folder(tmp_path) == (
        ReleaseFile("a.txt", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ReleaseFile("b/c.json", 2, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
    )


def test_a_folder_with_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ReleaseFileError, match=r"model\.bin"):
        describe_folder(tmp_path)


def test_the_name_of_a_release_depends_on_its_content_and_not_on_the_order_of_files() -> None:
    files = (ReleaseFile("b.json", 1, "b" * 64), ReleaseFile("a.json", 1, "a" * 64))
    one = Manifest("small", "Tiny", "pypi:tiny==1", 2048, {"dtype": "bfloat16"}, files)
    two = Manifest("small", "Tiny", "pypi:tiny==1", 2048, {"dtype": "bfloat16"}, files[::-1])
    other = Manifest("small", "Tiny", "pypi:tiny==1", 2048, {"dtype": "float32"}, files)
    assert one.release_id == two.release_id != other.release_id


def test_keys_are_pinned_because_live_buckets_hold_them() -> None:
    assert release_prefix("small", "abc") == "releases/small/abc/"
    assert canaries_key("small", "abc", "reference") == "releases/small/abc/canaries/reference.json"
