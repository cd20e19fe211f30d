"""Registered prompts in DynamoDB: what the table holds and how it is read and written.

    pk <tenant>  sk prompt#<id>              its name and its latest version
    pk <tenant>  sk version#<id>#<number>    the messages of one version, which never change
    pk #warm     sk <ms>#<tenant>#<id>       every prompt's latest version, newest last: what is kept warm

A version is written with the prompt's item and its place among the warm ones, all or none. Ids are made here and never used
again, so what was read of a version stays true until the prompt is deleted. Reads go to the region's replica and, where that has
nothing, to the home region, which a replica trails by about a second; writes go to the home region. Calls block.

Messages are kept in the item, compressed: the bucket for bodies deletes by age, and a prompt is kept until its tenant deletes it.
An item holds more of them than a window of 32K tokens.
"""

from __future__ import annotations

import os
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from botocore.exceptions import ClientError

from serving.gateway.messages import Message

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

MAX_PACKED_BYTES = 320 * 1024
"""Of a version's messages, compressed; an item has 400 KB, keys and other members included."""
MAX_PROMPTS = 1000
"""Of a tenant, about: two that register at once are not told apart."""
MAX_VERSIONS = 999_999
_TRIES = 5
_WARM = "#warm"
"""No tenant is called so."""


class PromptMissing(Exception):
    """The tenant has no such prompt, or not this version of it."""


class PromptTooLarge(Exception):
    """Its messages do not fit an item; the number of bytes that they have, compressed."""


class TooManyPrompts(Exception):
    """The tenant has as many as it may."""


class PromptChanged(Exception):
    """Others register versions of it at the same time, again and again."""


@dataclass(frozen=True)
class Prompt:
    """One version of a prompt."""

    id: str
    version: int
    name: str
    created_at_ms: int
    """Of this version."""
    models: tuple[str, ...]
    """Classes at whose engines it is kept warm."""
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class PromptHead:
    """A prompt without its messages."""

    id: str
    latest: int
    name: str
    changed_at_ms: int


@dataclass(frozen=True)
class Warm:
    """A prompt that is to be kept warm, in its latest version."""

    tenant: str
    id: str
    version: int
    models: tuple[str, ...]


_messages = msgspec.json.Decoder(tuple[Message, ...])


class PromptTable:
    """The prompts table, read here and written at home."""

    def __init__(self, table: str, *, near: DynamoDBClient, home: DynamoDBClient) -> None:
        self._table = table
        self._near = near
        self._home = home

    def create(self, tenant: str, name: str, models: tuple[str, ...], messages: tuple[Message, ...]) -> Prompt:
        """The first version of a new prompt.

        Raises:
            PromptTooLarge, TooManyPrompts: as they say.
        """
        counted = self._home.query(
            TableName=self._table,
            KeyConditionExpression="pk = :pk AND begins_with(sk, :sk)",
            ExpressionAttributeValues={":pk": {"S": tenant}, ":sk": {"S": "prompt#"}},
            Select="COUNT",
        )
        if counted["Count"] >= MAX_PROMPTS:
            raise TooManyPrompts
        prompt = Prompt(f"pmpt_{os.urandom(12).hex()}", 1, name, _now_ms(), models, messages)
        head: Any = {"Put": {"TableName": self._table, "Item": _head_item(tenant, prompt)}}
        self._home.transact_write_items(TransactItems=[head, *self._version(tenant, prompt)])
        return prompt

    def add_version(
        self, tenant: str, prompt_id: str, name: str | None, models: tuple[str, ...] | None, messages: tuple[Message, ...]
    ) -> Prompt:
        """The next version of a prompt; None leaves name or models as they were.

        Raises:
            PromptMissing, PromptTooLarge, PromptChanged: as they say.
        """
        for _ in range(_TRIES):
            old = self._find(self._home, tenant, prompt_id, None)
            if old is None or old.version == MAX_VERSIONS:
                raise PromptMissing(prompt_id)
            prompt = Prompt(
                prompt_id,
                old.version + 1,
                old.name if name is None else name,
                _now_ms(),
                old.models if models is None else models,
                messages,
            )
            head: Any = {
                "Put": {
                    "TableName": self._table,
                    "Item": _head_item(tenant, prompt),
                    "ConditionExpression": "latest = :latest",
                    "ExpressionAttributeValues": {":latest": {"N": str(old.version)}},
                }
            }
            cooled: Any = {"Delete": {"TableName": self._table, "Key": _warm_key(tenant, old)}}
            try:
                self._home.transact_write_items(TransactItems=[head, cooled, *self._version(tenant, prompt)])
            except ClientError as error:
                if error.response["Error"]["Code"] != "TransactionCanceledException":
                    raise
                continue
            return prompt
        raise PromptChanged(prompt_id)

    def find(self, tenant: str, prompt_id: str, version: int | None) -> Prompt:
        """That version of the tenant's prompt, or the latest.

        Raises:
            PromptMissing: as it says, also where another tenant has it.
        """
        found = self._find(self._near, tenant, prompt_id, version)
        if found is None and self._home is not self._near:
            found = self._find(self._home, tenant, prompt_id, version)
        if found is None:
            raise PromptMissing(prompt_id)
        return found

    def prompts_of(self, tenant: str) -> list[PromptHead]:
        """The tenant's prompts, newest change first."""
        items = self._query(tenant, "prompt#")
        heads = [PromptHead(_id_of(item), int(item["latest"]["N"]), item["name"]["S"], int(item["at_ms"]["N"])) for item in items]
        return sorted(heads, key=lambda head: -head.changed_at_ms)

    def delete(self, tenant: str, prompt_id: str) -> None:
        """Every version is gone.

        Raises:
            PromptMissing: as it says.
        """
        latest = self._find(self._home, tenant, prompt_id, None)
        if latest is None:
            raise PromptMissing(prompt_id)
        keys = [_key(tenant, f"prompt#{prompt_id}"), _warm_key(tenant, latest)]  # first what leads to the rest
        keys += [{"pk": item["pk"], "sk": item["sk"]} for item in self._query(tenant, f"version#{prompt_id}#")]
        for key in keys:
            self._home.delete_item(TableName=self._table, Key=key)

    def warm(self, limit: int) -> list[Warm]:
        """The prompts that were changed last, as this region has them."""
        answer = self._near.query(
            TableName=self._table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues={":pk": {"S": _WARM}},
            ScanIndexForward=False,
            Limit=limit,
        )
        return [
            Warm(item["tenant"]["S"], item["id"]["S"], int(item["version"]["N"]), _models_of(item)) for item in answer["Items"]
        ]

    def _find(self, client: DynamoDBClient, tenant: str, prompt_id: str, version: int | None) -> Prompt | None:
        head = client.get_item(TableName=self._table, Key=_key(tenant, f"prompt#{prompt_id}"), ConsistentRead=True).get("Item")
        if head is None:
            return None
        number = int(head["latest"]["N"]) if version is None else version
        key = _key(tenant, _version_sk(prompt_id, number))
        item = client.get_item(TableName=self._table, Key=key, ConsistentRead=True).get("Item")
        if item is None:
            return None
        messages = _messages.decode(zlib.decompress(bytes(item["body"]["B"])))
        return Prompt(prompt_id, number, head["name"]["S"], int(item["at_ms"]["N"]), _models_of(item), messages)

    def _query(self, tenant: str, prefix: str) -> list[Any]:
        pages = self._home.get_paginator("query").paginate(
            TableName=self._table,
            KeyConditionExpression="pk = :pk AND begins_with(sk, :sk)",
            ExpressionAttributeValues={":pk": {"S": tenant}, ":sk": {"S": prefix}},
        )
        return [item for page in pages for item in page["Items"]]

    def _version(self, tenant: str, prompt: Prompt) -> list[Any]:
        packed = zlib.compress(msgspec.json.encode(prompt.messages))
        if len(packed) > MAX_PACKED_BYTES:
            raise PromptTooLarge(len(packed))
        at_ms, models = {"N": str(prompt.created_at_ms)}, {"L": [{"S": model} for model in prompt.models]}
        version = {
            **_key(tenant, _version_sk(prompt.id, prompt.version)),
            "at_ms": at_ms,
            "models": models,
            "body": {"B": packed},
        }
        warm = {
            **_warm_key(tenant, prompt),
            "tenant": {"S": tenant},
            "id": {"S": prompt.id},
            "version": {"N": str(prompt.version)},
            "models": models,
        }
        is_new = "attribute_not_exists(pk)"
        return [
            {"Put": {"TableName": self._table, "Item": version, "ConditionExpression": is_new}},
            {"Put": {"TableName": self._table, "Item": warm}},
        ]


def _head_item(tenant: str, prompt: Prompt) -> dict[str, Any]:
    members = {"latest": {"N": str(prompt.version)}, "name": {"S": prompt.name}, "at_ms": {"N": str(prompt.created_at_ms)}}
    return {**_key(tenant, f"prompt#{prompt.id}"), **members}


def _version_sk(prompt_id: str, version: int) -> str:
    return f"version#{prompt_id}#{version:06d}"


def _warm_key(tenant: str, prompt: Prompt) -> dict[str, Any]:
    return _key(_WARM, f"{prompt.created_at_ms:014d}#{tenant}#{prompt.id}")


def _key(pk: str, sk: str) -> dict[str, Any]:
    return {"pk": {"S": pk}, "sk": {"S": sk}}


def _id_of(item: Any) -> str:
    text: str = item["sk"]["S"]
    return text.removeprefix("prompt#")


def _models_of(item: Any) -> tuple[str, ...]:
    return tuple(model["S"] for model in item["models"]["L"])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
