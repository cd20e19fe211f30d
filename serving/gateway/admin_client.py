"""The admin API and the chat API from the other side: what the command line and `flotilla up` call, over plain HTTP.

Everything that goes wrong is a UserError of one line. Nothing here knows where a target came from.
"""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any
from urllib.parse import quote, urlencode

from serving.errors import UserError
from serving.http_client import ApiRefusal, open_url, refusal
from serving.target import Target

ADMIN_TIMEOUT_S = 15.0
CHAT_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class ChatEnd:
    """How a chat ended."""

    model: str
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_ms: float
    duration_ms: float


def list_prices(target: Target) -> dict[str, list[dict[str, Any]]]:
    """What each class costs, oldest price first."""
    return _admin(target, "GET", "/prices")


def list_tenants(target: Target) -> list[dict[str, Any]]:
    """All tenants, by id."""
    tenants: list[dict[str, Any]] = _admin(target, "GET", "/tenants")["tenants"]
    return tenants


def create_tenant(target: Target, tenant: str, **fields: Any) -> dict[str, Any]:
    """Make a tenant; `fields` as in the admin API. Refuses an id that exists."""
    return _admin(target, "POST", "/tenants", {"id": tenant, **fields})


def ensure_tenant(target: Target, tenant: str) -> dict[str, Any]:
    """The tenant, made without limits if it is not there."""
    try:
        return show_tenant(target, tenant)
    except ApiRefusal as error:
        if error.code != "tenant_not_found":
            raise
    return create_tenant(target, tenant)


def show_tenant(target: Target, tenant: str) -> dict[str, Any]:
    """One tenant."""
    return _admin(target, "GET", f"/tenants/{quote(tenant, safe='')}")


def set_tenant(target: Target, tenant: str, **fields: Any) -> dict[str, Any]:
    """Change the given fields of a tenant; None lifts a limit."""
    return _admin(target, "PATCH", f"/tenants/{quote(tenant, safe='')}", fields)


def list_plans(target: Target) -> list[dict[str, Any]]:
    """All plans, by id."""
    plans: list[dict[str, Any]] = _admin(target, "GET", "/plans")["plans"]
    return plans


def show_plan(target: Target, plan: str) -> dict[str, Any]:
    """One plan and how many tenants are on it."""
    return _admin(target, "GET", f"/plans/{quote(plan, safe='')}")


def create_plan(target: Target, plan: str, **terms: Any) -> dict[str, Any]:
    """Make a plan. Refuses an id that exists."""
    return _admin(target, "POST", "/plans", {"id": plan, **terms})


def set_plan(target: Target, plan: str, **terms: Any) -> dict[str, Any]:
    """Change the given terms of a plan, and so of the tenants on it."""
    return _admin(target, "PATCH", f"/plans/{quote(plan, safe='')}", terms)


def delete_plan(target: Target, plan: str) -> dict[str, Any]:
    """Delete a plan that nobody is on."""
    return _admin(target, "DELETE", f"/plans/{quote(plan, safe='')}")


def list_exclusions(target: Target, group: str, *, region: str | None = None) -> list[dict[str, Any]]:
    """What is out of service in a region; `group` is `drains` or `quarantine`."""
    found: list[dict[str, Any]] = _admin(target, "GET", f"/{group}", region=region)[group]
    return found


def exclude(
    target: Target, group: str, kind: str, name: str, *, note: str = "", for_s: int | None = None, region: str | None = None
) -> dict[str, Any]:
    """Put an engine, a gateway or a request out of service; within seconds every gateway of the region obeys."""
    path = f"/{group}/{quote(kind, safe='')}/{quote(name, safe='')}"
    return _admin(target, "PUT", path, {"note": note, "for_s": for_s}, region=region)


def end_exclusion(target: Target, group: str, kind: str, name: str, *, region: str | None = None) -> dict[str, Any]:
    """Put it into service again."""
    return _admin(target, "DELETE", f"/{group}/{quote(kind, safe='')}/{quote(name, safe='')}", region=region)


def show_policy(target: Target, tenant: str) -> dict[str, Any]:
    """A tenant's policies, as one document."""
    return _admin(target, "GET", f"/tenants/{quote(tenant, safe='')}/policy")


def set_policy(target: Target, tenant: str, policy: Mapping[str, Any]) -> dict[str, Any]:
    """Set a tenant's policies; what the document leaves out is the default."""
    return _admin(target, "PUT", f"/tenants/{quote(tenant, safe='')}/policy", policy)


def create_key(target: Target, tenant: str, *, name: str = "") -> str:
    """A new key's secret."""
    key: str = create_key_record(target, tenant, name=name)["key"]
    return key


def create_key_record(target: Target, tenant: str, *, name: str = "", **scopes: Any) -> dict[str, Any]:
    """A new key with its id and, as `key`, its secret; `scopes` as in the admin API. It cannot be shown again."""
    return _admin(target, "POST", f"/tenants/{quote(tenant, safe='')}/keys", {"name": name, **scopes})


def rotate_key(target: Target, key_id: str, *, overlap_s: int) -> dict[str, Any]:
    """The key in its place, with its secret as `key`; the old one works for `overlap_s` more."""
    return _admin(target, "POST", f"/keys/{quote(key_id, safe='')}/rotate", {"overlap_s": overlap_s})


def audit(target: Target, day: str) -> list[dict[str, Any]]:
    """Changes of a UTC day, oldest first."""
    entries: list[dict[str, Any]] = _admin(target, "GET", f"/audit?{urlencode({'day': day})}")["entries"]
    return entries


def list_keys(target: Target, tenant: str) -> list[dict[str, Any]]:
    """The tenant's keys without their secrets, oldest first."""
    found: list[dict[str, Any]] = _admin(target, "GET", f"/tenants/{quote(tenant, safe='')}/keys")["keys"]
    return found


def revoke_key(target: Target, key_id: str) -> dict[str, Any]:
    """Revoke a key; within seconds it is refused everywhere."""
    return _admin(target, "DELETE", f"/keys/{quote(key_id, safe='')}")


def usage(
    target: Target,
    *,
    tenant: str | None = None,
    from_ms: int | None = None,
    to_ms: int | None = None,
    group_by: Sequence[str] | None = None,
    region: str | None = None,
) -> dict[str, Any]:
    """The usage report as the admin API gives it; of all tenants and the last thirty days where nothing is said."""
    asked = {"tenant": tenant, "from": from_ms, "to": to_ms, "group_by": group_by}
    query = urlencode({name: value for name, value in asked.items() if value is not None}, doseq=True)
    return _admin(target, "GET", f"/usage?{query}", region=region)


def chat(
    target: Target,
    prompt: str,
    *,
    model: str = "small",
    system: str | None = None,
    temperature: float = 0.0,
    region: str | None = None,
) -> Iterator[str | ChatEnd]:
    """The answer in pieces as they come, and at last how it ended. At temperature 0 the same question has the same answer.

    Raises:
        UserError: the request was refused, or the answer broke off.
    """
    _, chosen = target.region(region)
    if not target.api_key:
        raise UserError("there is no API key to chat with", "set FLOTILLA_API_KEY; `flotilla keys create TENANT` makes one")
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": prompt})
    body = {
        "model": model,
        "messages": messages,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began_s, first_s = time.monotonic(), None
    finish_reason = ""
    counts: Mapping[str, Any] = {}
    with open_url("POST", f"{chosen.base_url}/chat/completions", target.api_key, body, timeout_s=CHAT_TIMEOUT_S) as answer:
        for event in _events(answer):
            counts = event.get("usage") or counts
            for choice in event["choices"]:
                finish_reason = choice.get("finish_reason") or finish_reason
                if text := choice["delta"].get("content"):
                    first_s = first_s if first_s is not None else time.monotonic()
                    yield text
    now_s = time.monotonic()
    yield ChatEnd(
        model=model,
        finish_reason=finish_reason,
        prompt_tokens=counts.get("prompt_tokens", 0),
        cached_tokens=(counts.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        output_tokens=counts.get("completion_tokens", 0),
        ttft_ms=((first_s if first_s is not None else now_s) - began_s) * 1e3,
        duration_ms=(now_s - began_s) * 1e3,
    )


def _admin(target: Target, method: str, path: str, body: Any = None, *, region: str | None = None) -> dict[str, Any]:
    _, chosen = target.region(region)
    url, said = f"{chosen.admin_url}/admin{path}", {"x-flotilla-actor": _actor()}
    with open_url(method, url, target.admin_key, body, timeout_s=ADMIN_TIMEOUT_S, headers=said) as answer:
        document: dict[str, Any] = json.loads(answer.read())
        return document


def _actor() -> str:
    """Who the audit is told it was; a name that no header may hold is left to be unknown."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        return ""
    return name if name.isascii() and name.isprintable() else ""


def _events(answer: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The documents of an event stream.

    Raises:
        UserError: one is an error, or the stream ends too soon.
    """
    for line in answer:
        content = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or not content:
            continue
        if content == b"[DONE]":
            return
        event: dict[str, Any] = json.loads(content)
        if "error" in event:
            raise refusal(content, "the answer broke off")
        yield event
    raise UserError("the answer broke off before its end", "ask again")
