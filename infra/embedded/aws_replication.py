"""Replication between regions in the emulated AWS, which a drill can hold, as if the network between regions were cut.

MiniStack copies an item to a global table's other replicas, and an object to a replicated bucket, within the call that writes it.
While it is held those copies wait, and both sides go on reading and writing their own. Healed, each item takes the last write
wherever it was made, as global tables do, and objects are copied in the order in which they were written. What waits is in
memory: a kill of the emulated AWS loses the copies and no write.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from infra.embedded import faults
from serving.errors import UserError

LOOK_S = 0.1
_log = logging.getLogger("flotilla.aws_replication")


@dataclass(frozen=True)
class _Write:
    """The last write of an item in one region, or anywhere."""

    number: int
    region: str
    account: str
    event: str
    old: Any
    new: Any
    """None: it was deleted."""


class Replication:
    """Stands between MiniStack's writes and their copies. `dynamodb`, `s3` and `responses` are its modules."""

    def __init__(self, dynamodb: Any, s3: Any, responses: Any) -> None:
        self.is_held = False
        self._dynamodb, self._responses = dynamodb, responses
        self._numbers = itertools.count()
        self._items: dict[tuple[str, str, str], _Write] = {}
        self._objects: list[tuple[str, str, Callable[[], None]]] = []
        self._replicate: Callable[..., None] = dynamodb._replicate_write
        dynamodb._replicate_write = self._on_item
        self._copy: Callable[..., None] = s3._maybe_replicate
        self._copy_marker: Callable[[str, str], None] = s3._maybe_replicate_delete_marker
        s3._maybe_replicate, s3._maybe_replicate_delete_marker = self._on_object, self._on_marker

    @property
    def num_waiting(self) -> int:
        """Copies that wait."""
        return len(self._items) + len(self._objects)

    def hold(self) -> None:
        """From now on nothing crosses."""
        self.is_held = True

    def release(self) -> None:
        """Makes the copies that waited, and from now on each at once."""
        self.is_held = False
        items, self._items = self._items, {}
        objects, self._objects = self._objects, []
        for (_, table, _), write in sorted(items.items(), key=lambda one: one[1].number):
            with self._responses.request_scope(write.account, write.region):
                its = self._dynamodb._tables.get(table)
                if its is not None:
                    self._replicate(its, write.event, write.old, write.new)
        for account, region, copy in objects:
            with self._responses.request_scope(account, region):
                copy()

    def _on_item(self, table: Any, event: str, old: Any, new: Any) -> None:
        if not self.is_held:
            self._replicate(table, event, old, new)
            return
        account, region = self._responses.get_account_id(), self._responses.get_region()
        item = new if new is not None else old
        key = repr([item.get(table["pk_name"]), item.get(table["sk_name"]) if table["sk_name"] else None])
        write = _Write(next(self._numbers), region, account, event, old, new)
        self._items[account, table["TableName"], key] = write  # of two writes of an item the later is the one that counts

    def _on_object(self, bucket: str, key: str, obj: dict[str, Any], data: Any, tags: Any = None) -> None:
        if self.is_held:  # MiniStack drops the body of what it has written to disk
            self._wait(partial(self._copy, bucket, key, {**obj, "body": data}, data, tags))
        else:
            self._copy(bucket, key, obj, data, tags)

    def _on_marker(self, bucket: str, key: str) -> None:
        if self.is_held:
            self._wait(partial(self._copy_marker, bucket, key))
        else:
            self._copy_marker(bucket, key)

    def _wait(self, copy: Callable[[], None]) -> None:
        self._objects.append((self._responses.get_account_id(), self._responses.get_region(), copy))


async def watch(replication: Replication, folder: Path) -> None:
    """Obeys the fault files in `folder` until cancelled: held while any region is cut off from the others."""
    while True:
        try:
            is_held = faults.is_any_cut_off(folder)
        except UserError as error:  # things stay as they are
            _log.error("%s", error.message)
        else:
            if is_held and not replication.is_held:
                replication.hold()
            elif replication.is_held and not is_held:
                _log.warning("%d copies go to other regions now", replication.num_waiting)
                replication.release()
        await asyncio.sleep(LOOK_S)
