"""A request that is sent again under its Idempotency-Key: one generation, one bill, one answer; whatever happened in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from gateway_support import Behaviour, Gateway, chat_body
from moto import mock_aws

from serving.gateway import claims as claims_module
from serving.gateway.claims import KEEP_S, Claim, ClaimTable, Held, Owner, Result, claim_pk
from serving.gateway.idempotency import Idempotency
from serving.gateway.tenants import Tenant
from serving.metering.events import CountSource, Outcome, UsageClose, UsageOpen
from serving.metering.framing import SegmentHeader, encode_header, encode_record
from serving.metering.segments import SEALED, SegmentName

REGION = "us-east-2"
NOW_MS = 1_795_000_000_000
MakeTable = Callable[..., ClaimTable]


@pytest.fixture
def make_table() -> Iterator[MakeTable]:
    """A gateway's view of one table; all views see the same items."""
    with mock_aws():
        options = {"region_name": REGION, "aws_access_key_id": "x", "aws_secret_access_key": "x"}
        dynamodb, s3 = boto3.client("dynamodb", **options), boto3.client("s3", **options)
        dynamodb.create_table(
            TableName="idempotency",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in ("pk", "sk")],
            BillingMode="PAY_PER_REQUEST",
        )
        s3.create_bucket(Bucket="bodies", CreateBucketConfiguration={"LocationConstraint": REGION})

        def make(gateway: str = "gateway-0", epoch: int = 1) -> ClaimTable:
            owner = Owner(REGION, gateway, epoch)
            return ClaimTable(dynamodb, "idempotency", s3, "bodies", owner, longest_request_s=600)

        yield make


def claim(number: int = 1, *, fingerprint: str = "a", at_ms: int = NOW_MS) -> Claim:
    return Claim(claim_pk("acme", "key"), f"event-{number}", f"req_{number}", fingerprint, at_ms)


async def ask(
    gateway: Gateway, *, key: str = "k-1", api_key: str | None = None, **body: Any
) -> tuple[int, dict[str, str], bytes]:
    headers = {"idempotency-key": key}
    async with gateway.post(body=chat_body(**body), key=api_key, **headers) as answer:
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.read()


# Through a gateway.


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("inline_bytes", [claims_module.MAX_INLINE_BYTES, 8], ids=["in the item", "in the bucket"])
async def test_an_answer_is_replayed_as_it_was_sent_and_billed_once(
    make_gateway: Any, make_table: MakeTable, monkeypatch: pytest.MonkeyPatch, is_streamed: bool, inline_bytes: int
) -> None:
    monkeypatch.setattr(claims_module, "MAX_INLINE_BYTES", inline_bytes)
    gateway: Gateway = await make_gateway(claims=make_table())
    status, headers, body = await ask(gateway, stream=is_streamed)
    assert status == 200 and "idempotent-replayed" not in headers
    for _ in range(3):
        again, replayed, same = await ask(gateway, stream=is_streamed)
        assert (again, same) == (200, body)
        assert replayed["idempotent-replayed"] == "true"
        assert replayed["content-type"] == headers["content-type"]
        assert replayed["x-original-request-id"] == headers["x-request-id"] != replayed["x-request-id"]
    assert gateway.num_asked == 1
    assert [(close.outcome, close.output_tokens) for close in gateway.journal.closed] == [(Outcome.FINISHED, 3)]
    assert gateway.journal.opened[0].claim == claim_pk("acme", "k-1")


async def test_another_request_under_the_key_is_422_and_another_tenants_key_is_its_own(
    make_gateway: Any, make_table: MakeTable
) -> None:
    gateway: Gateway = await make_gateway(claims=make_table())
    assert (await ask(gateway))[0] == 200
    status, _, body = await ask(gateway, temperature=0.5)
    assert (status, b"idempotency_key_reused" in body) == (422, True)
    status, headers, _ = await ask(gateway, temperature=0.5, api_key=gateway.keys.add(Tenant("other")))
    assert status == 200 and "idempotent-replayed" not in headers
    assert gateway.num_asked == 2


async def test_while_it_runs_the_same_request_is_409_and_then_replayed(make_gateway: Any, make_table: MakeTable) -> None:
    gateway: Gateway = await make_gateway(claims=make_table())
    gateway.engine.behaviour = Behaviour(delay_s=0.1)
    first = asyncio.create_task(ask(gateway))
    while not gateway.num_asked:
        await asyncio.sleep(0.01)
    status, headers, body = await ask(gateway)
    assert (status, headers["retry-after"], b"idempotency_in_flight" in body) == (409, "1", True)
    assert (await first)[0] == 200
    assert (await ask(gateway))[2] == (await first)[2]
    assert gateway.num_asked == 1


async def test_a_client_that_hangs_up_finds_the_whole_answer_when_it_comes_back(make_gateway: Any, make_table: MakeTable) -> None:
    gateway: Gateway = await make_gateway(claims=make_table())
    gateway.engine.behaviour = Behaviour(tokens=["x"] * 20, delay_s=0.01)
    async with gateway.post(body=chat_body(stream=True), **{"idempotency-key": "k-1"}) as answer:
        await answer.content.readany()
    await gateway.is_quiet()
    status, headers, body = await ask(gateway, stream=True)
    while status == 409:
        status, headers, body = await ask(gateway, stream=True)
    assert (status, headers["idempotent-replayed"], body.count(b'"content":"x"')) == (200, "true", 20)
    assert b"[DONE]" in body
    assert [(close.outcome, close.output_tokens) for close in gateway.journal.closed] == [(Outcome.FINISHED, 20)]
    assert gateway.num_asked == 1


async def test_what_ended_with_nothing_billed_may_be_tried_again(make_gateway: Any, make_table: MakeTable) -> None:
    gateway: Gateway = await make_gateway(claims=make_table())
    gateway.engine.behaviour = Behaviour(status=400)
    assert (await ask(gateway))[0] == 400
    gateway.engine.behaviour = Behaviour()
    assert (await ask(gateway))[0] == 200
    assert [close.outcome for close in gateway.journal.closed] == [Outcome.NOT_SERVED, Outcome.FINISHED]


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_failure_that_was_billed_is_replayed_too(make_gateway: Any, make_table: MakeTable, is_streamed: bool) -> None:
    gateway: Gateway = await make_gateway(claims=make_table())
    gateway.engine.behaviour = Behaviour(cut_after=2)
    first = await ask(gateway, stream=is_streamed)
    gateway.engine.behaviour = Behaviour()
    again = await ask(gateway, stream=is_streamed)
    assert (again[0], again[2]) == (first[0], first[2]) and b"engine_lost" in first[2]
    assert gateway.num_asked == 1
    assert [(close.outcome, close.output_tokens) for close in gateway.journal.closed] == [(Outcome.ENGINE_LOST, 2)]


async def test_a_bill_that_could_not_be_written_does_not_free_the_key(make_gateway: Any, make_table: MakeTable) -> None:
    gateway: Gateway = await make_gateway(claims=make_table())
    gateway.engine.behaviour = Behaviour(delay_s=0.05)
    first = asyncio.create_task(ask(gateway))
    while not gateway.num_asked:
        await asyncio.sleep(0.01)
    gateway.journal.is_broken = True
    assert (await first)[0] == 503
    gateway.journal.is_broken = False
    status, _, body = await ask(gateway)
    assert (status, b"metering_unavailable" in body) == (503, True)
    assert gateway.num_asked == 1, "the journal writes the bill later, so the answer must not be made twice"


@pytest.mark.parametrize("key", ["", "x" * 256, "with space"])
async def test_a_key_that_cannot_be_one_is_refused(gateway: Gateway, key: str) -> None:
    status, _, body = await ask(gateway, key=key)
    assert (status, b"invalid_value" in body, gateway.num_asked) == (400, True, 0)


async def test_where_the_table_does_not_answer_nothing_is_generated_for_a_key_and_all_else_is_served(gateway: Gateway) -> None:
    status, headers, body = await ask(gateway)
    assert (status, headers["retry-after"], b"idempotency_unavailable" in body) == (503, "2", True)
    assert gateway.num_asked == 0
    async with gateway.post() as answer:
        assert answer.status == 200


# When a gateway dies.


def write_journal(folder: Path, epoch: int, *closes: UsageClose) -> None:
    header = encode_header(SegmentHeader("gateway-0", epoch, 0, NOW_MS))
    path = folder / f"{SegmentName('gateway-0', epoch, 0).stem}{SEALED}"
    path.write_bytes(header + b"".join(map(encode_record, closes)))


def event(number: int, outcome: Outcome, *, at_ms: int = NOW_MS) -> UsageClose:
    opened = UsageOpen(
        event_id=f"event-{number}", tenant="acme", key_id="k", model="small", release_id="r", region=REGION, gateway="gateway-0",
        endpoint="chat.completions", opened_at_ms=at_ms, prompt_tokens=1, price_version="v", input_micro_usd_per_mtok=1,
        cached_input_micro_usd_per_mtok=1, output_micro_usd_per_mtok=1, claim=claim_pk("acme", "key"),
    )  # fmt: skip
    return UsageClose(opened, outcome, CountSource.ENGINE_RUNNING, 1, 0, 1, at_ms)


@pytest.mark.parametrize(
    ("journal", "becomes"),
    [
        # what the dead life's journal says of the event, and what a retry meets once the next life has begun
        ([event(1, Outcome.GATEWAY_CRASH)], Held(is_same_request=True, is_lost=True)),  # OPEN, and no CLOSE but recovery's
        ([event(1, Outcome.FINISHED)], Held(is_same_request=True, is_lost=True)),  # died between CLOSE and keeping the answer
        ([], None),  # claimed and never opened: no engine was asked, so the key is free
        ([event(2, Outcome.GATEWAY_CRASH)], None),  # another event
        ([event(1, Outcome.FINISHED), event(3, Outcome.FINISHED, at_ms=NOW_MS + 61_000)], None),  # longer ago than answers take
    ],
)
async def test_the_next_life_settles_what_the_last_one_claimed(
    make_table: MakeTable, tmp_path: Path, journal: list[UsageClose], becomes: Held | None
) -> None:
    old, other = make_table(epoch=1000), make_table("gateway-1", epoch=1)
    assert old.claim(claim(1)) is None
    write_journal(tmp_path, 1000, *journal)
    assert other.claim(claim(9)) == Held(is_same_request=True), "as long as it is not back, nobody knows"
    new = Idempotency(make_table(epoch=2000), tmp_path)
    await new.announce()
    assert other.claim(claim(9)) == becomes
    new.close()


async def test_a_later_life_leaves_what_was_answered_alone(make_table: MakeTable, tmp_path: Path) -> None:
    old = make_table(epoch=1000)
    assert old.claim(claim(1)) is None
    old.finish(claim(1), Result(200, "text/plain", b"hello"))
    write_journal(tmp_path, 1000, event(1, Outcome.FINISHED))
    new = Idempotency(make_table(epoch=2000), tmp_path)
    await new.announce()
    new.close()
    assert make_table("gateway-1").claim(claim(9)) == Result(200, "text/plain", b"hello", "req_1")


def test_a_gateway_that_never_comes_back_is_given_up_and_its_key_never_generated_for(make_table: MakeTable) -> None:
    assert make_table().claim(claim(1)) is None
    other = make_table("gateway-1")
    assert other.claim(claim(2, at_ms=NOW_MS + 600_000)) == Held(is_same_request=True)
    assert other.claim(claim(2, at_ms=NOW_MS + 600_001)) == Held(is_same_request=True, is_lost=True)


def test_a_claim_whose_put_timed_out_after_it_was_done_is_ours(make_table: MakeTable) -> None:
    table = make_table()
    assert table.claim(claim(1)) is None
    assert table.claim(claim(1)) is None
    assert table.claim(claim(2)) == Held(is_same_request=True)


def test_after_24_hours_the_key_is_free(make_table: MakeTable) -> None:
    table = make_table()
    assert table.claim(claim(1)) is None
    table.finish(claim(1), Result(200, "text/plain", b"hello"))
    last_ms = NOW_MS + KEEP_S * 1000
    assert isinstance(table.claim(claim(2, at_ms=last_ms)), Result)
    assert table.claim(claim(2, at_ms=last_ms + 1000)) is None


def test_only_the_owner_of_a_claim_settles_it(make_table: MakeTable) -> None:
    table = make_table()
    assert table.claim(claim(1)) is None
    table.release(claim(2))
    table.finish(claim(2), Result(200, "text/plain", b"other"))
    table.mark_lost(claim(1).pk, "event-2")
    assert table.claim(claim(3)) == Held(is_same_request=True)
    table.release(claim(1))
    assert table.claim(claim(3)) is None
