"""Makers of what backups hold: a sealed segment of usage, a checkpoint of a stack."""

from __future__ import annotations

import hashlib
import json

from serving.metering.events import CountSource, Outcome, UsageClose, UsageOpen
from serving.metering.framing import SegmentHeader, encode_header, encode_record
from serving.metering.segments import SegmentName

NOON_MS = 1_763_812_800_000  # 2025-11-22T12:00:00Z


def closes(num: int) -> list[UsageClose]:
    """Requests of acme that ended."""
    found = []
    for number in range(num):
        event = UsageOpen(
            event_id=f"019aab7c-0000-7000-8000-{number:012d}",
            tenant="acme",
            key_id="k1",
            model="small",
            release_id="a" * 64,
            region="us-east-2",
            gateway="gateway-0-0",
            endpoint="chat.completions",
            opened_at_ms=NOON_MS + number,
            prompt_tokens=100,
            price_version="2025-11",
            input_micro_usd_per_mtok=100_000,
            cached_input_micro_usd_per_mtok=50_000,
            output_micro_usd_per_mtok=400_000,
        )
        found.append(
            UsageClose(
                open=event,
                outcome=Outcome.FINISHED,
                source=CountSource.ENGINE_FINAL,
                prompt_tokens=100,
                cached_tokens=0,
                output_tokens=10,
                closed_at_ms=NOON_MS + 1500,
            )
        )
    return found


def segment(records: list[UsageClose]) -> tuple[SegmentName, bytes]:
    """A sealed segment of them, as a shipper would archive it."""
    name = SegmentName("gateway-0-0", NOON_MS, 0)
    header = encode_header(SegmentHeader(name.source, name.epoch, name.seq, NOON_MS))
    return name, header + b"".join(map(encode_record, records))


def checkpoint(stack: str) -> bytes:
    """A stack with one resource, as Pulumi's engine writes it."""
    version = "v3.226.0"
    manifest = {"time": "2026-11-24T10:00:00Z", "version": version, "magic": hashlib.sha256(version.encode()).hexdigest()}
    resources = [{"urn": f"urn:pulumi:{stack}::flotilla::pulumi:pulumi:Stack::flotilla-{stack}"}]
    return json.dumps({"version": 3, "checkpoint": {"latest": {"manifest": manifest, "resources": resources}}}).encode()
