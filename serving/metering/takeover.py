"""Accounting for another region's archive, when an operator has told this region to: that region is lost, its bills are not.

What the lost region archived is in this region's replica of the archive; what it accounted for is in the ledger. Each row is a
conditional put whoever writes it, so doing it twice, by several shippers at once, or after all by the region itself, changes
nothing. Segments that never left the lost region's volumes come when the volumes do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import structlog

from policies.failover.items import TAKEOVER, Shipped, TakenOver, Takeover
from serving.control_table import ControlTable
from serving.metering.archive import PREFIX
from serving.metering.books import Books
from serving.metering.ledger import PutResult, rebuild_from_segments

log = structlog.get_logger()


class Takeovers:
    """Obeys takeovers by this region, each run of one once; and says what its own volume still holds."""

    def __init__(self, table: ControlTable, books: Books, *, region: str, gateway: str, num_waiting: Callable[[], int]) -> None:
        """`num_waiting` counts sealed segments of this volume that are not accounted for."""
        self._table, self._books = table, books
        self._region, self._gateway = region, gateway
        self._num_waiting = num_waiting
        self._done: set[str] = set()
        """Runs whose takeover is done."""

    def look(self) -> None:
        """One look. Blocks.

        Raises:
            botocore.exceptions.BotoCoreError, ClientError, ValueError: the table or the archive did not answer; look again.
            UserError: a segment of the archive is damaged.
        """
        self._table.put(Shipped(self._region, self._gateway, time.time(), self._num_waiting()))
        for takeover in self._table.read(Takeover, TAKEOVER):
            if takeover.by_region == self._region and takeover.run_id not in self._done:
                self._table.put(self._take_over(takeover))
                self._done.add(takeover.run_id)

    def _take_over(self, takeover: Takeover) -> TakenOver:
        newest: list[datetime] = []
        keys: list[str] = []
        for key, written_at in self._archived(takeover.region):
            keys.append(key)
            newest = [max([*newest, written_at])]
        rows = rebuild_from_segments(self._books.dynamodb, self._books.table, (self._books.get(key) for key in keys))
        log.warning("usage_taken_over", region=takeover.region, num_segments=len(keys), num_new_rows=rows[PutResult.WRITTEN])
        return TakenOver(
            region=takeover.region,
            by_region=self._region,
            run_id=takeover.run_id,
            at_s=time.time(),
            num_segments=len(keys),
            num_new_rows=rows[PutResult.WRITTEN],
            newest_sealed_at=newest[0].astimezone(UTC).isoformat(timespec="seconds") if newest else "",
        )

    def _archived(self, region: str) -> Iterator[tuple[str, datetime]]:
        pages = self._books.s3.get_paginator("list_objects_v2").paginate(Bucket=self._books.bucket, Prefix=f"{PREFIX}{region}/")
        for page in pages:
            for item in page.get("Contents", ()):
                yield item["Key"], item["LastModified"]
