"""What is exported is what was sealed, each token once: again, late, after a crash, and never a row that was tampered with.

The shapes are those of Stripe's and OpenMeter's API documentation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import pytest

from serving.errors import UserError
from serving.metering import seals, sinks
from serving.metering.books import Books
from serving.metering.exporting import Exported, Measure, TamperedRow, export
from serving.metering.ledger import put_rows
from serving.metering.rows import LedgerRow, row_of
from serving.metering.sinks import CloudEventsSink, StripeSink

pytestmark = pytest.mark.emulated_aws
NOON_MS = 1_763_812_800_000  # 2025-11-22T12:00:00Z
DAY = "2025-11-22"
LATER_MS = NOON_MS + 2 * 86_400_000
MEASURE = Measure("acme-20251122T12-1-small-output", "acme", NOON_MS, "small", "output", 30)
EXISTS = b'{"error": {"message": "An event already exists with identifier x.", "type": "invalid_request_error"}}'


class OtherSide:
    """The other billing system: remembers what counted, by id, and every POST as it came."""

    def __init__(self, *answers: tuple[int, bytes] | Exception) -> None:
        self.answers = list(answers)
        self.posts: list[tuple[str, bytes, Mapping[str, str]]] = []
        self.counted: dict[str, int] = {}

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        self.posts.append((url, body, headers))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer
        for event in json.loads(body) if body.startswith(b"[") else []:
            self.counted.setdefault(event["id"], event["data"]["tokens"])
        return 204, b""


@pytest.fixture
def books(aws: Any) -> Books:
    return Books(aws.s3, aws.dynamodb, aws.bucket, aws.table)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "FIRST_WAIT_S", 0.0)


def use(books: Books, records: Any, **changes: Any) -> LedgerRow:
    row = row_of(records.close(records.open(**changes), cached_tokens=30))
    put_rows(books.dynamodb, books.table, [row])
    return row


def open_meter(other: OtherSide) -> CloudEventsSink:
    return CloudEventsSink("http://meter", "om_key", source="flotilla/test", post=other.post)


def test_a_meter_event_is_what_stripe_documents() -> None:
    other = OtherSide((200, b'{"object": "billing.meter_event"}'))
    StripeSink("https://api.stripe.com", "sk_test", {"acme": "cus_1"}, post=other.post).send([MEASURE])
    ((url, body, headers),) = other.posts
    assert url == "https://api.stripe.com/v1/billing/meter_events"
    assert headers == {"authorization": "Bearer sk_test", "content-type": "application/x-www-form-urlencoded"}
    assert parse_qs(body.decode()) == {
        "event_name": ["flotilla_output"],
        "identifier": ["acme-20251122T12-1-small-output"],
        "timestamp": ["1763812800"],
        "payload[stripe_customer_id]": ["cus_1"],
        "payload[value]": ["30"],
        "payload[model]": ["small"],
    }


def test_a_batch_of_cloud_events_is_what_openmeter_documents() -> None:
    other = OtherSide()
    open_meter(other).send([MEASURE])
    ((url, body, headers),) = other.posts
    assert url == "http://meter/api/v1/events"
    assert headers["content-type"] == "application/cloudevents-batch+json"
    assert json.loads(body) == [
        {
            "specversion": "1.0",
            "id": "acme-20251122T12-1-small-output",
            "source": "flotilla/test",
            "type": "flotilla.tokens",
            "subject": "acme",
            "time": "2025-11-22T12:00:00Z",
            "datacontenttype": "application/json",
            "data": {"model": "small", "kind": "output", "tokens": 30},
        }
    ]


def test_a_meter_event_that_stripe_has_already_counts_as_sent() -> None:
    other = OtherSide((400, EXISTS))
    StripeSink("https://s", "k", {"acme": "cus_1"}, post=other.post).send([MEASURE])
    assert len(other.posts) == 1


@pytest.mark.parametrize("answer", [(429, b""), (503, b""), ConnectionResetError(), TimeoutError()])
def test_what_may_pass_is_tried_again_and_what_does_not_is_said(answer: Any) -> None:
    patient = OtherSide(answer, answer)
    open_meter(patient).send([MEASURE])
    assert patient.counted == {MEASURE.id: 30}
    with pytest.raises(UserError, match="http://meter"):
        open_meter(OtherSide(*[answer] * sinks.MAX_ATTEMPTS)).send([MEASURE])


def test_a_refusal_is_said_with_its_reason_and_not_tried_again() -> None:
    other = OtherSide((400, b'{"error": {"message": "No such customer: cus_1"}}'))
    with pytest.raises(UserError, match="No such customer: cus_1"):
        StripeSink("https://s", "k", {"acme": "cus_1"}, post=other.post).send([MEASURE])
    assert len(other.posts) == 1


def test_a_tenant_without_a_customer_is_named_before_anything_is_sent() -> None:
    other = OtherSide()
    with pytest.raises(UserError, match="acme"):
        StripeSink("https://s", "k", {}, post=other.post).send([MEASURE])
    assert other.posts == []


def test_each_token_is_exported_once_however_often_and_however_late(books: Books, records: Any) -> None:
    """Two rows of 70 uncached, 30 cached, 10 output tokens in one hour, one in the next; and one that comes after the seal."""
    other = OtherSide()
    for opened_at_ms in (NOON_MS, NOON_MS + 1, NOON_MS + 3_600_000):
        use(books, records, opened_at_ms=opened_at_ms)
    assert export(books, open_meter(other), ["acme"], DAY) == Exported(0, 0, 0)  # nothing is sealed yet
    seals.seal_day(books, "acme", DAY, LATER_MS)
    assert export(books, open_meter(other), ["acme"], DAY) == Exported(1, 6, 3 * 110)
    assert export(books, open_meter(other), ["acme"], DAY) == Exported(0, 0, 0)
    use(books, records)
    seals.seal_day(books, "acme", DAY, LATER_MS)
    assert export(books, open_meter(other), ["acme"], DAY) == Exported(1, 3, 110)
    assert sum(other.counted.values()) == 4 * 110
    assert other.counted["acme-20251122T12-1-small-input"] == 140
    assert other.counted["acme-20251122T12-2-small-cached_input"] == 30


def test_an_export_that_was_cut_off_is_sent_again_under_the_same_ids(books: Books, records: Any) -> None:
    use(books, records)
    seals.seal_day(books, "acme", DAY, LATER_MS)
    other = OtherSide()
    open_meter(other).send([MEASURE])
    before = dict(other.counted)
    other.answers = [(500, b"")] * sinks.MAX_ATTEMPTS
    with pytest.raises(UserError):
        export(books, open_meter(other), ["acme"], DAY)
    assert export(books, open_meter(other), ["acme"], DAY).num_seals == 1
    assert other.counted[MEASURE.id] == before[MEASURE.id]


def test_sinks_have_a_cursor_each(books: Books, records: Any) -> None:
    use(books, records)
    seals.seal_day(books, "acme", DAY, LATER_MS)
    export(books, open_meter(OtherSide()), ["acme"], DAY)
    stripe = StripeSink("https://s", "k", {"acme": "cus_1"}, post=OtherSide().post)
    assert export(books, stripe, ["acme"], DAY).num_seals == 1


def test_a_row_that_is_not_what_was_sealed_is_not_exported(books: Books, records: Any) -> None:
    row = use(books, records)
    seals.seal_day(books, "acme", DAY, LATER_MS)
    books.dynamodb.delete_item(TableName=books.table, Key=row.key.item())
    other = OtherSide()
    with pytest.raises(TamperedRow, match=row.event_id):
        export(books, open_meter(other), ["acme"], DAY)
    assert other.posts == []
