"""Which messages of a conversation that does not fit its window are kept, and which are dropped.

Words are never cut, only whole messages dropped, and never these:

- what the system or a developer says, wherever it stands;
- the last question, which is the last user's message, and the last step behind it;
- one half of a pair: the call of a tool and its result are kept or dropped together, since engines refuse one without the other
  or, worse, make up what is missing.

What may go, goes in blocks, the oldest first. Before the last question a block is a user's message and all up to the next one:
templates that want user and assistant to take turns still find them so. Behind it, where an agent works, a block is a step: what
the assistant said and what its tools answered.

Counts of single messages are estimates, since templates add to them; whoever asks counts what is kept exactly, and asks again for
less where it is still too long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Strategy = Literal["refuse", "truncate-oldest", "keep-system-and-last", "summarise"]
"""`refuse`: nothing is dropped. `truncate-oldest`: the oldest blocks, as few as make room. `keep-system-and-last`: all that may
go before the last question. `summarise`: as `truncate-oldest`, and room is left for a summary of what was dropped."""
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
PINNED_ROLES = frozenset({"system", "developer"})
Reason = Literal["fits", "refused", "dropped", "rest_too_long"]


@dataclass(frozen=True, slots=True)
class Size:
    """What of a message decides."""

    role: str
    tokens: int
    calls: tuple[str, ...] = ()
    """Ids of the calls of tools that it makes."""
    answers: str = ""
    """Id of the call whose result it is, empty where it is none: the nearest call before it, since ids may come again."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """What is kept, by number, and why. `dropped` is empty but for the reason `dropped`."""

    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    kept_tokens: int
    """Of the kept messages, and what comes with every prompt."""
    reason: Reason
    """`fits`: nothing had to go. `refused`: something has to, and the strategy forbids it. `rest_too_long`: what may not be
    dropped is too long by itself."""


def decide_compaction(
    messages: Sequence[Size], *, strategy: Strategy, max_prompt_tokens: int, fixed_tokens: int = 0
) -> Compaction:
    """What is kept of `messages` so that it has at most `max_prompt_tokens`, `fixed_tokens` of the prompt (the template's own,
    the tools') included.

    Example: system 10, user 50, assistant 40, user 20 in 60 tokens: the second and third go, and 30 are left.
    """
    everything = tuple(range(len(messages)))
    total = fixed_tokens + sum(message.tokens for message in messages)
    if total <= max_prompt_tokens:
        return Compaction(everything, (), total, "fits")
    if strategy == "refuse":
        return Compaction(everything, (), total, "refused")
    question = _last_question(messages)
    left, dropped = total, set[int]()
    for block in _droppable_blocks(messages, question):
        if strategy == "keep-system-and-last":
            if block[0] > question:
                break
        elif left <= max_prompt_tokens:
            break
        dropped.update(block)
        left -= sum(messages[number].tokens for number in block)
    if left > max_prompt_tokens:
        return Compaction(everything, (), total, "rest_too_long")
    kept = tuple(number for number in everything if number not in dropped)
    return Compaction(kept, tuple(sorted(dropped)), left, "dropped")


def least_kept(messages: Sequence[Size], strategy: Strategy) -> tuple[int, ...]:
    """What is kept at the least, by number."""
    question = _last_question(messages)
    blocks = [] if strategy == "refuse" else _droppable_blocks(messages, question)
    if strategy == "keep-system-and-last":
        blocks = [block for block in blocks if block[0] < question]
    gone = {number for block in blocks for number in block}
    return tuple(number for number in range(len(messages)) if number not in gone)


def _last_question(messages: Sequence[Size]) -> int:
    """Number of the last user's message; -1 where there is none."""
    return max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)


def _droppable_blocks(messages: Sequence[Size], question: int) -> list[list[int]]:
    """The blocks that may go, the oldest first."""
    blocks: list[list[int]] = []
    for number, message in enumerate(messages):
        if message.role in PINNED_ROLES:
            continue
        begins = "user" if number <= question else "assistant"
        if not blocks or message.role == begins or blocks[-1][-1] <= question < number:
            blocks.append([])
        blocks[-1].append(number)
    blocks = _with_pairs_whole(messages, blocks)
    return [block for block in blocks[:-1] if question not in block]


def _with_pairs_whole(messages: Sequence[Size], blocks: list[list[int]]) -> list[list[int]]:
    """The blocks, those joined that hold a call and its result, and all between."""
    block_of = {number: place for place, block in enumerate(blocks) for number in block}
    called_in: dict[str, int] = {}
    joined_up_to = list(range(len(blocks)))
    """For each block, the last one that it cannot be parted from."""
    for number, message in enumerate(messages):
        if message.answers in called_in and number in block_of:
            caller = called_in[message.answers]
            joined_up_to[caller] = max(joined_up_to[caller], block_of[number])
        if number in block_of:
            called_in.update(dict.fromkeys(message.calls, block_of[number]))
    whole: list[list[int]] = []
    end = -1
    for place, block in enumerate(blocks):
        if place > end:
            whole.append([])
        whole[-1].extend(block)
        end = max(end, joined_up_to[place])
    return whole
