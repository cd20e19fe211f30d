"""Stored conversations: what was said in S3, sealed, and in DynamoDB where it is and how far it has come.

    pk = <tenant>#<id>   sk = conversation   revision, object, key, expires_at; while a turn is being answered, who holds it

Each turn writes the whole conversation anew, as an object that nobody has written before, and then moves the item to it, if the
item still is at the revision that the turn began with. So of two turns at once one is refused and nothing that was acknowledged
is overwritten; an object whose item never came to it is never read. Items are read and written in the home region, where
conditional writes are exact; bodies in the region's own bucket, which replicates within minutes: another region may have to wait
for one.

A hold, for as long as an answer usually takes, refuses a second turn before it costs anything. It is a courtesy: it runs out by
itself, so a gateway that died leaves nothing locked, and a turn that took longer is still judged by the revision.

Bodies are sealed by a key of the conversation's own, which stands in the item (AES-256-GCM, bound to the object's name), beside
the bucket's own encryption. Gateways may not delete objects: with the item its key is gone, and no copy in any region can be
read. Nothing of this is in the cache. Everything here blocks.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
from botocore.exceptions import BotoCoreError, ClientError
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from serving.gateway.messages import Message

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

BODY_PREFIX = "conversations/"
EXPIRES_AT = "expires_at"
"""Unix seconds; the table's TTL attribute. DynamoDB removes late, so an expired item counts as absent here."""
MAX_TTL_S = 29 * 86_400
"""From its last turn on. Buckets for bodies remove what is older than 30 days."""
HOLD_MS = 30_000
ID = re.compile(r"conv_[0-9a-f]{32}", re.ASCII)
_NONCE_BYTES = 12
_CONFLICT = "ConditionalCheckFailedException"
_NO_OBJECT = frozenset({"NoSuchKey", "404"})

_messages = msgspec.json.Decoder(list[Message])


class ConversationsUnavailable(Exception):
    """The table or the bucket does not answer, or has not got the body yet."""


class ConversationMissing(Exception):
    """There is none of this id, for this tenant: others' look the same."""


class ConversationBusy(Exception):
    """A turn of it is being answered."""


class ConversationChanged(Exception):
    """Another turn was stored since this one began."""


@dataclass(frozen=True)
class Conversation:
    """A conversation at one revision."""

    tenant: str
    id: str
    revision: int
    created_at_s: int
    expires_at_s: int
    ttl_s: int
    metadata: Mapping[str, str]
    messages: Sequence[Message]
    key: bytes
    """Seals its bodies."""
    hold: str = ""
    """Of the turn that is being answered."""


class ConversationStore:
    """All of it. Every method raises `ConversationsUnavailable` as it says."""

    def __init__(self, dynamodb: DynamoDBClient, table: str, s3: S3Client, bucket: str) -> None:
        """`dynamodb` is the home region's, `bucket` the region's own for bodies."""
        self._dynamodb = dynamodb
        self._table = table
        self._s3 = s3
        self._bucket = bucket

    def create(
        self, tenant: str, messages: Sequence[Message], metadata: Mapping[str, str], *, ttl_s: int, now_s: int
    ) -> Conversation:
        """A new conversation with these messages, at revision 1."""
        made = Conversation(
            tenant, f"conv_{os.urandom(16).hex()}", 1, now_s, now_s + ttl_s, ttl_s, metadata, messages, os.urandom(32)
        )
        name = self._put_body(made, messages)
        item = {
            **_key(tenant, made.id),
            "revision": {"N": "1"},
            "created_at": {"N": str(now_s)},
            EXPIRES_AT: {"N": str(made.expires_at_s)},
            "ttl_s": {"N": str(ttl_s)},
            "metadata": {"B": msgspec.json.encode(metadata)},
            "object": {"S": name},
            "key": {"B": made.key},
        }
        self._call(self._dynamodb.put_item, TableName=self._table, Item=item)
        return made

    def get(self, tenant: str, conversation_id: str, *, now_s: int) -> Conversation:
        """The conversation as it was last stored.

        Raises:
            ConversationMissing: as it says.
        """
        answer = self._call(
            self._dynamodb.get_item, TableName=self._table, Key=_key(tenant, conversation_id), ConsistentRead=True
        )
        item = answer.get("Item")
        if item is None or int(item[EXPIRES_AT]["N"]) <= now_s:
            raise ConversationMissing
        return self._read(tenant, conversation_id, item)

    def begin(self, tenant: str, conversation_id: str, *, now_ms: int) -> Conversation:
        """The conversation, held for a turn that `append` or `release` ends.

        Raises:
            ConversationMissing, ConversationBusy: as they say.
        """
        hold = os.urandom(16).hex()
        try:
            answer = self._call(
                self._dynamodb.update_item,
                TableName=self._table,
                Key=_key(tenant, conversation_id),
                UpdateExpression="SET held_until_ms = :until, held_by = :hold",
                ConditionExpression="attribute_exists(pk) AND #expires > :now_s"
                " AND (attribute_not_exists(held_until_ms) OR held_until_ms < :now_ms)",
                ExpressionAttributeNames={"#expires": EXPIRES_AT},
                ExpressionAttributeValues={
                    ":until": {"N": str(now_ms + HOLD_MS)},
                    ":hold": {"S": hold},
                    ":now_s": {"N": str(now_ms // 1000)},
                    ":now_ms": {"N": str(now_ms)},
                },
                ReturnValues="ALL_NEW",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ClientError as error:
            item = _item_of(error)
            if not item or int(item[EXPIRES_AT]["N"]) <= now_ms // 1000:
                raise ConversationMissing from None
            if item.get("held_by") != {"S": hold}:  # an update that timed out had been done
                raise ConversationBusy from None
            answer = {"Attributes": item}
        return replace(self._read(tenant, conversation_id, answer["Attributes"]), hold=hold)

    def append(self, held: Conversation, messages: Sequence[Message], *, now_s: int) -> Conversation:
        """`held` with `messages` behind it, durably, and for another span of its life.

        Raises:
            ConversationChanged: another turn was faster, or it was deleted; nothing is stored.
        """
        whole = [*held.messages, *messages]
        name = self._put_body(held, whole)
        try:
            self._call(
                self._dynamodb.update_item,
                TableName=self._table,
                Key=_key(held.tenant, held.id),
                UpdateExpression="SET revision = :next, #object = :object, #expires = :expires REMOVE held_until_ms, held_by",
                ConditionExpression="revision = :revision",
                ExpressionAttributeNames={"#object": "object", "#expires": EXPIRES_AT},
                ExpressionAttributeValues={
                    ":revision": {"N": str(held.revision)},
                    ":next": {"N": str(held.revision + 1)},
                    ":object": {"S": name},
                    ":expires": {"N": str(now_s + held.ttl_s)},
                },
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except ClientError as error:
            if _item_of(error).get("object") != {"S": name}:  # an update that timed out had been done
                raise ConversationChanged from None
        return replace(held, revision=held.revision + 1, expires_at_s=now_s + held.ttl_s, messages=whole)

    def release(self, held: Conversation) -> None:
        """Nothing is added: the next turn may begin."""
        try:
            self._call(
                self._dynamodb.update_item,
                TableName=self._table,
                Key=_key(held.tenant, held.id),
                UpdateExpression="REMOVE held_until_ms, held_by",
                ConditionExpression="held_by = :hold",
                ExpressionAttributeValues={":hold": {"S": held.hold}},
            )
        except ClientError:
            return

    def delete(self, tenant: str, conversation_id: str, *, now_s: int) -> None:
        """Forget it, and the key to its bodies.

        Raises:
            ConversationMissing: as it says.
        """
        try:
            self._call(
                self._dynamodb.delete_item,
                TableName=self._table,
                Key=_key(tenant, conversation_id),
                ConditionExpression="#expires > :now_s",
                ExpressionAttributeNames={"#expires": EXPIRES_AT},
                ExpressionAttributeValues={":now_s": {"N": str(now_s)}},
            )
        except ClientError:
            raise ConversationMissing from None

    def _read(self, tenant: str, conversation_id: str, item: Mapping[str, Any]) -> Conversation:
        key = bytes(item["key"]["B"])
        return Conversation(
            tenant,
            conversation_id,
            int(item["revision"]["N"]),
            int(item["created_at"]["N"]),
            int(item[EXPIRES_AT]["N"]),
            int(item["ttl_s"]["N"]),
            msgspec.json.decode(bytes(item["metadata"]["B"])),
            self._get_body(key, item["object"]["S"]),
            key,
        )

    def _put_body(self, conversation: Conversation, messages: Sequence[Message]) -> str:
        """The name of a new object with `messages`."""
        name = f"{BODY_PREFIX}{conversation.tenant}/{conversation.id}/{os.urandom(16).hex()}"
        nonce = os.urandom(_NONCE_BYTES)
        plain = zlib.compress(msgspec.json.encode(messages), 1)
        sealed = nonce + AESGCM(conversation.key).encrypt(nonce, plain, name.encode())
        self._call(self._s3.put_object, Bucket=self._bucket, Key=name, Body=sealed)
        return name

    def _get_body(self, key: bytes, name: str) -> Sequence[Message]:
        try:
            sealed = self._call(self._s3.get_object, Bucket=self._bucket, Key=name)["Body"].read()
            nonce = sealed[:_NONCE_BYTES]
            plain = AESGCM(key).decrypt(nonce, sealed[_NONCE_BYTES:], name.encode())
            return _messages.decode(zlib.decompress(plain))
        except (BotoCoreError, InvalidTag, zlib.error, msgspec.MsgspecError) as error:
            raise ConversationsUnavailable(f"{name}: {type(error).__name__} {error}") from error

    @staticmethod
    def _call(call: Any, **request: Any) -> Any:
        """The answer. A condition that does not hold comes through as a ClientError."""
        try:
            return call(**request)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == _CONFLICT:
                raise
            why = "the body has not come to this region yet" if code in _NO_OBJECT else str(error)
            raise ConversationsUnavailable(why) from error
        except BotoCoreError as error:
            raise ConversationsUnavailable(str(error)) from error


def _key(tenant: str, conversation_id: str) -> dict[str, Any]:
    return {"pk": {"S": f"{tenant}#{conversation_id}"}, "sk": {"S": "conversation"}}


def _item_of(error: ClientError) -> dict[str, Any]:
    """The item that a condition did not hold of; empty where there is none."""
    item: dict[str, Any] = error.response.get("Item", {})  # type: ignore[assignment]  # the stubs do not know it
    return item
