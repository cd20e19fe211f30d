"""The shipper's process: its probes never depend on AWS, and at the end it waits for the gateway's last segment."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client import generate_latest

from serving import series
from serving.metering.events import Outcome, UsageOpen
from serving.metering.journal import Journal
from serving.metering.ledger import read_rows
from serving.metering.rows import LedgerRow, ledger_hash, row_of
from serving.metering.segments import OPEN
from serving.metering.shipper import Metrics, Rounds, main
from serving.metering.shipping import Destination, Shipper
from serving.settings import GatewaySettings, JournalSettings, Secrets, Tables

REGION = "us-east-2"
SOURCE = "gateway-0-0"


def get(url: str) -> str:
    with urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def value_of(name: str, metrics: str) -> float:
    return float(next(line.rsplit(" ", 1)[1] for line in metrics.splitlines() if line.startswith(name)))


def rows_of(aws: Any, event: UsageOpen) -> list[LedgerRow]:
    """The ledger rows of events opened at the same time."""
    return list(read_rows(aws.dynamodb, aws.table, [event.tenant], event.opened_at_ms, event.opened_at_ms + 1))


@pytest.fixture
def settings_file(tmp_path: Path, aws: Any) -> Path:
    settings = GatewaySettings(
        environment="local",
        region=REGION,
        home_region=REGION,
        tables=Tables(
            registry="registry",
            tenants="tenants",
            ledger=aws.table,
            idempotency="idempotency",
            prompts="prompts",
            conversations="conversations",
            failover="failover",
        ),
        secrets=Secrets(key_pepper="a", cache_salt="b", admin_key="c"),
        artifact_bucket="artifacts",
        archive_bucket=aws.bucket,
        body_bucket="bodies",
        cache_url="redis://127.0.0.1:6379",
        models=(),
        drain_s=5,
    )
    path = tmp_path / "gateway.json"
    path.write_text(settings.model_dump_json())
    return path


@pytest.fixture
def process(settings_file: Path, folder: Any, aws: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A shipper, and its address; it has its own loopback address as a pod has."""
    number = random.Random(os.getpid())
    host = f"127.{number.randint(100, 250)}.{number.randint(1, 250)}.{number.randint(1, 250)}"
    env = {
        **os.environ,
        "FLOTILLA_SETTINGS_FILE": str(settings_file),
        "FLOTILLA_JOURNAL_DIR": str(folder.path),
        "FLOTILLA_POD_IP": host,
        "FLOTILLA_POD_NAME": "gateway-0",
        "AWS_ENDPOINT_URL": aws.endpoint_url,
    }
    shipper = subprocess.Popen([sys.executable, "-m", "serving.metering.shipper"], env=env, stdout=subprocess.PIPE, text=True)
    try:
        yield shipper, f"http://{host}:8082"
    finally:
        if shipper.poll() is None:
            shipper.kill()
        shipper.communicate()


@pytest.mark.emulated_aws
async def test_at_the_end_it_ships_what_the_gateway_seals_last(
    process: tuple[subprocess.Popen[str], str], folder: Any, records: Any, aws: Any
) -> None:
    """Both containers of a pod get SIGTERM at once; the gateway drains for a while, then seals."""
    shipper, url = process
    journal = await Journal.open(folder.path, JournalSettings(seal_after_s=0.3), source=SOURCE)
    closes = []

    async def serve_one() -> None:
        event = records.open()
        await journal.open_event(event)
        closes.append(records.close(event))
        await journal.close_event(closes[-1])

    def rows() -> list[Any]:
        return rows_of(aws, closes[0].open)

    await serve_one()
    async with asyncio.timeout(15):
        while True:
            with suppress(URLError):
                shown = await asyncio.to_thread(get, url + "/metrics")
                if value_of("flotilla_usage_unshipped_bytes", shown) == 0 and 'segments_total{result="written"} 1.0' in shown:
                    break
            await asyncio.sleep(0.1)
    assert 'flotilla_ledger_rows_total{result="written"} 1.0' in shown
    assert [await asyncio.to_thread(get, url + path) for path in ("/livez", "/readyz")] == ["", ""]

    shipper.send_signal(signal.SIGTERM)
    await asyncio.sleep(1)
    assert shipper.poll() is None, "the gateway still lives"
    assert await asyncio.to_thread(get, url + "/livez") == ""
    await serve_one()
    await journal.aclose()
    assert await asyncio.to_thread(shipper.wait, 10) == 0
    assert ledger_hash(rows()) == ledger_hash(map(row_of, closes))


@pytest.mark.emulated_aws
def test_at_the_end_it_seals_for_a_gateway_that_was_killed(
    process: tuple[subprocess.Popen[str], str], folder: Any, records: Any, aws: Any, wait_until: Callable[..., None]
) -> None:
    shipper, url = process

    def is_up() -> bool:
        with suppress(URLError):
            return get(url + "/readyz") == ""
        return False

    wait_until(is_up, 15)
    event = records.open()
    folder.write(event, records.progress(event, 4), suffix=OPEN)
    shipper.send_signal(signal.SIGTERM)
    assert shipper.wait(10) == 0
    (row,) = rows_of(aws, event)
    assert (row.outcome, row.output_tokens) == (Outcome.GATEWAY_CRASH, 4)


def test_an_aws_that_is_down_shows_in_the_metrics_and_not_in_the_probes(folder: Any, records: Any, no_aws: Any) -> None:
    """The shipper is in the gateway's pod: unready here would take a region out of service for want of an archive."""
    event = records.open()
    path = folder.write(event, records.close(event))
    os.utime(path, (path.stat().st_mtime - 90,) * 2)
    metrics = Metrics()
    shipper = Shipper(folder.path, Destination(*no_aws, REGION, "archive", "ledger"), 3600, metrics)
    rounds = Rounds(shipper, metrics, folder.path)
    rounds.run()
    assert (rounds.is_ready(), rounds.is_alive(), rounds.is_done()) == (True, True, False)
    shown = generate_latest(metrics.registry).decode()
    assert value_of(series.UNSHIPPED_BYTES.name, shown) == path.stat().st_size
    assert value_of(series.OLDEST_UNSHIPPED.name, shown) >= 90
    assert path.exists()


def test_the_series_it_shows_are_those_that_others_query() -> None:
    metrics = Metrics()
    metrics.segment("written")
    metrics.rows("written", 1)
    shown = generate_latest(metrics.registry).decode()
    for wanted in (series.UNSHIPPED_BYTES, series.OLDEST_UNSHIPPED, series.LEDGER_ROWS, series.SEGMENTS):
        assert f"\n{wanted.name}" in shown


def test_what_alerts_watch_for_an_increase_is_shown_at_0_before_the_first() -> None:
    """Prometheus sees no increase in a series that begins at 1: the page for the first conflict would never go out."""
    shown = generate_latest(Metrics().registry).decode()
    assert f'{series.LEDGER_ROWS.name}{{result="conflict"}} 0.0' in shown
    assert f'{series.UNEXPLAINED_TOKENS.name}{{kind="output"}} 0.0' in shown


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({}, "FLOTILLA_SETTINGS_FILE is not set"),
        ({"FLOTILLA_SETTINGS_FILE": "/nowhere/gateway.json"}, "/nowhere/gateway.json: cannot be read"),
    ],
)
def test_what_it_cannot_start_with_is_one_line_and_exit_2(
    env: dict[str, str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(env) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"shipper: {complaint}")
    assert error.count("\n") == 1
