"""One HTTP request to our own APIs, for the command line: everything that goes wrong is a UserError of one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from serving.errors import UserError

_HINTS = {
    "invalid_api_key": "make one with `flotilla keys create TENANT`",
    "invalid_admin_key": "the admin key belongs to another environment, or FLOTILLA_ADMIN_KEY is wrong",
    "engine_unavailable": "see `flotilla status` and `flotilla logs`; an engine takes a minute or two to start",
    "model_not_ready": "publish a release with `flotilla release publish`",
    "tenant_not_found": "`flotilla tenants list` shows those there are",
    "key_not_found": "`flotilla keys list TENANT` shows those there are",
    "key_dead": "make a new one with `flotilla keys create TENANT`",
    "model_not_found": "`flotilla tenants show TENANT` shows which models it may use",
}


class ApiRefusal(UserError):
    """The API refused; `code` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, _HINTS.get(code, ""))
        self.code = code


@contextmanager
def open_url(
    method: str, url: str, key: str, body: Any = None, *, timeout_s: float, headers: Mapping[str, str] | None = None
) -> Iterator[HTTPResponse]:
    """An answer with a good status.

    Raises:
        ApiRefusal: the API says no.
        UserError: there is no answer, or it breaks off while it is read.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} is not a web address")
    data = None if body is None else json.dumps(body).encode()
    sent = {"authorization": f"Bearer {key}", "content-type": "application/json", **(headers or {})}
    try:
        with urlopen(Request(url, data=data, headers=sent, method=method), timeout=timeout_s) as answer:  # noqa: S310 (scheme checked)
            yield answer
    except HTTPError as error:
        raise refusal(error.read(), f"{url} answers {error.code}") from error
    except URLError as error:
        raise UserError(
            f"{url} cannot be reached: {error.reason}", "see `flotilla status`; `flotilla up` starts a region"
        ) from error
    except (OSError, HTTPException) as error:
        raise UserError(f"{url}: the answer broke off: {error}") from error


def refusal(body: bytes, otherwise: str) -> UserError:
    """The error document in `body` as an exception; `otherwise` where it is none."""
    try:
        error = json.loads(body)["error"]
        return ApiRefusal(error["code"], error["message"])
    except (ValueError, KeyError, TypeError):
        return UserError(otherwise)
