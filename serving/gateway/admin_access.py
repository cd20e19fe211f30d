"""What all routes of the admin API share: who may call, on what they work, and how a table's refusal is answered.

The admin key is not a tenant's and opens nothing else.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from fastapi import Request

from serving.gateway import errors
from serving.gateway.audited import UNKNOWN
from serving.gateway.errors import ApiError, ErrorKind
from serving.gateway.exclusions import ExclusionTable, NotExcluded
from serving.gateway.plans import PlanChanged, PlanExists, PlanInUse, PlanTable
from serving.gateway.tenants import KeyDead, KeyMissing, PlanMissing, TenantChanged, TenantExists, TenantMissing, TenantTable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

log = structlog.get_logger()

AnswerT = TypeVar("AnswerT")

ACTOR = re.compile(r"[\x20-\x7e]{1,100}")
_REFUSALS: dict[type[Exception], tuple[ErrorKind, str, str | None]] = {
    TenantExists: (errors.TENANT_EXISTS, "There is a tenant `{}` already.", "id"),
    TenantMissing: (errors.TENANT_NOT_FOUND, "There is no tenant `{}`.", None),
    TenantChanged: (errors.TENANT_CHANGED, "Tenant `{}` was changed by someone else just now; look again.", None),
    PlanExists: (errors.PLAN_EXISTS, "There is a plan `{}` already.", "id"),
    PlanMissing: (errors.PLAN_NOT_FOUND, "There is no plan `{}`.", "plan"),
    PlanChanged: (errors.PLAN_CHANGED, "Plan `{}` was changed by someone else just now; look again.", None),
    PlanInUse: (errors.PLAN_IN_USE, "Tenants are on plan `{}`; put them on another first.", None),
    NotExcluded: (errors.NOT_EXCLUDED, "`{}` is not out of service in this way.", None),
    KeyMissing: (errors.KEY_NOT_FOUND, "There is no key `{}`.", None),
    KeyDead: (errors.KEY_DEAD, "Key `{}` is revoked or has expired; make a new one.", None),
}


@dataclass(frozen=True)
class AdminParts:
    """What the admin API works on."""

    admin_key: bytes
    pepper: bytes
    tenants: TenantTable
    plans: PlanTable
    dynamodb: DynamoDBClient
    exclusions: ExclusionTable
    replicas: Callable[[str], Collection[str]]
    """Names of the region's engines (`engine`) or gateways (`gateway`) that are known here."""


def authorised(parts: Callable[[], AdminParts | None]) -> Callable[[Request], AdminParts]:
    """A dependency: the parts, for whoever has the admin key."""

    def check(request: Request) -> AdminParts:
        ready = parts()
        if ready is None:
            raise ApiError(errors.NOT_STARTED, "This gateway has not read its secrets yet.", retry_after_s=1)
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, ready.admin_key):
            raise ApiError(errors.INVALID_ADMIN_KEY, "The admin API needs its own key, as `Authorization: Bearer …`.")
        return ready

    return check


def actor(request: Request) -> str:
    """Who says that they make a change: the header `x-flotilla-actor`, for the audit alone."""
    said = request.headers.get("x-flotilla-actor", "")
    return said if ACTOR.fullmatch(said) else UNKNOWN


def ask(call: Callable[[], AnswerT]) -> AnswerT:
    """The table's answer.

    Raises:
        ApiError: what it refuses, or that it does not answer.
    """
    try:
        return call()
    except tuple(_REFUSALS) as error:
        kind, message, param = _REFUSALS[type(error)]
        raise ApiError(kind, message.format(error), param=param) from error
    except (BotoCoreError, ClientError) as error:
        log.warning("table_unavailable", error=str(error))
        raise ApiError(errors.TABLE_UNAVAILABLE, "The table does not answer.", retry_after_s=5) from error


def refuse(problems: Sequence[tuple[str, str]]) -> None:
    """Nothing, where there are no `problems`: fields and what is wrong with them.

    Raises:
        ApiError: `invalid_value` with all of them.
    """
    if problems:
        raise ApiError(errors.INVALID_VALUE, " ".join(message for _, message in problems), param=problems[0][0])
