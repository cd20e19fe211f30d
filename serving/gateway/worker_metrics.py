"""The metrics of a pod's workers as one document: what a scrape of one port reads whole.

Each worker keeps its own and serves them on a socket of its own; worker 0, which has the operations port, asks the others and
puts all side by side under a label `worker`. Nothing is added up here: queries sum over workers as they sum over pods, and a
worker that does not answer is missing from the document as a pod would be.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

ASK_TIMEOUT_S = 1.0
_REQUEST = b"GET /metrics HTTP/1.0\r\nhost: worker\r\n\r\n"
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*?)\})? ")


async def ask(path: Path) -> str | None:
    """The metrics of the worker that listens at `path`; None where it does not answer."""
    with suppress(OSError):  # TimeoutError is one
        async with asyncio.timeout(ASK_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(_REQUEST)
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            finally:
                writer.close()
        if head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 ")):
            return body.decode()
    return None


def merged(by_worker: Mapping[int, str]) -> str:
    """One document of several: families stay together under one HELP and TYPE, samples get a label `worker`.

    >>> print(merged({0: "# TYPE a gauge\\na 1.0\\n", 1: "# TYPE a gauge\\na 2.0\\n"}), end="")
    # TYPE a gauge
    a{worker="0"} 1.0
    a{worker="1"} 2.0
    """
    comments: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, text in by_worker.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                known = comments.setdefault(family, [])
                if line not in known:
                    known.append(line)
            elif line:
                samples.setdefault(family, []).append(_labelled(line, worker))
    lines = [line for family, known in comments.items() for line in (*known, *samples.get(family, ()))]
    return "".join(f"{line}\n" for line in lines)


def _labelled(sample: str, worker: int) -> str:
    found = _SAMPLE.match(sample)
    assert found is not None, sample
    labels = f'worker="{worker}"' + (f",{found[2]}" if found[2] else "")
    return f"{found[1]}{{{labels}}} {sample[found.end() :]}"
