"""One answer being made by an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serving.twin.blocks import BlockTable
from serving.twin.faults import Fault, FaultKind
from serving.twin.structured import Form, Script
from serving.twin.text import TextSource
from serving.twin.truth import Record

_OTHER_WORDS = 0x5A5A5A5A


class Generation:
    """Its tokens, its place in the cache, and who is told of them."""

    __slots__ = (
        "adapter",
        "deliver",
        "fault",
        "ids",
        "index",
        "is_over",
        "last_token_s",
        "max_tokens",
        "may_end",
        "min_tokens",
        "next_token_s",
        "num_cached",
        "num_choices",
        "num_computed",
        "num_output",
        "num_preemptions",
        "num_prompt",
        "record",
        "scheduled_s",
        "script",
        "state",
        "table",
    )

    def __init__(
        self,
        record: Record,
        index: int,
        prompt_ids: Sequence[int],
        *,
        table: BlockTable,
        num_choices: int,
        max_tokens: int,
        min_tokens: int,
        may_end: bool,
        choice_seed: int | None,
        text: TextSource,
        fault: Fault | None,
        form: Form | None,
        deliver: Callable[[Generation, int, str | None], bool],
    ) -> None:
        """`deliver` takes each token and why it is the last one, or None; True says that the answer is over."""
        self.record, self.index, self.deliver = record, index, deliver
        self.ids = list(prompt_ids)
        self.num_prompt = len(self.ids)
        self.num_choices = num_choices
        self.num_computed = self.num_output = self.num_cached = self.num_preemptions = 0
        self.max_tokens, self.min_tokens, self.may_end = max_tokens, min_tokens, may_end
        self.adapter = table.key.lora_name
        self.table = table
        self.state = text.start(self.ids, self.adapter or "", choice_seed)
        self.fault = fault
        if fault and fault.kind is FaultKind.WRONG_TEXT:
            self.state ^= _OTHER_WORDS
        self.script: Script | None = form.write(self.state) if form else None
        """What it will say, where its form is given."""
        self.is_over = False
        self.scheduled_s = self.last_token_s = 0.0
        self.next_token_s = 0.0
