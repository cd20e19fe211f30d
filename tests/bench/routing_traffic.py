"""Traffic with shared prefixes: from a trace, and generated. A prompt is blocks that are equal where prefixes are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

TRACE_BLOCK_TOKENS = 512
_TRACE_BIN_S = 3.0


@dataclass(frozen=True)
class Ask:
    """A request."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    """Of the prompt's full blocks; equal numbers have equal blocks before them."""


def mooncake(trace: Path, num: int, speed: float) -> list[Ask]:
    """The first `num` requests of Mooncake's conversation trace, `speed` times as fast. Its times are in bins of 3 s; in reality
    requests do not come at once, so they are spread over their bin."""
    spread, asks = Random(0), []
    with trace.open() as lines:
        for line, _ in zip(lines, range(num), strict=False):
            row = json.loads(line)
            at_s = (row["timestamp"] / 1e3 + spread.random() * _TRACE_BIN_S) / speed
            blocks = tuple(row["hash_ids"][: row["input_length"] // TRACE_BLOCK_TOKENS])
            asks.append(Ask(at_s, row["input_length"], row["output_length"], blocks))
    return sorted(asks, key=lambda ask: ask.at_s)


def conversations(num: int, per_s: float, *, block_tokens: int, seed: int = 1) -> list[Ask]:
    """`num` requests, `per_s` of them a second: turns of conversations. Each begins with one of 50 products' system prompts
    (Zipf; 256 to 4,096 tokens) and has 5 turns on average, 20 s apart; a turn adds 150 to 900 tokens (the answer before it and
    its question)."""
    random = Random(seed)
    systems = [tuple(random.getrandbits(39) for _ in range(random.randrange(256, 4097) // block_tokens)) for _ in range(50)]
    weights = [1 / (rank + 1) for rank in range(len(systems))]
    asks: list[Ask] = []
    began_s = 0.0
    while len(asks) < 2 * num:
        began_s += random.expovariate(per_s / 5)
        at_s, (system,) = began_s, random.choices(systems, weights)
        tokens, blocks = len(system) * block_tokens, list(system)
        while True:
            tokens += random.randrange(150, 900)
            blocks += [random.getrandbits(39) for _ in range(tokens // block_tokens - len(blocks))]
            asks.append(Ask(at_s, tokens, int(random.expovariate(1 / 211)) + 1, tuple(blocks)))
            if random.random() < 1 / 5 or tokens > 24_000:
                break
            at_s += random.expovariate(1 / 20)
    asks.sort(key=lambda ask: ask.at_s)
    # Later ones would be turns of conversations that began before, and none that begin.
    return [ask for ask in asks if ask.at_s <= began_s][:num]
