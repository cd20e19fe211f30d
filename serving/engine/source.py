"""Where an engine's release comes from: the registry says which, the region's bucket has it. Calls block."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from serving.models.documents import FetchError, fetch_canaries
from serving.models.fetch import FetchedRelease, fetch_release
from serving.models.files import Progress
from serving.models.manifest import REFERENCE_CANARIES, Canaries
from serving.models.registry import resolve
from serving.settings import EngineSettings

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

MIB = 1024 * 1024
UNREACHABLE = (BotoCoreError, ClientError)
NOT_OBTAINED = (FetchError, *UNREACHABLE)


@dataclass(frozen=True)
class Obtained:
    """A release on this machine, verified, with what proves an engine that serves it."""

    release_id: str
    fetched: FetchedRelease
    canaries: dict[str, Canaries]

    def as_found(self) -> Obtained:
        """The same for another start, to which it costs nothing."""
        return replace(self, fetched=replace(self.fetched, fetch_s=0.0, fetched_bytes=0, verify_s=0.0, verified_bytes=0))

    def canaries_for(self, key: str) -> Canaries:
        """The canaries that are exact for `key`, or else those that hold on any engine."""
        by_preference = (self.canaries.get(key), self.canaries.get(REFERENCE_CANARIES), *self.canaries.values())
        return next(canaries for canaries in by_preference if canaries and canaries.prompts)


@dataclass(frozen=True)
class ReleaseSource:
    """Registry, bucket and cache of one engine pod."""

    settings: EngineSettings
    dynamodb: DynamoDBClient
    s3: S3Client
    cache: Path

    def current(self) -> str:
        """Id of the release that the model class stands for; the heaviest, where there are several.

        Raises:
            AliasNotFoundError: nothing has been published for it.
            BotoCoreError, ClientError: the registry does not answer.
        """
        alias = resolve(self.dynamodb, self.settings.registry_table, self.settings.model_class)
        return max(alias.releases, key=lambda release: (release.weight, release.release_id)).release_id

    def obtain(self, release_id: str, on_progress: Callable[[Progress], None], stop: threading.Event) -> Obtained:
        """The release, fetched and verified, and its canaries.

        Raises:
            FetchError: the bucket does not have it, or not as its name says.
            BotoCoreError, ClientError: the bucket does not answer.
        """
        settings = self.settings
        canaries = fetch_canaries(self.s3, settings.artifact_bucket, settings.model_class, release_id)
        fetched = fetch_release(
            self.s3,
            settings.artifact_bucket,
            settings.model_class,
            release_id,
            self.cache,
            part_bytes=settings.fetch_part_mib * MIB,
            concurrency=settings.fetch_concurrency,
            on_progress=on_progress,
            stop=stop,
        )
        return Obtained(release_id, fetched, canaries)
