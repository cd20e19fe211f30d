"""The admin API's drains and quarantine: what is out of service in this gateway's region (`exclusions.py`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import structlog
from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from serving.gateway import errors
from serving.gateway.admin_access import AdminParts, actor, ask, authorised, refuse
from serving.gateway.audited import now_ms
from serving.gateway.errors import ApiError
from serving.gateway.exclusions import KINDS, Exclusion, How, Kind
from serving.settings import GatewaySettings

log = structlog.get_logger()

FINGERPRINT = re.compile(r"[0-9a-f]{32}")


class Reason(BaseModel):
    """Why, and for how long."""

    model_config = ConfigDict(extra="forbid")

    note: Annotated[str, Field(max_length=200)] = ""
    for_s: Annotated[int, Field(ge=1, le=30 * 86_400)] | None = None
    """Over by itself after so long; null: when it is ended."""


def drain_router(settings: GatewaySettings, parts: Callable[[], AdminParts | None]) -> APIRouter:
    """Gateways and engines that get no new requests."""
    return _router("drain", "/admin/drains", "drains", parts)


def quarantine_router(settings: GatewaySettings, parts: Callable[[], AdminParts | None]) -> APIRouter:
    """Engines that are suspected, and requests that engines die of."""
    return _router("quarantine", "/admin/quarantine", "quarantine", parts)


def _router(how: How, prefix: str, title: str, parts: Callable[[], AdminParts | None]) -> APIRouter:
    router = APIRouter(prefix=prefix, tags=[title])
    allowed, by_whom = Depends(authorised(parts)), Depends(actor)

    @router.get("")
    def list_them(admin: AdminParts = allowed) -> dict[str, Any]:
        return {title: [_shown(each) for each in ask(admin.exclusions.list) if each.how == how]}

    @router.put("/{kind}/{name}")
    def begin(kind: str, name: str, reason: Reason, admin: AdminParts = allowed, by: str = by_whom) -> dict[str, Any]:
        checked = _checked(how, kind)
        _check_name(admin, checked, name)
        until_ms = None if reason.for_s is None else now_ms() + reason.for_s * 1000
        made = ask(lambda: admin.exclusions.put(Exclusion(how, checked, name, by, reason.note, until_ms=until_ms)))
        log.warning(f"{how}_begun", kind=kind, name=name, by=by)
        return _shown(made)

    @router.delete("/{kind}/{name}")
    def end(kind: str, name: str, admin: AdminParts = allowed, by: str = by_whom) -> dict[str, Any]:
        checked = _checked(how, kind)
        ask(lambda: admin.exclusions.end(how, checked, name, by=by))
        log.warning(f"{how}_ended", kind=kind, name=name, by=by)
        return {"how": how, "kind": kind, "name": name}

    return router


def _checked(how: How, kind: str) -> Kind:
    for known in KINDS[how]:
        if kind == known:
            return known
    raise ApiError(errors.NOT_FOUND, f"`{kind:.40}` is nothing to {how}; there are {', '.join(KINDS[how])}.")


def _check_name(admin: AdminParts, kind: Kind, name: str) -> None:
    """A name that means something here: one that is misspelt would change nothing, and nobody would know.

    Raises:
        ApiError: `replica_not_found`, `invalid_value`.
    """
    if kind == "request":
        refuse([] if FINGERPRINT.fullmatch(name) else [("name", "`name` must be a fingerprint: 32 hexadecimal digits.")])
        return
    known = sorted(ask(lambda: admin.replicas(kind)))
    if name not in known:
        message = f"There is no {kind} `{name:.80}` in this region; there are {', '.join(known) or 'none'}."
        raise ApiError(errors.REPLICA_NOT_FOUND, message, param="name")


def _shown(exclusion: Exclusion) -> dict[str, Any]:
    return msgspec.structs.asdict(exclusion)
