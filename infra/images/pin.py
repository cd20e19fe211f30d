"""Pins a serving image: writes its digest into the stack file of every region, once every region's registry has it.

A region that is told of an image its own registry lacks starts no pod, and learns so at the worst moment: when it must grow. So
all registries are asked first, and no file changes unless all of them have it. Replication takes minutes; that is no error, only
not yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from botocore.exceptions import BotoCoreError, ClientError

from infra.catalog import Catalog
from infra.config import STACKS_DIR, environment_of, load_catalog, read_stack_file
from infra.errors import ConfigError
from infra.naming import IMAGE_REPOSITORY, LOCAL, PROJECT, StackName
from infra.rules import stack_file_name
from serving.errors import UserError

if TYPE_CHECKING:
    from mypy_boto3_ecr import ECRClient

Role = Literal["gateway", "engine"]
"""`gateway` is gateways and shippers."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Pinned:
    """What one stack file says now."""

    file: str
    role: Role
    before: str
    after: str

    @property
    def has_changed(self) -> bool:
        """Whether it said something else."""
        return self.before != self.after


def pin(
    environment: str,
    digest: str,
    roles: Sequence[Role],
    registry: Callable[[str], ECRClient],
    stacks_dir: Path = STACKS_DIR,
) -> list[Pinned]:
    """Writes `digest` for `roles` into every region's serving stack of `environment`. `registry` gives a region's client.

    Raises:
        UserError: it is no digest, the environment runs none, or a registry lacks it or does not answer. No file has changed.
    """
    if not DIGEST.fullmatch(digest):
        raise UserError(
            f"{digest!r} is no digest: sha256: and 64 hexadecimal digits",
            "a tag can be moved to another image, so stacks take none; `make image` writes the digest to .image/<variant>/digest",
        )
    if environment == LOCAL:
        raise UserError("local runs no image: its stacks name Python environments of this machine", "name another with --env")
    catalog = load_catalog(stacks_dir)
    regions = environment_of(catalog, environment).regions
    texts: dict[Path, str] = {}
    pinned: list[Pinned] = []
    for region in regions:
        stack = StackName(environment, "serving", region)
        read_stack_file(stack, stacks_dir)  # says well what is wrong with the file, if something is
        shown = stack_file_name(stack)
        path = stacks_dir / Path(shown).name
        texts[path] = path.read_text(encoding="utf-8")
        for role in roles:
            begin, end = _place(texts[path], role, shown)
            pinned.append(Pinned(shown, role, texts[path][begin:end], digest))
            texts[path] = f"{texts[path][:begin]}{digest}{texts[path][end:]}"
    missing = [line for region in regions if (line := _absence(catalog, environment, region, digest, registry(region)))]
    if missing:
        raise UserError("\n".join(missing), "push it, or wait for replication; no stack file has changed")
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return pinned


def _place(text: str, role: Role, shown: str) -> tuple[int, int]:
    """Where the digest of `role` stands in a stack file: the text around it, comments included, stays as its authors wrote it."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in ("config", f"{PROJECT}:images", role):
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((value for name, value in pairs if name.value == key), None)
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{shown}: `{PROJECT}:images.{role}` is missing", "add it: its neighbours show the shape")
    return node.start_mark.index, node.end_mark.index


def _absence(catalog: Catalog, environment: str, region: str, digest: str, ecr: ECRClient) -> str:
    """Why `region` cannot run the image; empty if it can."""
    repository = catalog.names(environment).repository(IMAGE_REPOSITORY)
    account = catalog.environments[environment].account_id
    where = f"{region}: repository {repository} of account {account}"
    try:
        ecr.describe_images(registryId=account, repositoryName=repository, imageIds=[{"imageDigest": digest}])
    except ClientError as error:
        match error.response["Error"]["Code"]:
            case "ImageNotFoundException":
                return f"{where} has no image {digest[:19]}…"
            case "RepositoryNotFoundException":
                return f"{where} does not exist; `{environment}.foundation` makes it"
        return f"{where}: {error.response['Error']['Code']}: {error.response['Error']['Message']}"
    except BotoCoreError as error:
        return f"{where}: {error}"
    return ""
