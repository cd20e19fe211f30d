"""Measures that no prompt beyond its window is sent, whatever conversation comes: by `make drill-context`.

Ten thousand random conversations of 1 to 60,000 tokens, most of them short and the long ones long (their size is log-uniform),
with system prompts and calls of tools, asked of a window of 8,192 or 32,768 tokens by every strategy. Each goes through the
gateway's own step between validation and limits, and is written as the body that an engine would get. That body is then counted
by the same template and by `tokenizers` itself, which is not what the gateway counts with, and held against what headers say.
Prints a table and one line of JSON; exits 1 where something does not hold. `ARGS="--conversations 500"` is short.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from typing import Any, cast

from tokenizers import Tokenizer

from policies.context.compaction import STRATEGIES
from serving.gateway import errors, validate
from serving.gateway.auth import Principal
from serving.gateway.calls import Call
from serving.gateway.context import ContextCounter
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Exchange
from serving.gateway.models import Models
from serving.gateway.placing import Placing
from serving.gateway.prompts import ChatTemplate, prompt_counter
from serving.gateway.releases import LoadedRelease, ReleaseBook
from serving.gateway.tenants import Tenant
from serving.settings import Price, ServedModel
from serving.twin import vocabulary, words
from tests.drills.drill_frame import Row, report

MAX_TOKENS = 60_000
WINDOWS = (8_192, 32_768)
CLASSES = ("small", "large")
MAX_ANSWER_TOKENS = 1024
PROGRESS_EVERY = 1000
SUMMARY = "They spoke of many things."


class OneRelease:
    """A release book with one page."""

    def __init__(self, release: LoadedRelease) -> None:
        self._release = release

    def get(self, model_class: str) -> LoadedRelease:
        return self._release


class Asking:
    """What the step reads of an exchange: nothing but headers."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}


def conversation(rng: random.Random) -> dict[str, Any]:
    """A chat of a random size, strategy and shape."""
    left = round(math.exp(rng.uniform(0, math.log(MAX_TOKENS))))
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.8:
        messages.append({"role": "system", "content": text(rng, min(left, rng.randrange(1, 400)))})
    turn = 0
    while left > 0:
        turn += 1
        size = min(left, round(rng.lognormvariate(5, 1.2)) + 1)
        left -= size
        messages.append({"role": "user", "content": text(rng, max(1, size // 3))})
        for step in range(rng.choice((0, 0, 0, 1, 2, 6))):
            call = {"id": f"call_{turn}_{step}", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
            messages.append({"role": "tool", "content": text(rng, max(1, size // 6)), "tool_call_id": call["id"]})
        messages.append({"role": "assistant", "content": text(rng, max(1, size // 3))})
    messages.append({"role": "user", "content": text(rng, rng.randrange(1, 60))})
    chat = {"model": rng.choice(CLASSES), "messages": messages, "context": rng.choice(STRATEGIES)}
    return chat if rng.random() < 0.5 else {**chat, "max_tokens": rng.randrange(1, MAX_ANSWER_TOKENS)}


def text(rng: random.Random, num_words: int) -> str:
    """So many English words."""
    return " ".join(rng.choices(words.ENGLISH, k=num_words))


def numbers_of(told: str) -> list[int]:
    """The messages that `messages=1-3,7 tokens=12` says were dropped."""
    found: list[int] = []
    for part in told.split()[0].removeprefix("messages=").split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


async def drill(num_conversations: int, seed: int) -> list[Row]:
    """The figures of so many conversations."""
    files = vocabulary.own_files()
    sources = [files[name] for name in (vocabulary.TOKENIZER, vocabulary.CONFIG, vocabulary.TEMPLATE)]
    reference, template = Tokenizer.from_buffer(sources[0]), ChatTemplate(sources[2].decode(), {})

    def tokens_of(messages: list[dict[str, Any]]) -> int:
        return len(reference.encode(template.render(messages), add_special_tokens=False).ids)

    price = Price(
        version="1",
        effective_from_ms=0,
        input_micro_usd_per_mtok=1,
        cached_input_micro_usd_per_mtok=1,
        output_micro_usd_per_mtok=1,
    )
    served = [
        ServedModel(model_class=cast(Any, name), context_window_tokens=window, engine_service="engine.x", prices=(price,))
        for name, window in zip(CLASSES, WINDOWS, strict=True)
    ]
    book = cast(ReleaseBook, OneRelease(LoadedRelease("r" * 64, 131_072, prompt_counter(*sources))))
    context = ContextCounter(book)
    placing, principal = Placing(Models(served), context), Principal(Tenant("drill"), "key", "salt")
    rng, seen, worst_ms = random.Random(seed), Counter[str](), 0.0

    async def ask(_: validate.ChatRequest) -> str:
        return SUMMARY

    began_s = time.monotonic()
    for number in range(1, num_conversations + 1):
        chat = conversation(rng)
        call = Call("chat.completions")
        request = validate.parse("chat.completions", json.dumps(chat).encode(), max_depth=64)
        placed_s = time.monotonic()
        try:
            model, sent, place = await placing.place(cast(Exchange, Asking()), call, principal, request, ask)
        except ApiError as error:
            seen["refused"] += 1
            seen["refused otherwise"] += error.kind is not errors.CONTEXT_LENGTH_EXCEEDED
            continue
        finally:
            worst_ms = max(worst_ms, (time.monotonic() - placed_s) * 1e3)
        seen["sent"] += 1
        body = json.loads(
            validate.engine_body(
                cast(validate.ChatRequest, sent), model=model.model_class, max_tokens=place.max_tokens, cache_salt="salt"
            )
        )
        tokens = tokens_of(body["messages"])
        seen["over window"] += tokens + body["max_tokens"] > model.context_window_tokens
        seen["counted wrong"] += tokens != place.prompt_tokens
        whole = [message.plain() for message in cast(validate.ChatRequest, request).messages]
        if call.compacted is None:
            seen["changed untold"] += body["messages"] != whole
            continue
        seen["shortened"] += 1
        seen[f"by {call.compacted.strategy}"] += 1
        told = dict(call.compacted.headers)[b"x-flotilla-context-dropped"].decode()
        gone = set(numbers_of(told))
        kept = [message for place_, message in enumerate(whole) if place_ not in gone]
        seen["system lost"] += any(whole[number]["role"] == "system" for number in gone)
        is_summary = call.compacted.strategy == "summarise"
        seen["header wrong"] += not is_summary and body["messages"] != kept
        if is_summary:
            differing = [pair for pair in zip(body["messages"], kept, strict=True) if pair[0] != pair[1]]
            seen["header wrong"] += len(differing) != 1 or not differing[0][0]["content"].endswith(differing[0][1]["content"])
        seen["header wrong"] += int(told.rpartition("=")[2]) != tokens_of(whole) - tokens_of(kept)
        calls = {made["id"] for message in body["messages"] for made in message.get("tool_calls", ())}
        results = {message["tool_call_id"] for message in body["messages"] if message["role"] == "tool"}
        seen["pairs parted"] += calls != results
        if number % PROGRESS_EVERY == 0:
            print(f"{number} conversations, {time.monotonic() - began_s:.0f} s, {dict(seen)}", file=sys.stderr, flush=True)
    context.close()
    return [
        Row("conversations", num_conversations, "", True),
        Row("sent", seen["sent"], "> 0", seen["sent"] > 0),
        Row("shortened", seen["shortened"], "> 0", seen["shortened"] > 0),
        Row("refused", seen["refused"], "", True),
        *(
            Row(name.replace(" ", "_"), seen[name], "0", seen[name] == 0)
            for name in (
                "over window",
                "counted wrong",
                "system lost",
                "header wrong",
                "changed untold",
                "pairs parted",
                "refused otherwise",
            )
        ),
        Row("slowest_step_ms", worst_ms, "", True),
    ]


def main() -> int:
    """The drill; 1 where something does not hold."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--conversations", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    rows = asyncio.run(drill(given.conversations, given.seed))
    return report(rows, f"Conversations of 1 to {MAX_TOKENS:,} tokens, seed {given.seed}", given.seed)


if __name__ == "__main__":
    sys.exit(main())
