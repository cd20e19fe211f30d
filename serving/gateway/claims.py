"""Claims on idempotency keys: one item a key, in the home region's table, written by conditional puts alone.

    pk = <tenant>#<SHA-256 of the key>   sk = request      claimed → done | lost; deleted when nothing was generated
    pk = gateway#<region>/<gateway>      sk = life         the epoch of the gateway's present life

A claim is durable before an engine is asked and names the life of the gateway that made it. Whoever meets it later decides by the
item alone: done is replayed, lost says so, and a claim whose gateway has a newer life was never opened, since a new life marks
every claim that its journals say was opened before it announces itself. So a key is generated for once, or not at all.

An answer of up to `MAX_INLINE_BYTES`, compressed, stands in the item; a larger one in the bucket for bodies, which replicates
within minutes: another region may have to wait for it.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client

KEEP_S = 24 * 3600
MAX_INLINE_BYTES = 256 * 1024
"""An item has 400 KB, keys and other members included."""
BODY_PREFIX = "idempotency/"
EXPIRES_AT = "expires_at"
"""Unix seconds; the table's TTL attribute. DynamoDB removes late, so an expired item counts as absent here."""

_CONFLICT = "ConditionalCheckFailedException"


class ClaimsUnavailable(Exception):
    """The table or the bucket does not answer: whether a key is taken is not known."""


@dataclass(frozen=True)
class Owner:
    """A life of a gateway."""

    region: str
    gateway: str
    epoch: int
    """Of its journal: greater in every life."""

    @property
    def life_key(self) -> dict[str, Any]:
        return {"pk": {"S": f"gateway#{self.region}/{self.gateway}"}, "sk": {"S": "life"}}


@dataclass(frozen=True)
class Claim:
    """The right to generate for a key, once."""

    pk: str
    event_id: str
    """Of the usage event that bills it."""
    request_id: str
    fingerprint: str
    claimed_at_ms: int


@dataclass(frozen=True)
class Result:
    """An answer as it was sent."""

    status: int
    content_type: str
    body: bytes
    request_id: str = ""
    """Of the request that was answered so."""


@dataclass(frozen=True)
class Held:
    """Somebody has the key. `is_lost`: its answer will never be there."""

    is_same_request: bool
    is_lost: bool = False


def claim_pk(tenant: str, key: str) -> str:
    """Where a tenant's key lies. Two tenants' equal keys are two keys."""
    return f"{tenant}#{hashlib.sha256(key.encode()).hexdigest()}"


class ClaimTable:
    """All of it. Everything here blocks.

    Every method raises `ClaimsUnavailable` where AWS does not answer; each may be called again.
    """

    def __init__(
        self, dynamodb: DynamoDBClient, table: str, s3: S3Client, bucket: str, owner: Owner, *, longest_request_s: float
    ) -> None:
        """`dynamodb` is the home region's, `bucket` the region's own for bodies. A request ends within `longest_request_s`."""
        self.owner = owner
        self._dynamodb = dynamodb
        self._table = table
        self._s3 = s3
        self._bucket = bucket
        self._given_up_after_ms = int(longest_request_s * 1000)

    def claim(self, claim: Claim) -> Result | Held | None:
        """Take the key; None where it is ours now, else what is there."""
        item = self._put(claim, "attribute_not_exists(pk) OR #expires < :now", {":now": {"N": str(claim.claimed_at_ms // 1000)}})
        if item is None or item["event_id"]["S"] == claim.event_id:  # a put that timed out had been done
            return None
        if item["fingerprint"]["S"] != claim.fingerprint:
            return Held(is_same_request=False)
        match item["state"]["S"]:
            case "done":
                return self._result(item)
            case "lost":
                return Held(is_same_request=True, is_lost=True)
        if self._was_never_opened(item):
            before = {":before": {"S": item["event_id"]["S"]}, ":claimed": {"S": "claimed"}}
            if self._put(claim, "event_id = :before AND #state = :claimed", before) is None:
                return None
            return Held(is_same_request=True)
        age_ms = claim.claimed_at_ms - int(item["claimed_at_ms"]["N"])
        return Held(is_same_request=True, is_lost=age_ms > self._given_up_after_ms)

    def finish(self, claim: Claim, result: Result | None) -> None:
        """Keep the answer for whoever asks again; None says that it was billed and cannot be had."""
        members: dict[str, Any] = {"state": {"S": "lost" if result is None else "done"}}
        if result is not None:
            members |= {"status": {"N": str(result.status)}, "content_type": {"S": result.content_type}}
            packed = zlib.compress(result.body, 1)
            if len(packed) <= MAX_INLINE_BYTES:
                members["body"] = {"B": packed}
            else:
                members["object"] = {"S": f"{BODY_PREFIX}{claim.pk}/{claim.event_id}"}
                self._call(self._s3.put_object, Bucket=self._bucket, Key=members["object"]["S"], Body=packed)
        values = {":mine": {"S": claim.event_id}, ":claimed": {"S": "claimed"}}
        self._put(claim, "event_id = :mine AND #state = :claimed", values, members)

    def release(self, claim: Claim) -> None:
        """Nothing was generated: the key is free again."""
        self._conditional(
            self._dynamodb.delete_item,
            Key=self._key(claim.pk),
            ConditionExpression="event_id = :mine AND #state = :claimed",
            ExpressionAttributeNames={"#state": "state"},
            ExpressionAttributeValues={":mine": {"S": claim.event_id}, ":claimed": {"S": "claimed"}},
        )

    def mark_lost(self, pk: str, event_id: str) -> None:
        """The life that had claimed it ended before its answer was kept."""
        self._conditional(
            self._dynamodb.update_item,
            Key=self._key(pk),
            UpdateExpression="SET #state = :lost",
            ConditionExpression="event_id = :its AND #state = :claimed",
            ExpressionAttributeNames={"#state": "state"},
            ExpressionAttributeValues={":its": {"S": event_id}, ":claimed": {"S": "claimed"}, ":lost": {"S": "lost"}},
        )

    def announce(self) -> None:
        """From here on, claims of this gateway's earlier lives that are still `claimed` were never opened."""
        item = {**self.owner.life_key, "epoch": {"N": str(self.owner.epoch)}}
        self._call(self._dynamodb.put_item, TableName=self._table, Item=item)

    def announced_epoch(self, owner: Owner) -> int:
        """The newest life that this gateway has announced; 0 for none."""
        answer = self._call(self._dynamodb.get_item, TableName=self._table, Key=owner.life_key, ConsistentRead=True)
        return int(answer["Item"]["epoch"]["N"]) if "Item" in answer else 0

    def _was_never_opened(self, item: dict[str, Any]) -> bool:
        owner = Owner(item["region"]["S"], item["gateway"]["S"], int(item["epoch"]["N"]))
        return self.announced_epoch(owner) > owner.epoch

    def _result(self, item: dict[str, Any]) -> Result:
        if "object" in item:
            packed = self._call(self._s3.get_object, Bucket=self._bucket, Key=item["object"]["S"])["Body"].read()
        else:
            packed = bytes(item["body"]["B"])
        status, request_id = int(item["status"]["N"]), item["request_id"]["S"]
        return Result(status, item["content_type"]["S"], zlib.decompress(packed), request_id)

    def _put(
        self, claim: Claim, condition: str, values: dict[str, Any], members: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Write the claim's item; None, or the item that is there because the condition did not hold."""
        item: dict[str, Any] = {
            **self._key(claim.pk),
            "state": {"S": "claimed"},
            "event_id": {"S": claim.event_id},
            "request_id": {"S": claim.request_id},
            "fingerprint": {"S": claim.fingerprint},
            "region": {"S": self.owner.region},
            "gateway": {"S": self.owner.gateway},
            "epoch": {"N": str(self.owner.epoch)},
            "claimed_at_ms": {"N": str(claim.claimed_at_ms)},
            EXPIRES_AT: {"N": str(claim.claimed_at_ms // 1000 + KEEP_S)},
            **(members or {}),
        }
        names = {"#state": "state", "#expires": EXPIRES_AT}
        return self._conditional(
            self._dynamodb.put_item,
            Item=item,
            ConditionExpression=condition,
            ExpressionAttributeNames={name: whole for name, whole in names.items() if name in condition},
            ExpressionAttributeValues=values,
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )

    def _conditional(self, call: Any, **request: Any) -> dict[str, Any] | None:
        """None where the condition held; else the item as it is, where it was asked for, or an empty one."""
        try:
            self._call(call, TableName=self._table, **request)
        except ClientError as error:
            item: dict[str, Any] = error.response.get("Item", {})  # type: ignore[assignment]  # the stubs do not know it
            return item
        return None

    @staticmethod
    def _call(call: Any, **request: Any) -> Any:
        try:
            return call(**request)
        except ClientError as error:
            if error.response["Error"]["Code"] == _CONFLICT:
                raise
            raise ClaimsUnavailable(str(error)) from error
        except BotoCoreError as error:
            raise ClaimsUnavailable(str(error)) from error

    @staticmethod
    def _key(pk: str) -> dict[str, Any]:
        return {"pk": {"S": pk}, "sk": {"S": "request"}}
