"""The whole ledger again, from the archive alone: what `flotilla ledger rebuild` and `flotilla restore ledger` both do."""

from __future__ import annotations

from collections import Counter

from serving.metering.books import Books
from serving.metering.ledger import PutResult, create_table, put_rows, read_rows
from serving.metering.rows import LedgerRow, rows_of

ALL_TIME_MS = 2**53


def rebuild(books: Books, table: str) -> Counter[PutResult]:
    """Put every row of the archive into `table`, which is made if there is none; how many of each result.

    Raises:
        UnreadableSegment: a segment of the archive is damaged; what was put stays.
        botocore.exceptions.BotoCoreError, ClientError: table or archive did not answer; calling again resumes.
    """
    create_table(books.dynamodb, table)
    results: Counter[PutResult] = Counter()
    for _, segment in books.segments():
        results += put_rows(books.dynamodb, table, rows_of(segment))
    return results


def read_all(books: Books, table: str) -> list[LedgerRow]:
    """Every row of `table`.

    Raises:
        UnreadableRow: an item is no row.
        botocore.exceptions.BotoCoreError, ClientError: the table did not answer.
    """
    return list(read_rows(books.dynamodb, table, None, 0, ALL_TIME_MS))
