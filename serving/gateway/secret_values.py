"""The gateway's secrets, read from Secrets Manager at its start and kept in memory only.

Without them nothing can be served, so the gateway waits for them, says so, and is not ready until it has them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from serving.settings import Secrets

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

log = structlog.get_logger()

RETRY_S = 1.0


@dataclass(frozen=True)
class LoadedSecrets:
    """The values. Never log this."""

    key_pepper: bytes
    cache_salt: bytes
    admin_key: bytes

    def __repr__(self) -> str:
        return "LoadedSecrets(…)"


async def load_secrets(client: SecretsManagerClient, names: Secrets) -> LoadedSecrets:
    """The three secrets, however long it takes until Secrets Manager gives them."""
    while True:
        try:
            values = [
                await asyncio.to_thread(_read, client, name) for name in (names.key_pepper, names.cache_salt, names.admin_key)
            ]
            return LoadedSecrets(*values)
        except (BotoCoreError, ClientError, ValueError) as error:
            log.error("secrets_unreadable", error=f"{type(error).__name__}: {error}", retry_s=RETRY_S)
            await asyncio.sleep(RETRY_S)


def _read_all(client: SecretsManagerClient, names: Secrets) -> LoadedSecrets:
    return LoadedSecrets(
        key_pepper=_read(client, names.key_pepper),
        cache_salt=_read(client, names.cache_salt),
        admin_key=_read(client, names.admin_key),
    )


def _read(client: SecretsManagerClient, name: str) -> bytes:
    value = client.get_secret_value(SecretId=name).get("SecretString", "").encode()
    if not value:
        raise ValueError(f"secret {name} is empty")
    return value
