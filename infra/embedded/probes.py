"""Asks a container one question, as the kubelet would: an HTTP GET, a TCP connection, or a command. Hooks are asked the same
way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from infra.embedded.desired import Action

Run = Callable[[tuple[str, ...]], Awaitable[int]]
"""Runs a command beside the container and returns its exit status; cancelled, it ends the command."""


async def ask(action: Action, address: str, run: Run, timeout_s: float) -> str:
    """Why the answer is no, in words; empty when it is yes. Never raises but for cancellation."""
    try:
        async with asyncio.timeout(timeout_s):
            match action.kind:
                case "http":
                    return await _http(address, action.port, action.path)
                case "tcp":
                    return await _tcp(address, action.port)
                case "exec":
                    status = await run(action.command)
                    return f"`{' '.join(action.command)}` exited {status}" if status else ""
                case "sleep":
                    await asyncio.sleep(action.sleep_s)
                    return ""
    except TimeoutError:
        return f"no answer from {_shown(action, address)} within {timeout_s:g} s"
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        return f"{_shown(action, address)}: {getattr(error, 'strerror', None) or error}"


async def _http(address: str, port: int, path: str) -> str:
    """Success is any status from 200 to 399. https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-
    probes/"""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {address}:{port}\r\nUser-Agent: flotilla-probe\r\nConnection: close\r\n\r\n".encode()
        )
        line = await reader.readline()
        status = int(line.split(b" ", 2)[1]) if line.startswith(b"HTTP/") else 0
        return "" if 200 <= status < 400 else f"http://{address}:{port}{path} answered {status or 'no HTTP'}"
    finally:
        writer.close()


async def _tcp(address: str, port: int) -> str:
    _, writer = await asyncio.open_connection(address, port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return ""


def _shown(action: Action, address: str) -> str:
    match action.kind:
        case "http":
            return f"http://{address}:{action.port}{action.path}"
        case "tcp":
            return f"{address}:{action.port}"
        case _:
            return f"`{' '.join(action.command)}`"
