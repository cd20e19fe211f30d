"""A digest is pinned in every region, and only if every region's registry has it: on moto's ECR, which answers as AWS does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws

from infra.config import STACKS_DIR, load_catalog, read_stack_file
from infra.images.pin import pin
from infra.naming import IMAGE_REPOSITORY, StackName
from serving.errors import UserError

REGIONS = ("us-east-2", "us-west-2")
NOWHERE = f"sha256:{'ab' * 32}"


@pytest.fixture
def stacks_dir(tmp_path: Path) -> Path:
    shutil.copytree(STACKS_DIR, tmp_path / "stacks")
    return tmp_path / "stacks"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, stacks_dir: Path) -> Iterator[None]:
    """The account of `prod`, with an empty repository in each of its regions."""
    catalog = load_catalog(stacks_dir)
    monkeypatch.setenv("MOTO_ACCOUNT_ID", catalog.environments["prod"].account_id)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with mock_aws():
        for region in REGIONS:
            registry(region).create_repository(repositoryName=catalog.names("prod").repository(IMAGE_REPOSITORY))
        yield


def registry(region: str) -> Any:
    return boto3.client("ecr", region_name=region)


def push(region: str) -> str:
    """Digest of the image that is now in the repository of `region`, and the same in each."""
    manifest = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": []})
    digest = f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}"
    repository = registry(region).describe_repositories()["repositories"][0]["repositoryName"]
    registry(region).put_image(repositoryName=repository, imageManifest=manifest, imageDigest=digest, imageTag="any")
    return digest


def texts(stacks_dir: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(stacks_dir.iterdir())}


def images(stacks_dir: Path, region: str) -> dict[str, str]:
    found: dict[str, str] = read_stack_file(StackName("prod", "serving", region), stacks_dir)["images"]
    return found


@pytest.mark.usefixtures("aws")
def test_an_image_that_every_region_has_is_pinned_in_each_and_nothing_else_in_the_files_changes(stacks_dir: Path) -> None:
    before = texts(stacks_dir)
    (digest,) = {push(region) for region in REGIONS}
    pinned = pin("prod", digest, ("gateway", "engine"), registry, stacks_dir)
    assert [(item.file, item.role, item.after) for item in pinned] == [
        (f"stacks/Pulumi.prod.serving.{region}.yaml", role, digest) for region in REGIONS for role in ("gateway", "engine")
    ]
    assert all(item.has_changed for item in pinned)
    assert [images(stacks_dir, region) for region in REGIONS] == [{"gateway": digest, "engine": digest}] * 2
    unpinned = yaml.safe_load(before["Pulumi.prod.serving.us-east-2.yaml"])["config"]["flotilla:images"]["engine"]
    assert {name: text.replace(digest, unpinned) for name, text in texts(stacks_dir).items()} == before, "comments stay"
    assert not any(item.has_changed for item in pin("prod", digest, ("gateway", "engine"), registry, stacks_dir))


@pytest.mark.usefixtures("aws")
def test_one_role_is_pinned_alone(stacks_dir: Path) -> None:
    before = images(stacks_dir, "us-west-2")
    (digest,) = {push(region) for region in REGIONS}
    pin("prod", digest, ("engine",), registry, stacks_dir)
    assert images(stacks_dir, "us-west-2") == {**before, "engine": digest}


@pytest.mark.usefixtures("aws")
def test_an_image_that_one_region_lacks_is_pinned_in_none(stacks_dir: Path) -> None:
    before = texts(stacks_dir)
    digest = push("us-east-2")
    with pytest.raises(UserError) as caught:
        pin("prod", digest, ("gateway", "engine"), registry, stacks_dir)
    (line,) = caught.value.message.splitlines()
    assert line.startswith("us-west-2: repository flotilla/prod/serving") and "has no image" in line
    assert texts(stacks_dir) == before


@pytest.mark.usefixtures("aws")
def test_every_region_without_the_image_or_the_repository_is_named(stacks_dir: Path) -> None:
    registry("us-west-2").delete_repository(repositoryName="flotilla/prod/serving", force=True)
    with pytest.raises(UserError) as caught:
        pin("prod", NOWHERE, ("engine",), registry, stacks_dir)
    lacking, absent = caught.value.message.splitlines()
    assert "us-east-2" in lacking and "has no image" in lacking
    assert "us-west-2" in absent and "prod.foundation" in absent


REFUSED = [
    ("a tag", "prod", "latest", "is no digest"),
    ("a repository and a tag", "prod", "flotilla-serving:1.0", "is no digest"),
    ("half a digest", "prod", "sha256:abc", "is no digest"),
    ("local", "local", NOWHERE, "local runs no image"),
    ("an environment that is not there", "nowhere", NOWHERE, "no environment 'nowhere'"),
]


@pytest.mark.parametrize(("environment", "digest", "told"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_pinned_is_refused_before_a_registry_is_asked(
    stacks_dir: Path, environment: str, digest: str, told: str
) -> None:
    asked: list[str] = []

    def no_registry(region: str) -> Any:
        asked.append(region)

    with pytest.raises(UserError, match=told):
        pin(environment, digest, ("gateway",), no_registry, stacks_dir)
    assert asked == []


def test_a_stack_file_without_the_key_is_named(stacks_dir: Path) -> None:
    path = stacks_dir / "Pulumi.prod.serving.us-west-2.yaml"
    path.write_text(path.read_text().replace("    engine: sha256", "    motor: sha256"))
    with pytest.raises(UserError, match=r"us-west-2\.yaml: `flotilla:images\.engine` is missing"):
        pin("prod", NOWHERE, ("engine",), registry, stacks_dir)
