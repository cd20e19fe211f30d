"""The release of each model that is served now, as far as the gateway needs it: its identity, window, tokenizer and template.

The registry says which release a class has (the heaviest, where there are several); the release's small files come from the
region's bucket and are believed only when manifest and files have the digests they are named by. A background task looks
every few seconds. While the registry or the bucket does not answer, the last release known goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from serving.gateway.metrics import Metrics
from serving.gateway.prompts import PromptCounter, UnusableTemplate, prompt_counter
from serving.models.documents import FetchError, fetch_manifest
from serving.models.manifest import ReleaseFile, release_prefix
from serving.models.registry import AliasNotFoundError, resolve

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

log = structlog.get_logger()

REFRESH_S = 3.0
_MAX_FILE_BYTES = 64 * 1024 * 1024
_TOKENIZER, _CONFIG, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"


_Unreadable = (BotoCoreError, ClientError, FetchError, AliasNotFoundError)


class BadRelease(Exception):
    """The release's files are not those of its manifest, or prompts cannot be counted with them."""


@dataclass(frozen=True)
class LoadedRelease:
    """A release that prompts can be counted with."""

    release_id: str
    context_window_tokens: int
    counter: PromptCounter


class ReleaseReader:
    """Reads registry and bucket. Calls block."""

    def __init__(self, *, dynamodb: DynamoDBClient, registry_table: str, s3: S3Client, bucket: str) -> None:
        self._dynamodb = dynamodb
        self._registry_table = registry_table
        self._s3 = s3
        self._bucket = bucket

    def current(self, model_class: str) -> str:
        """Id of the class's heaviest release.

        Raises:
            AliasNotFoundError: nothing has been published for it.
        """
        alias = resolve(self._dynamodb, self._registry_table, model_class)
        return max(alias.releases, key=lambda release: (release.weight, release.release_id)).release_id

    def load(self, model_class: str, release_id: str) -> LoadedRelease:
        """The release, verified.

        Raises:
            FetchError: it is not in the bucket, or not the one that was named.
            BadRelease: it cannot be counted with.
        """
        manifest = fetch_manifest(self._s3, self._bucket, model_class, release_id)
        listed = {file.path: file for file in manifest.files}
        missing = [name for name in (_TOKENIZER, _CONFIG) if name not in listed]
        if missing:
            raise BadRelease(f"release {release_id} has no {', '.join(missing)}")
        prefix = release_prefix(model_class, release_id)
        files = {name: self._fetch(prefix, listed[name]) for name in (_TOKENIZER, _CONFIG, _TEMPLATE) if name in listed}
        try:
            counter = prompt_counter(files[_TOKENIZER], files[_CONFIG], files.get(_TEMPLATE))
        except (UnusableTemplate, ValueError) as error:
            raise BadRelease(f"release {release_id}: {error}") from error
        return LoadedRelease(release_id, manifest.context_window_tokens, counter)

    def _fetch(self, prefix: str, file: ReleaseFile) -> bytes:
        where = f"s3://{self._bucket}/{prefix}{file.path}"
        if file.size_bytes > _MAX_FILE_BYTES:
            raise BadRelease(f"{where} has {file.size_bytes} bytes; at most {_MAX_FILE_BYTES} are read")
        content = self._s3.get_object(Bucket=self._bucket, Key=prefix + file.path)["Body"].read(file.size_bytes + 1)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise BadRelease(f"{where} does not have the digest in its manifest")
        return content


class ReleaseBook:
    """What is served now, by class, kept fresh by `run`."""

    def __init__(self, reader: ReleaseReader, model_classes: Sequence[str], metrics: Metrics) -> None:
        self._reader = reader
        self._metrics = metrics
        self._model_classes = tuple(model_classes)
        self._loaded: dict[str, LoadedRelease] = {}
        self._complaints: dict[str, str] = {}

    def get(self, model_class: str) -> LoadedRelease | None:
        """The class's release; None until the first was read."""
        return self._loaded.get(model_class)

    async def run(self) -> None:
        """Look for new releases until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """Look once. A failure leaves everything as it is; it is logged when it is new."""
        for model_class in self._model_classes:
            try:
                await asyncio.to_thread(self._refresh_one, model_class)
                self._complaints.pop(model_class, None)
            except (*_Unreadable, BadRelease) as error:
                complaint = f"{type(error).__name__}: {error}"
                if self._complaints.get(model_class) != complaint:
                    self._complaints[model_class] = complaint
                    log.warning("release_unreadable", model=model_class, error=complaint)

    def _refresh_one(self, model_class: str) -> None:
        release_id = self._reader.current(model_class)
        loaded = self._loaded.get(model_class)
        if loaded is not None and loaded.release_id == release_id:
            return
        loaded = self._loaded[model_class] = self._reader.load(model_class, release_id)
        self._metrics.fast_tokenizer.labels(model_class).set(not loaded.counter.why_slow)
        if loaded.counter.why_slow:
            log.warning("tokenizer_slow", model=model_class, release_id=release_id, reason=loaded.counter.why_slow)
        log.info("release_loaded", model=model_class, release_id=release_id)
