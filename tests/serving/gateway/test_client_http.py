"""The client's side of the wire: what is read from it, cut anywhere; what is written to it, read back by h11; what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import h11
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from serving.gateway import client_http
from serving.gateway.accept import Room
from serving.gateway.client_http import MAX_HEAD_BYTES, ClientProtocol, client_protocol
from serving.gateway.exchange import BodyBroken, BodyTooLarge, ClientGone, Exchange

DIRECT, OTHER = "/v1/chat/completions", "/other"
MAX_BODY = 1000
QUICKLY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Wire(asyncio.Transport):
    """A socket's other end: what was written, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 81)})
        self.sent = b""
        self.is_paused = self.is_closed = self.is_aborted = False

    def write(self, data: Any) -> None:
        assert not self.is_closed
        self.sent += data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Server:
    """One connection, whose requests are answered with what came: 200 and the body, in two pieces without a length."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.served: list[tuple[str, bytes]] = []
        self.gone = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        config = uvicorn.Config(
            self.other, http=client_protocol(self.run, Room(1000)), log_config=None, interface="asgi3", proxy_headers=False
        )
        config.load()
        protocol: Any = config.http_protocol_class
        self.protocol: ClientProtocol = protocol(config=config, server_state=ServerState(), app_state={})
        self.protocol.connection_made(self.wire)

    async def feed(self, data: bytes, cuts: Iterable[int] = ()) -> None:
        bounds = [0, *sorted(set(cuts)), len(data)]
        for start, end in pairwise(bounds):
            if not self.wire.is_closed and start < end:
                self.protocol.data_received(data[start:end])
                await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)

    def hang_up(self) -> None:
        self.wire.is_closed = True
        self.protocol.connection_lost(None)

    async def run(self, exchange: Exchange) -> None:
        try:
            body = await exchange.read_body(MAX_BODY)
            await self.may_answer.wait()
            if exchange.is_disconnected:
                raise ClientGone
            self.served.append((exchange.path, body))
            exchange.start(200, ((b"content-type", b"text/event-stream"),))
            exchange.write(b"<" + body)
            await exchange.finish(b">")
        except (BodyTooLarge, BodyBroken) as error:
            exchange.start(413 if isinstance(error, BodyTooLarge) else 400, ((b"content-length", b"0"),))
            await exchange.finish()
        except ClientGone:
            self.gone += 1

    async def other(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.served.append((scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % (len(body) + 2))]})
        await send({"type": "http.response.body", "body": b"<" + body + b">"})


def request(path: str, body: bytes, *, pieces: int | None = None, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A request as h11 writes it; chunked into `pieces` where they are given."""
    client = h11.Connection(h11.CLIENT)
    framing = ("content-length", str(len(body))) if pieces is None else ("transfer-encoding", "chunked")
    sent = client.send(h11.Request(method="POST", target=path, headers=[("host", "x"), framing, *headers]))
    step = max(1, len(body) // (pieces or 1))
    for start in range(0, len(body), step):
        sent = (sent or b"") + (client.send(h11.Data(data=body[start : start + step])) or b"")
    return (sent or b"") + (client.send(h11.EndOfMessage()) or b"")


def answers(sent: bytes, num: int, *, is_closed: bool = False, version: str = "1.1") -> list[tuple[int, bytes, bool]]:
    """Status, body and whether the connection goes on, as h11 reads them."""
    found = []
    for _ in range(num):
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("host", "x")], http_version="1.1"))
        client.send(h11.EndOfMessage())
        client.receive_data(sent)
        if is_closed:
            client.receive_data(b"")
        head = client.next_event()
        while isinstance(head, h11.InformationalResponse):
            head = client.next_event()
        assert isinstance(head, h11.Response)
        body = b""
        while isinstance(event := client.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        found.append((head.status_code, body, client.our_state is h11.DONE))
        sent = client.trailing_data[0]
    assert sent == b"", "nothing is left over"
    return found


REQUESTS = st.tuples(
    st.sampled_from([DIRECT, OTHER, DIRECT + "?x=1", "/v1/completions"]), st.binary(max_size=60), st.none() | st.integers(1, 5)
)


@given(requests=st.lists(REQUESTS, min_size=1, max_size=4), cuts=st.lists(st.integers(1, 600)))
@QUICKLY
def test_requests_of_both_kinds_are_served_in_order_wherever_they_are_cut(
    requests: list[tuple[str, bytes, int | None]], cuts: list[int]
) -> None:
    async def serve() -> None:
        server = Server()
        data = b"".join(request(path, body, pieces=pieces) for path, body, pieces in requests)
        await server.feed(data, [cut for cut in cuts if cut < len(data)])
        assert server.served == [(path.partition("?")[0], body) for path, body, _ in requests]
        seen = answers(server.wire.sent, len(requests))
        assert seen == [(200, b"<" + body + b">", True) for _, body, _ in requests]
        server.hang_up()

    asyncio.run(serve())


async def test_two_pipelined_requests_cut_at_every_byte_are_served() -> None:
    data = request(DIRECT, b"one", pieces=2) + request(DIRECT, b"two")
    for cut in range(1, len(data)):
        server = Server()
        await server.feed(data, [cut])
        assert [body for _, body, _ in answers(server.wire.sent, 2)] == [b"<one>", b"<two>"]
    server = Server()
    await server.feed(data, range(len(data)))
    assert [body for _, body, _ in answers(server.wire.sent, 2)] == [b"<one>", b"<two>"]


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
SMUGGLED: list[tuple[str, bytes]] = [
    ("a length and chunks", HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
    ("chunks and a length", HEAD + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
    ("two lengths", HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd"),
    ("one length twice", HEAD + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc"),
    ("a list of lengths", HEAD + b"content-length: 3, 3\r\n\r\nabc"),
    ("a negative length", HEAD + b"content-length: -3\r\n\r\nabc"),
    ("a signed length", HEAD + b"content-length: +3\r\n\r\nabc"),
    ("a hexadecimal length", HEAD + b"content-length: 0x3\r\n\r\nabc"),
    ("a length beyond 64 bits", HEAD + b"content-length: 99999999999999999999\r\n\r\nabc"),
    ("chunks that are not last", HEAD + b"transfer-encoding: chunked, identity\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    ("another encoding", HEAD + b"transfer-encoding: xchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
    ("an encoding hidden by a space", HEAD + b"transfer-encoding : chunked\r\ncontent-length: 3\r\n\r\nabc"),
    ("an encoding hidden by a tab", HEAD + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n"),
    ("a folded header", HEAD + b"transfer-encoding:\r\n chunked\r\ncontent-length: 3\r\n\r\nabc"),
    ("a NUL in a header", HEAD + b"x: a\x00b\r\ncontent-length: 0\r\n\r\n"),
    ("a bare CR in a header", HEAD + b"x: a\rb: c\r\ncontent-length: 0\r\n\r\n"),
    ("no host but something like one", b"POST /v1/chat/completions HTTP/1.1\r\n\r\nhost: x\r\ncontent-length: 0\r\n\r\n"),
    ("no host", b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n"),
    ("two hosts", HEAD + b"host: y\r\ncontent-length: 0\r\n\r\n"),
    ("two keys", HEAD + b"authorization: a\r\nauthorization: b\r\ncontent-length: 0\r\n\r\n"),
    ("chunks in HTTP/1.0", b"POST /v1/chat/completions HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("another protocol", b"POST /v1/chat/completions FTP/1.1\r\nhost: x\r\n\r\n"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ("a chunk without a size", HEAD + b"transfer-encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n"),
    ("a chunk of a signed size", HEAD + b"transfer-encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n"),
    ("a chunk of 2^64 bytes", HEAD + b"transfer-encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n"),
    ("a chunk longer than it says", HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n"),
    ("chunk lines that end in LF", HEAD + b"transfer-encoding: chunked\r\n\r\n3\nabc\n0\n\n"),
]


@pytest.mark.parametrize("data", [row[1] for row in SMUGGLED], ids=[row[0] for row in SMUGGLED])
async def test_what_two_readers_may_understand_differently_is_refused(data: bytes) -> None:
    """Whole and byte by byte: 400, the connection is closed, and nothing of it was served."""
    for cuts in ([], range(len(data))):
        server = Server()
        await server.feed(data, cuts)
        ((status, _, goes_on),) = answers(server.wire.sent, 1, is_closed=True)
        assert (status, goes_on, server.served, server.wire.is_closed) == (400, False, [], True)


@given(
    data=st.tuples(st.binary(max_size=20), st.booleans()),
    place=st.integers(0, 150),
    with_=st.sampled_from([b"", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\x00", b":", b"0", b"3", b",", b";", b"\xff", b"chunked"]),
)
@settings(QUICKLY, max_examples=300)
def test_what_we_and_h11_both_accept_we_understand_alike(data: tuple[bytes, bool], place: int, with_: bytes) -> None:
    """One byte of a sound request replaced or something put in: a proxy that reads it as h11 does must see the same requests."""
    body, is_chunked = data
    sound = request(DIRECT, body, pieces=2 if is_chunked else None) + request(DIRECT, b"next")
    broken = sound[:place] + with_ + sound[place + (len(with_) == 1) :]

    async def serve() -> list[tuple[str, bytes]]:
        server = Server()
        await server.feed(broken)
        server.hang_up()
        return server.served

    theirs = read_by_h11(broken)
    for ours, other in zip(asyncio.run(serve()), theirs, strict=False):
        assert ours == other


def read_by_h11(data: bytes) -> list[tuple[str, bytes]]:
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    found = []
    try:
        while isinstance(head := server.next_event(), h11.Request):
            body = b""
            while isinstance(event := server.next_event(), h11.Data):
                body += event.data
            if not isinstance(event, h11.EndOfMessage):
                break
            found.append((head.target.decode().partition("?")[0], body))
            server.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            server.send(h11.EndOfMessage())
            server.start_next_cycle()
    except h11.ProtocolError:
        pass
    return found


async def test_garbage_behind_a_request_does_not_get_into_its_answer() -> None:
    server = Server()
    server.may_answer.clear()
    await server.feed(request(DIRECT, b"one") + b"\x00\x01\r\n\r\n")
    assert server.wire.sent == b""
    server.may_answer.set()
    await server.feed(b"")
    ((status, body, _),) = answers(server.wire.sent, 1, is_closed=True)
    assert (status, body, server.wire.is_closed) == (200, b"<one>", True)


async def test_a_client_of_http_1_0_gets_a_body_that_ends_with_the_connection() -> None:
    server = Server()
    await server.feed(b"POST /v1/chat/completions HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi")
    head, _, body = server.wire.sent.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert (body, server.wire.is_closed) == (b"<hi>", True)


async def test_a_client_that_asks_whether_to_send_its_body_is_told_when_it_is_wanted() -> None:
    server = Server()
    whole = request(DIRECT, b"hello", headers=[("expect", "100-continue")])
    head, body = whole[:-5], whole[-5:]
    await server.feed(head)
    assert server.wire.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    await server.feed(body)
    assert answers(server.wire.sent, 1)[0][:2] == (200, b"<hello>")


async def test_a_body_that_is_too_large_is_not_asked_for_and_its_connection_closes() -> None:
    """Whether the body still comes cannot be known, so what follows could be taken for it."""
    server = Server()
    await server.feed(request(DIRECT, b"x" * (MAX_BODY + 1), headers=[("expect", "100-continue")])[: -MAX_BODY - 1])
    assert answers(server.wire.sent, 1, is_closed=True) == [(413, b"", False)]
    assert server.wire.is_closed


async def test_a_body_that_is_too_large_is_read_past_so_that_the_refusal_is_read() -> None:
    server = Server()
    data = request(DIRECT, b"x" * 5 * MAX_BODY)
    await server.feed(data + request(DIRECT, b"next"), range(0, len(data), 500))
    assert [(status, body) for status, body, _ in answers(server.wire.sent, 2)] == [(413, b""), (200, b"<next>")]


async def test_a_head_has_a_size_and_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    await server.feed(HEAD + b"x: " + b"y" * MAX_HEAD_BYTES)
    assert (answers(server.wire.sent, 1, is_closed=True)[0][0], server.wire.is_closed) == (431, True)
    monkeypatch.setattr(client_http, "HEAD_TIMEOUT_S", 0.0)
    server = Server()
    await server.feed(HEAD)
    server.protocol._check()
    assert (answers(server.wire.sent, 1, is_closed=True)[0][0], server.wire.is_closed) == (408, True)


async def test_a_connection_that_does_not_take_its_last_bytes_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.wire.close()
    server.protocol._check()
    assert not server.wire.is_aborted
    monkeypatch.setattr(client_http, "FLUSH_S", 0.0)
    server.protocol._check()
    assert server.wire.is_aborted


@pytest.mark.parametrize("second", [DIRECT, OTHER])
async def test_a_client_that_leaves_with_a_second_request_waiting_is_noticed(second: str) -> None:
    """uvicorn alone tells the latest request only, which is not the one that an engine is working on."""
    server = Server()
    server.may_answer.clear()
    await server.feed(request(DIRECT, b"one") + request(second, b"two"))
    server.hang_up()
    server.may_answer.set()
    await server.feed(b"")
    assert (server.gone, server.served) == (1, [])


async def test_many_pipelined_requests_wait_in_the_socket() -> None:
    server = Server()
    server.may_answer.clear()
    data = b"".join(request(DIRECT, b"%d" % number) for number in range(12))
    await server.feed(data[: len(data) // 2])
    assert not server.wire.is_paused
    await server.feed(data[len(data) // 2 :])
    assert server.wire.is_paused
    server.may_answer.set()
    await server.feed(b"")
    assert [body for _, body in server.served] == [b"%d" % number for number in range(12)]
    assert not server.wire.is_paused


async def test_a_body_that_nobody_reads_yet_waits_in_the_socket() -> None:
    server = Server()
    exchange_reads = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange_reads.wait()
        await server.run(exchange)

    server.protocol._run = slow
    await server.feed(HEAD + b"content-length: 200000\r\n\r\n")
    await server.feed(b"x" * 70_000)
    assert server.wire.is_paused
    exchange_reads.set()
    await server.feed(b"")
    assert not server.wire.is_paused
