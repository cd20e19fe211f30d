"""Drills the books: a month of usage with everything that goes wrong with bills, against a truth that was kept apart.

    shipped     every segment three times, out of order, by its own region
    late        an hour of one region that ships after its day was sealed; then twice more; then from the other region
    prices      a tariff that changes in the middle of the month: a line on either side, to the micro-dollar
    invoices    issued, then what comes late and what is rated anew: notes on the next, and the sum of all is the sum of rows
    rebuild     from the archive into an empty table, in another order: the same hash
    tampering   rows changed, made cheaper, removed and forged: each named, and no other
    export      to a sink that fails and forgets answers: each token once

Run by `make drill-billing`, on an emulated AWS with a global table in two regions. Prints a table and one line of JSON; exits 1
where the figures do not hold. The truth is kept by the drill's own sums, in fractions of a dollar; no code of the books takes
part in it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from policies.billing.tariffs import PriceList, Rate, Tariffs
from serving.errors import UserError
from serving.metering import seals, sinks
from serving.metering.archive import archive_key, put_segment
from serving.metering.audit import Fault, audit
from serving.metering.books import Books
from serving.metering.events import CountSource, Outcome, UsageClose, UsageOpen
from serving.metering.exporting import export
from serving.metering.framing import SegmentHeader, decode_segment, encode_header, encode_record
from serving.metering.invoicing import invoice_of
from serving.metering.ledger import PutResult, create_table, put_rows, read_rows
from serving.metering.report import parse_month, summarise
from serving.metering.rerating import rerate
from serving.metering.rows import LedgerRow, item_of, ledger_hash, row_of, rows_of, utc_days
from serving.metering.segments import SegmentName
from serving.metering.sinks import CloudEventsSink
from serving.target import aws_client

HOME, OTHER = "us-east-2", "us-west-2"
MONTH, NEXT_MONTH = "2026-10", "2026-11"
BEGIN_MS, END_MS = parse_month(MONTH)
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
AFTER_MS = END_MS + 2 * DAY_MS
TENANTS = ("acme", "beta", "corp")
SEGMENT_CLOSES = 50
LATE_MS = BEGIN_MS + 9 * DAY_MS + 12 * HOUR_MS
LATE_SHARE = 0.1
"""Of all requests so many fall into the hour that comes late."""
NUM_TAMPERED = 40
SOME = "> 0"
REPLICATION_LIMIT_S = 30.0
PRICES = {
    "small": ((100_000, 25_000, 300_000), (93_001, 23_003, 281_007)),
    "large": ((900_000, 225_000, 2_700_000), (873_101, 218_009, 2_619_003)),
}
CHANGE_DAY = "2026-10-16"


def tariffs() -> Tariffs:
    """Two tariffs; the second is not round, so that money has to be rounded somewhere."""
    return Tariffs.model_validate(
        {
            "tariffs": [
                {
                    "version": version,
                    "effective_from": day,
                    "batch_discount_percent": 50,
                    "models": {
                        model: dict(zip(("input", "cached_input", "output"), prices[place], strict=True))
                        for model, prices in PRICES.items()
                    },
                }
                for place, (version, day) in enumerate([("old", "2026-10-01"), ("new", CHANGE_DAY)])
            ]
        }
    )


@dataclass
class Truth:
    """What was used and what it costs, kept by plain sums."""

    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By tenant and kind."""
    usd: defaultdict[tuple[str, str], Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    """By tenant and tariff."""
    num_requests: Counter[str] = field(default_factory=Counter)

    def saw(self, close: UsageClose) -> None:
        """An event."""
        event = close.open
        tenant = event.tenant
        is_new = event.opened_at_ms >= parse_day(CHANGE_DAY)
        price = PRICES[event.model][is_new]
        counts = (close.prompt_tokens - close.cached_tokens, close.cached_tokens, close.output_tokens)
        factor = Fraction(1, 2) if event.is_batch else Fraction(1)
        for kind, count, micro_usd in zip(("input", "cached", "output"), counts, price, strict=True):
            self.tokens[tenant, kind] += count
            self.usd[tenant, "new" if is_new else "old"] += count * Fraction(round(micro_usd * factor), 10**12)
        self.num_requests[tenant] += 1

    def total_usd(self, tenant: str) -> Fraction:
        """All that `tenant` owes for the month."""
        return sum((usd for (name, _), usd in self.usd.items() if name == tenant), Fraction())


def parse_day(day: str) -> int:
    """Unix time in ms of a UTC day's begin."""
    return BEGIN_MS + (int(day[-2:]) - 1) * DAY_MS


class ForgetfulSink:
    """The other billing system: fails, or takes a batch and then fails to say so; remembers ids."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.counted: dict[str, int] = {}
        self.num_failures = 0

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Answers as OpenMeter does, when it does."""
        luck = self.rng.random()
        if luck < 0.1:
            self.num_failures += 1
            return 503, b""
        for event in json.loads(body):
            self.counted.setdefault(event["id"], event["data"]["tokens"])
        if luck < 0.2:
            self.num_failures += 1
            raise TimeoutError("after it was taken")
        return 204, b""


@contextmanager
def emulated_aws() -> Iterator[str]:
    """MiniStack on loopback; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)}
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "ministack"], cwd=folder, env=env, stdout=log, stderr=log)
        try:
            deadline_s = time.monotonic() + 60
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError("the emulated AWS did not start")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def make_books(url: str) -> dict[str, Books]:
    """The archive, and a global table with a replica in each region."""
    clients = {region: aws_client("dynamodb", region, url) for region in (HOME, OTHER)}
    s3 = aws_client("s3", HOME, url)
    s3.create_bucket(Bucket="archive", CreateBucketConfiguration={"LocationConstraint": HOME})
    create_table(clients[HOME], "ledger")
    clients[HOME].update_table(TableName="ledger", ReplicaUpdates=[{"Create": {"RegionName": OTHER}}])
    return {region: Books(s3, client, "archive", "ledger") for region, client in clients.items()}


def make_closes(rng: random.Random, num: int, truth: Truth) -> list[UsageClose]:
    """A month of ended requests of every outcome."""
    lists = {model: PriceList(tariffs().price_list(model)) for model in PRICES}
    closes = []
    for number in range(num):
        is_late = rng.random() < LATE_SHARE
        opened_at_ms = LATE_MS + rng.randrange(HOUR_MS - 10_000) if is_late else BEGIN_MS + (END_MS - BEGIN_MS) * number // num
        model, is_batch = rng.choice(list(PRICES)), rng.random() < 0.1
        rate = lists[model].rate(opened_at_ms, "", is_batch)
        outcome = rng.choices(list(Outcome), [80, 10, 3, 5, 2])[0]
        prompt = 0 if outcome is Outcome.NOT_SERVED else rng.randrange(1, 4000)
        output = 0 if outcome is Outcome.NOT_SERVED else int(rng.expovariate(1 / 211)) + 1
        event = UsageOpen(
            event_id=f"{opened_at_ms:012x}"[:8] + f"-{opened_at_ms & 0xFFFF:04x}-7000-8000-{number:012d}",
            tenant=rng.choice(TENANTS),
            key_id=f"key{rng.randrange(3)}",
            model=model,
            release_id="a" * 64,
            region=OTHER if is_late else rng.choice((HOME, OTHER)),
            gateway="gateway-0-0",
            endpoint="chat.completions",
            opened_at_ms=opened_at_ms,
            prompt_tokens=prompt,
            price_version=rate.version,
            input_micro_usd_per_mtok=rate.input_micro_usd_per_mtok,
            cached_input_micro_usd_per_mtok=rate.cached_input_micro_usd_per_mtok,
            output_micro_usd_per_mtok=rate.output_micro_usd_per_mtok,
            is_batch=is_batch,
        )
        source = CountSource.ENGINE_FINAL if outcome is Outcome.FINISHED else CountSource.ENGINE_RUNNING
        cached = rng.randrange(prompt + 1) if outcome is Outcome.FINISHED else 0
        close = UsageClose(event, outcome, source, prompt, cached, output, opened_at_ms + rng.randrange(100, 9000))
        truth.saw(close)
        closes.append(close)
    return closes


def make_segments(closes: Sequence[UsageClose]) -> list[tuple[str, str, bytes]]:
    """Region, archive key and bytes of sealed segments."""
    segments = []
    for region, gateway, is_late in ((HOME, "gateway-0-0", False), (OTHER, "gateway-0-0", False), (OTHER, "gateway-1-0", True)):
        its = [close for close in closes if close.open.region == region and _is_late(close) == is_late]
        for seq, start in enumerate(range(0, len(its), SEGMENT_CLOSES)):
            part = its[start : start + SEGMENT_CLOSES]
            header = SegmentHeader(gateway, BEGIN_MS, seq, part[0].open.opened_at_ms)
            data = encode_header(header) + b"".join(map(encode_record, part))
            key = archive_key(region, SegmentName(header.source, header.epoch, seq), decode_segment(data))
            segments.append((region, key, data))
    return segments


def _is_late(close: UsageClose) -> bool:
    return close.open.region == OTHER and LATE_MS <= close.open.opened_at_ms < LATE_MS + HOUR_MS


def ship(books: Books, key: str, data: bytes) -> Counter[PutResult]:
    """As a shipper does: the archive, then the ledger."""
    segment = decode_segment(data)
    put_segment(books.s3, books.bucket, key, data, segment)
    return put_rows(books.dynamodb, books.table, rows_of(segment))


def rows_in(books: Books, from_ms: int = 0, to_ms: int = 2**53) -> list[LedgerRow]:
    """All rows of the table."""
    return list(read_rows(books.dynamodb, books.table, None, from_ms, to_ms))


def wait_for_replica(books: Mapping[str, Books]) -> bool:
    """Both regions have the same rows, within a while."""
    deadline_s = time.monotonic() + REPLICATION_LIMIT_S
    while ledger_hash(rows_in(books[HOME])) != ledger_hash(rows_in(books[OTHER])):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.2)
    return True


def seal_month(books: Books) -> int:
    """Seal every day; how many seals were put."""
    days = utc_days(BEGIN_MS, END_MS)
    return sum(seals.seal_day(books, tenant, day, AFTER_MS) is not None for tenant in TENANTS for day in days)


def tamper(rng: random.Random, books: Books, rows: Sequence[LedgerRow]) -> tuple[set[str], dict[str, LedgerRow]]:
    """Change, cheapen, remove and forge rows; the event ids that were touched, and what the rows were."""
    victims = rng.sample([row for row in rows if row.output_tokens > 1 and not row.revision], NUM_TAMPERED)
    for number, row in enumerate(victims):
        match number % 4:
            case 0:  # fewer tokens, and a cost that fits them
                fewer = msgspec.structs.replace(row, output_tokens=1)
                changed = msgspec.structs.replace(fewer, cost_pico_usd=fewer.cost_of(fewer))
            case 1:
                changed = msgspec.structs.replace(row, cost_pico_usd=0)
            case 2:
                books.dynamodb.delete_item(TableName=books.table, Key=row.key.item())
                continue
            case _:
                changed = msgspec.structs.replace(row, event_id=row.event_id[:-12] + "f" * 6 + row.event_id[-6:])
                row = changed
                victims[number] = changed
        books.dynamodb.put_item(TableName=books.table, Item=item_of(changed))
    return {row.event_id for row in victims}, {row.event_id: row for row in victims if row in rows}


def micro(usd: Fraction) -> Fraction:
    """In micro-dollars."""
    return usd * 10**6


class Drill:
    """The parts, in order; each adds its figures, and a line where something does not hold."""

    def __init__(self, num_events: int, seed: int, books: dict[str, Books], console: Console) -> None:
        self.rng = random.Random(seed)
        self.books = books
        self.truth = Truth()
        self.closes = make_closes(self.rng, num_events, self.truth)
        self.segments = make_segments(self.closes)
        self.console = console
        self.figures: dict[str, Any] = {"num_events": num_events, "num_segments": len(self.segments), "seed": seed}
        self.table = Table("part", "figure", "found", "must be", "", title_justify="left")
        self.holds = True

    def part(self, part: str, **figures: tuple[Any, Any]) -> None:
        """Figures found, and what they must be."""
        for name, (found, expected) in figures.items():
            is_right = found > 0 if expected == SOME else found == expected
            self.holds &= is_right
            self.figures[name] = found
            self.table.add_row(part, name, f"{found}", f"{expected}", "" if is_right else "[bold red]NO[/]")
        self.console.print(f"… {part}", style="dim")

    def run(self) -> None:
        """All of it."""
        late = {key for _, key, _ in self.segments if "gateway-1-0" in key}
        self.shipped(late)
        self.late(late)
        self.totals()
        self.invoices()
        self.rebuilt()
        self.exported()
        self.tampering()

    def shipped(self, late: set[str]) -> None:
        """Every segment but the late ones, three times, out of order."""
        deliveries = [segment for segment in self.segments if segment[1] not in late] * 3
        self.rng.shuffle(deliveries)
        results: Counter[PutResult] = Counter()
        for region, key, data in deliveries:
            results += ship(self.books[region], key, data)
        is_replicated = wait_for_replica(self.books)
        num = sum(len(decode_segment(data).closes) for _, key, data in self.segments if key not in late)
        self.part(
            "shipped three times",
            num_rows_shipped=(len(rows_in(self.books[HOME])), num),
            num_conflicts=(results[PutResult.CONFLICT], 0),
            regions_agree=(is_replicated, True),
        )

    def late(self, late: set[str]) -> None:
        """What comes after its days were sealed; again; and from the other region."""
        home = self.books[HOME]
        first_seals = seal_month(home)
        before = {key: home.get(key) for key in home.keys(seals.PREFIX)}
        segments = [(region, key, data) for region, key, data in self.segments if key in late]
        for region, key, data in segments:
            ship(self.books[region], key, data)
        wait_for_replica(self.books)
        hashes = [ledger_hash(rows_in(home))]
        for _ in range(2):
            for _, key, data in segments:
                ship(self.books[OTHER], key, data)
            hashes.append(ledger_hash(rows_in(home)))
        for _, key, data in segments:  # the region is lost: the survivor replays what the archive has of it
            ship(home, key, data)
        wait_for_replica(self.books)
        hashes.append(ledger_hash(rows_in(home)))
        hashes.append(ledger_hash(map(row_of, self.closes)))
        late_seals = seal_month(home)
        kept = sum(home.get(key) == data for key, data in before.items())
        self.part(
            "late, twice, other region",
            num_late_rows=(sum(len(decode_segment(data).closes) for *_, data in segments), SOME),
            num_distinct_hashes=(len(set(hashes)), 1),
            num_first_seals_unchanged=(kept, first_seals),
            num_late_seals=(late_seals, SOME),
            num_faults_before_tampering=(len(audit(home, TENANTS, BEGIN_MS, END_MS).findings), 0),
        )

    def totals(self) -> None:
        """Sums of rows against the truth, to the token and to the pico-dollar."""
        rows = rows_in(self.books[HOME])
        report = summarise(rows, BEGIN_MS, END_MS, ("tenant",))
        found = {
            (row.tenant, kind): count
            for row in report.rows
            for kind, count in (
                ("input", row.uncached_input_tokens),
                ("cached", row.cached_input_tokens),
                ("output", row.output_tokens),
            )
        }
        wrong = sum(found[key] != count for key, count in self.truth.tokens.items())
        wrong_usd = sum(Fraction(row.cost_pico_usd, 10**12) != self.truth.total_usd(row.tenant) for row in report.rows)
        self.part("totals", num_wrong_token_sums=(wrong, 0), num_wrong_cost_sums=(wrong_usd, 0))

    def invoices(self) -> None:
        """A price change, issued invoices, a late event and a revision."""
        home = self.books[HOME]
        wrong_sides = wrong_sums = 0
        largest_micro = Fraction()
        issued = {tenant: invoice_of(home, tenant, MONTH, AFTER_MS, issues=True) for tenant in TENANTS}
        for tenant, invoice in issued.items():
            for side in ("old", "new"):
                lines = [line for line in invoice.lines if line.key.price_version == side]
                billed = sum(line.amount_micro_usd for line in lines)
                off = abs(billed - micro(self.truth.usd[tenant, side]))
                largest_micro = max(largest_micro, off / max(len(lines), 1))
                wrong_sides += not lines or off > Fraction(len(lines), 2)
            wrong_sums += invoice.total_micro_usd != sum(line.amount_micro_usd for line in invoice.lines)
        tenant = TENANTS[0]
        template = next(close for close in self.closes if close.open.tenant == tenant and close.output_tokens)
        event = msgspec.structs.replace(template.open, event_id=template.open.event_id[:-12] + "e" * 12)
        straggler = msgspec.structs.replace(template, open=event)
        self.truth.saw(straggler)
        self.closes.append(straggler)
        data = encode_header(SegmentHeader("gateway-9-0", END_MS, 0, AFTER_MS)) + encode_record(straggler)
        key = archive_key(HOME, SegmentName("gateway-9-0", END_MS, 0), decode_segment(data))
        ship(home, key, data)
        gift = Rate("gift", 0, 0, 0)
        done = rerate(
            home,
            tenant,
            BEGIN_MS,
            BEGIN_MS + DAY_MS,
            lambda row: gift if row.model == "large" else None,
            reason="the drill's gift",
            now_ms=AFTER_MS,
        )
        later_ms = parse_month(NEXT_MONTH)[1] + DAY_MS
        second = invoice_of(home, tenant, NEXT_MONTH, later_ms, issues=True)
        third = invoice_of(home, tenant, "2026-12", later_ms)
        owed = self.truth.total_usd(tenant) + Fraction(done.delta_pico_usd, 10**12)
        billed = issued[tenant].total_micro_usd + second.total_micro_usd
        num_lines = len(issued[tenant].lines) + len(second.lines)
        self.figures["largest_rounding_micro_usd_per_line"] = round(float(largest_micro), 3)
        self.part(
            "invoices",
            num_price_sides_off=(wrong_sides, 0),
            num_totals_not_the_sum_of_lines=(wrong_sums, 0),
            num_issued_invoices_changed=(sum(invoice_of(home, name, MONTH, later_ms) != its for name, its in issued.items()), 0),
            num_notes=(sum(bool(line.note) for line in second.lines), SOME),
            num_notes_made_twice=(len(third.lines), 0),
            invoices_are_the_rows_within_rounding=(abs(billed - micro(owed)) <= Fraction(num_lines, 2), True),
        )

    def rebuilt(self) -> None:
        """From the archive into an empty table, shuffled."""
        home = self.books[HOME]
        create_table(home.dynamodb, "rebuilt")
        segments = [segment for _, segment in home.segments()]
        self.rng.shuffle(segments)
        for segment in segments:
            put_rows(home.dynamodb, "rebuilt", rows_of(segment))
        rebuilt = list(read_rows(home.dynamodb, "rebuilt", None, 0, 2**53))
        rows = rows_in(home)
        hashes = {ledger_hash(its) for its in (rows, rebuilt, self.rng.sample(rows, len(rows)))}
        self.part("rebuild", num_rows_rebuilt=(len(rebuilt), len(rows)), num_hashes_of_rebuilds=(len(hashes), 1))

    def exported(self) -> None:
        """To a sink that fails and forgets to answer, again until nothing is left."""
        home = self.books[HOME]
        seal_month(home)
        other = ForgetfulSink(self.rng)
        sink = CloudEventsSink("http://meter", "key", source="drill", post=other.post)
        num_runs, num_seals = 0, 1
        while num_seals:  # as an operator does: again until nothing is left
            num_runs += 1
            with contextlib.suppress(UserError):  # gave up on a batch; the next run resumes there
                num_seals = export(home, sink, TENANTS, "2026-10-01").num_seals
        self.figures |= {"num_export_failures": other.num_failures, "num_export_runs": num_runs}
        self.part("export", num_tokens_exported=(sum(other.counted.values()), sum(self.truth.tokens.values())))

    def tampering(self) -> None:
        """Each tampered row is named, and no other; undone, none is."""
        home = self.books[HOME]
        before = rows_in(home)
        touched, originals = tamper(self.rng, home, before)
        findings = audit(home, TENANTS, BEGIN_MS, END_MS).findings
        named = {finding.key.sk.partition("#")[0] for finding in findings}
        unsealed = audit(home, TENANTS, BEGIN_MS, END_MS, asks_archive=False).findings
        by_seal = {finding.key.sk for finding in unsealed if finding.fault in (Fault.CHANGED, Fault.REMOVED)}
        self.part(
            "tampering",
            num_tampered_rows_named=(len(named & touched), len(touched)),
            num_other_rows_named=(len(named - touched), 0),
            num_named_by_seals_alone=(len(by_seal & originals.keys()), len(originals)),
        )


def main() -> int:
    """The drill."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--events", type=int, default=2000, help="requests in the month")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    began_s = time.monotonic()
    sinks.FIRST_WAIT_S = 0.01
    with emulated_aws() as url:
        drill = Drill(given.events, given.seed, make_books(url), console)
        drill.run()
    console.print(drill.table)
    machine = f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"
    took_s = round(time.monotonic() - began_s, 1)
    print(json.dumps({**drill.figures, "took_s": took_s, "machine": machine, "holds": drill.holds}))
    return 0 if drill.holds else 1


if __name__ == "__main__":
    sys.exit(main())
