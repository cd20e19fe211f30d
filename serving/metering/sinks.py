"""Stripe's meters and OpenMeter, as sinks of an export.

Stripe: one `POST /v1/billing/meter_events` a measure, form-encoded; `identifier` makes it count once, and a second is refused as
existing; `timestamp` may be 35 days old. Stripe remembers identifiers for at least 24 hours: an export that was cut off in the
middle of a seal must be resumed within that time. OpenMeter, and whatever takes CloudEvents 1.0: one `POST` of a JSON batch,
answered with 204; `id` and `source` make an event count once. (Their documentation, read 2026-11-24.)

A call that fails for the other side's reasons is tried again here, and nowhere else: ids make that safe.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from serving.errors import UserError
from serving.metering.exporting import Measure

TIMEOUT_S = 20.0
MAX_ATTEMPTS = 4
FIRST_WAIT_S = 0.5
MAX_BATCH = 500
_TRANSIENT = (429, 500, 502, 503, 504)
_EXISTS = "An event already exists with identifier"

Post = Callable[[str, bytes, Mapping[str, str]], tuple[int, bytes]]
"""Status and body of a POST. Raises OSError or HTTPException where there is no answer."""


def post(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """The answer, whatever its status."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url} is not a web address", "write it with http:// or https://")
    try:
        with urlopen(Request(url, body, dict(headers), method="POST"), timeout=TIMEOUT_S) as answer:  # noqa: S310 (scheme checked)
            return answer.status, answer.read()
    except HTTPError as error:
        return error.code, error.read()


class StripeSink:
    """Stripe's meters: one for each kind of token, named `<prefix>_<kind>`."""

    name = "stripe"

    def __init__(self, url: str, key: str, customers: Mapping[str, str], *, prefix: str = "flotilla", post: Post = post) -> None:
        self._url = f"{url.rstrip('/')}/v1/billing/meter_events"
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/x-www-form-urlencoded"}
        self._customers = customers
        self._prefix = prefix
        self._post = post

    def send(self, measures: Sequence[Measure]) -> None:
        """As `Sink` says."""
        unknown = sorted({measure.tenant for measure in measures} - self._customers.keys())
        if unknown:
            raise UserError(f"no Stripe customer is known for {', '.join(unknown)}", "add them to the file of --customers")
        for measure in measures:
            form = {
                "event_name": f"{self._prefix}_{measure.kind}",
                "identifier": measure.id,
                "timestamp": str(measure.hour_ms // 1000),
                "payload[stripe_customer_id]": self._customers[measure.tenant],
                "payload[value]": str(measure.tokens),
                "payload[model]": measure.model,
            }
            status, body = _ask(self._post, self._url, urlencode(form).encode(), self._headers)
            if status >= 300 and not (status == 400 and _message(body).startswith(_EXISTS)):
                raise UserError(f"Stripe refuses {measure.id} ({status}): {_message(body)}", "mend that, and export again")


class CloudEventsSink:
    """OpenMeter, or another that takes CloudEvents in JSON batches. The subject is the tenant."""

    name = "openmeter"

    def __init__(self, url: str, key: str, *, source: str, event_type: str = "flotilla.tokens", post: Post = post) -> None:
        self._url = f"{url.rstrip('/')}/api/v1/events"
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/cloudevents-batch+json"}
        self._source = source
        self._type = event_type
        self._post = post

    def send(self, measures: Sequence[Measure]) -> None:
        """As `Sink` says."""
        for start in range(0, len(measures), MAX_BATCH):
            events = [self._event(measure) for measure in measures[start : start + MAX_BATCH]]
            status, body = _ask(self._post, self._url, json.dumps(events).encode(), self._headers)
            if status >= 300:
                raise UserError(f"{self._url} refuses events ({status}): {_message(body)}", "mend that, and export again")

    def _event(self, measure: Measure) -> dict[str, object]:
        return {
            "specversion": "1.0",
            "id": measure.id,
            "source": self._source,
            "type": self._type,
            "subject": measure.tenant,
            "time": f"{datetime.fromtimestamp(measure.hour_ms // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "datacontenttype": "application/json",
            "data": {"model": measure.model, "kind": measure.kind, "tokens": measure.tokens},
        }


def _ask(send: Post, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """The first answer that is not transient, or the last.

    Raises:
        UserError: there was none.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            status, answer = send(url, body, headers)
            if status not in _TRANSIENT or attempt == MAX_ATTEMPTS:
                return status, answer
        except (OSError, HTTPException) as error:
            if attempt == MAX_ATTEMPTS:
                raise UserError(f"{url} does not answer: {error}", "export again when it does: it resumes") from error
        time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
    raise AssertionError


def _message(body: bytes) -> str:
    """What an error document says, Stripe's or RFC 7807's."""
    try:
        document = json.loads(body)
        error = document.get("error") or document
        return str(error.get("message") or error.get("detail") or error.get("title") or "")
    except (ValueError, AttributeError):
        return body[:200].decode(errors="replace")
