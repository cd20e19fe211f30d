"""Which Flotilla a command speaks to: the region on this machine, or a deployed one.

For `local` everything stands in the state folder's `access.json`, which `flotilla up` writes. For any other environment the
addresses and keys come from FLOTILLA_URL, FLOTILLA_ADMIN_URL, FLOTILLA_ADMIN_KEY and FLOTILLA_API_KEY, the names from the
admin API, and AWS credentials from boto3's standard chain.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from serving.errors import UserError
from serving.http_client import open_url
from serving.settings import Tables

if TYPE_CHECKING:
    from botocore.client import BaseClient

LOCAL = "local"
REGION_TIMEOUT_S = 10.0


class RegionTarget(msgspec.Struct, frozen=True):
    """One region of a target."""

    base_url: str
    """OpenAI base URL, ending in `/v1`."""
    admin_url: str
    artifact_bucket: str
    tables: dict[str, str]
    archive_bucket: str = ""
    """Empty where what wrote `access.json` did not know it yet."""


class Target(msgspec.Struct, frozen=True):
    """Where commands go. `aws_endpoint_url` is empty for real AWS."""

    environment: str
    home_region: str
    admin_key: str
    api_key: str
    regions: dict[str, RegionTarget]
    aws_endpoint_url: str = ""

    def region(self, name: str | None = None) -> tuple[str, RegionTarget]:
        """The region `name`, or the home region, or the only one that is up.

        Raises:
            UserError: no such region is up.
        """
        if name is None:
            name = self.home_region if self.home_region in self.regions else next(iter(self.regions), "")
        if name not in self.regions:
            up = ", ".join(self.regions) or "none"
            raise UserError(
                f"region {name or '?'} of {self.environment} is not up (up: {up})", "start it with `flotilla up --region`"
            )
        return name, self.regions[name]

    def aws_client(self, service: str, region: str) -> Any:
        """A boto3 client for `service` in `region`, with timeouts that a person can wait for."""
        return aws_client(service, region, self.aws_endpoint_url)


def aws_client(service: str, region: str, endpoint_url: str = "") -> BaseClient:
    """A boto3 client; an `endpoint_url` means the emulated AWS, which takes any credentials and a path-style S3 address."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=3,
        read_timeout=30,
        retries={"max_attempts": 3, "mode": "standard"},
        max_pool_connections=64,
        s3={"addressing_style": "path"} if endpoint_url else None,
    )
    if not endpoint_url:
        return boto3.client(service, region_name=region, config=config)  # type: ignore[call-overload,no-any-return]
    return boto3.client(  # type: ignore[call-overload,no-any-return]
        service,
        region_name=region,
        config=config,
        endpoint_url=endpoint_url,
        aws_access_key_id="flotilla",
        aws_secret_access_key="flotilla",  # noqa: S106 (the emulated AWS takes any)
    )


def state_dir() -> Path:
    """Folder of the local run: FLOTILLA_STATE, or `.flotilla/local` of the working directory."""
    return Path(os.environ.get("FLOTILLA_STATE") or Path(".flotilla") / LOCAL).absolute()


def load_target(environment: str = LOCAL) -> Target:
    """The target of `environment`.

    Raises:
        UserError: nothing is up, or the addresses of a deployed environment are not set.
    """
    if environment == LOCAL:
        path = state_dir() / "access.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Target)
        except FileNotFoundError as error:
            raise UserError("no local region is up", "start one with `flotilla up`") from error
        except (OSError, msgspec.MsgspecError) as error:
            raise UserError(f"{path}: cannot be read: {error}", "run `flotilla up` again: it writes the file anew") from error
    return _deployed_target(environment)


def _deployed_target(environment: str) -> Target:
    names = ("FLOTILLA_URL", "FLOTILLA_ADMIN_URL", "FLOTILLA_ADMIN_KEY")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"environment {environment} needs {', '.join(missing)}", "set them, or leave out --env for the local region"
        )
    base_url, admin_url, admin_key = (os.environ[name] for name in names)
    with open_url("GET", f"{admin_url.rstrip('/')}/admin/region", admin_key, timeout_s=REGION_TIMEOUT_S) as answer:
        region = json.loads(answer.read())
    return Target(
        environment=environment,
        home_region=region["home_region"],
        admin_key=admin_key,
        api_key=os.environ.get("FLOTILLA_API_KEY", ""),
        regions={
            region["region"]: RegionTarget(
                base_url=base_url.rstrip("/"),
                admin_url=admin_url.rstrip("/"),
                artifact_bucket=region["artifact_bucket"],
                tables=Tables.model_validate(region["tables"]).model_dump(),
                archive_bucket=region.get("archive_bucket", ""),
            )
        },
    )
