"""Publishing and fetching over real sockets on the emulated AWS, with replication to a second region."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.models import upload
from serving.models.fetch import fetch_release
from serving.models.publish import publish
from tests.serving.models.conftest import AWAY, HOME, make_resources, make_target

pytestmark = pytest.mark.emulated_aws


def test_a_release_is_fetched_from_the_region_it_was_replicated_to(
    ministack_url: str, conversion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PART_BYTES", 5 * 1024 * 1024)
    weights = bytes(range(256)) * (20 * 1024 * 4)  # 20 MiB, so that it goes and comes in parts
    (conversion / "files" / "model.safetensors").write_bytes(weights)
    target = make_target(HOME, AWAY, endpoint_url=ministack_url)
    make_resources(target, replicated=True)
    ref = publish(target, HOME, "small", conversion)
    assert (ref.regions, ref.is_new) == ((HOME, AWAY), True)

    bucket = target.regions[AWAY].artifact_bucket
    fetched = fetch_release(
        target.aws_client("s3", AWAY), bucket, "small", ref.release_id, tmp_path / "cache", part_bytes=1024 * 1024, concurrency=8
    )
    assert (fetched.folder / "model.safetensors").read_bytes() == weights

    again = publish(target, HOME, "small", conversion)
    assert (again.release_id, again.uploaded_bytes, again.is_new) == (ref.release_id, 0, False)
