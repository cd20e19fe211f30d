"""Going on with a broken answer on another engine, for requests that opt in by `X-Flotilla-Resume: true`.

Stock vLLM has no such thing, but it continues any prompt, and a prompt may be token ids. So an engine that is asked for such a
request also tells the ids of its tokens; when it breaks off, another is asked for a plain completion of the prompt's ids and all
that were received, and for as many tokens fewer. Its events are written anew in the form, and under the id, of the first's.

The text after the seam is decoded here, from the ids and by the release's own tokenizer, just as vLLM decodes it: what the lost
engine held back (the beginning of what may become a stop string, half of a wide character) is in its tokens, and is not lost. So
stop strings are looked for here too; the second engine is not told of them.

Greedy answers go on as they would have, as far as engines compute the same. A sampled answer goes on with other draws than the
lost engine's, by a seed that follows from the request's. What cannot go on (`is_possible`) is served as if nobody had opted in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from serving.gateway import sse
from serving.gateway.dispatch import Reader, Source, Upstream
from serving.gateway.prompts import PromptCounter
from serving.gateway.validate import FOR_US_IN_CHATS, ChatRequest, Request
from serving.stop_strings import HeldText

HEADER = b"x-flotilla-resume"
PATH = "/v1/completions"
"""Where answers go on, chats too."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias")
_KNOWN = {*_SAMPLING, *FOR_US_IN_CHATS, "prompt", "seed", "stop"}
_FORGOTTEN = ("presence_penalty", "frequency_penalty")
"""They count what was generated, which an engine that goes on takes for prompt."""
_PRIMING_TOKENS = 64
"""So many of the prompt's last tokens are enough for the spacing of the first word after them."""
_IDS = re.compile(rb'token_ids":\[[\d,]*\]')


def is_wanted(headers: Mapping[bytes, bytes]) -> bool:
    """The client opts in."""
    return headers.get(HEADER, b"").lower() == b"true"


def is_possible(request: Request) -> bool:
    """An engine that is given the tokens so far goes on as the first one would have: one answer of plain text. Not so with
    grammars, tools, log probabilities and penalties on what was generated: their state is lost with the engine."""
    for name in request.__struct_fields__:
        value = getattr(request, name)
        is_plain = value is None or value is False or (name == "n" and value == 1) or (name in _FORGOTTEN and value == 0)
        if name not in _KNOWN and not is_plain:
            return False
    return True


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class _Chunk(msgspec.Struct):
    id: str = ""
    created: int = 0
    model: str = ""
    choices: list[_Choice] = []
    prompt_token_ids: list[int] | None = None
    usage: sse.Usage | None = None


_decoder = msgspec.json.Decoder(_Chunk)


class Transcript:
    """What has been received of one answer, in tokens and in text; enough to go on with it."""

    def __init__(self, request: Request, *, model: str, max_tokens: int, cache_salt: str, counter: PromptCounter) -> None:
        self.ids: list[int] = []
        self.is_finished = False
        """The engine has said why the answer ends."""
        self.is_cut = False
        """A stop string was found here, so the engine does not know that it is done."""
        self._counter = counter
        self._max_tokens = max_tokens
        self._is_chat = isinstance(request, ChatRequest)
        self._stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
        self._seed = request.seed
        self._fields = {name: getattr(request, name) for name in _SAMPLING if getattr(request, name) is not None}
        self._fields |= {"model": model, "cache_salt": cache_salt, "stream": True, "return_token_ids": True}
        self._fields["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        self._prompt_ids: list[int] = []
        self._shown: list[str] = []
        self._head: dict[str, Any] = {}
        self._knows_all = True
        self._held: HeldText | None = None
        self._step: Callable[[int], str] | None = None

    def record(self, event: bytes) -> Sequence[bytes]:
        """Take an event of the first engine: what of it is for the client.

        Raises:
            BrokenStream: it cannot be read.
        """
        if event == sse.DONE or event.startswith(sse.ERRORS):
            return (event,)
        chunk = _decode(event)
        if chunk.choices and chunk.choices[0].finish_reason != sse.ABORTED:
            self._note(chunk, chunk.choices[0])
        return (_IDS.sub(b'token_ids":null', event),)

    def can_go_on(self) -> bool:
        """All tokens are known, there is room for more, and they spell what was shown. From here on `go_on` is asked."""
        if not (self._knows_all and self._prompt_ids and self._head and len(self.ids) < self._max_tokens):
            return False
        if self._held is None:
            self._step = self._counter.decoder(self._prompt_ids[-_PRIMING_TOKENS:])
            text, shown = "".join(map(self._step, self.ids)), "".join(self._shown)
            self._held = HeldText(self._stop)
            if self._held.add(text) is not None or not text.startswith(shown):
                self._knows_all = False
                return False
            self._held.skip(len(shown))
        return True

    def request(self) -> bytes:
        """The body that asks another engine to go on."""
        fields = {**self._fields, "prompt": [*self._prompt_ids, *self.ids], "max_tokens": self._max_tokens - len(self.ids)}
        if self._seed is not None:  # the same seed would draw the same numbers again
            fields["seed"] = (self._seed + len(self.ids) + 2**63) % 2**64 - 2**63
        return msgspec.json.encode(fields)

    def go_on(self, event: bytes) -> Sequence[bytes]:
        """Take an event of an engine that goes on: the events for the client, as the first engine would have sent them. Counts
        are of the whole, and of what was received.

        Raises:
            BrokenStream: it cannot be read, or has no ids.
        """
        if self.is_cut:
            return ()
        if event == sse.DONE or event.startswith(sse.ERRORS):
            return (event,)
        chunk = _decode(event)
        if not chunk.choices:
            return () if chunk.usage is None else (self.totals(chunk.usage.cached_tokens),)
        return self._go_on(chunk.choices[0], event)

    def totals(self, cached_tokens: int = 0) -> bytes:
        """The final event. Of the prompt at most itself was found in a cache."""
        usage = {**self._counts(), "prompt_tokens_details": {"cached_tokens": min(cached_tokens, len(self._prompt_ids))}}
        return b"data: " + msgspec.json.encode({**self._head, "choices": [], "usage": usage})

    def _note(self, chunk: _Chunk, choice: _Choice) -> None:
        """A piece of the first engine's answer; the first of a chat only tells the role, and has no ids."""
        self._prompt_ids = chunk.prompt_token_ids or choice.prompt_token_ids or self._prompt_ids
        if not self._head:
            kind = "chat.completion.chunk" if self._is_chat else "text_completion"
            self._head = {"id": chunk.id, "object": kind, "created": chunk.created, "model": chunk.model}
        text = (choice.delta.content if choice.delta is not None else choice.text) or ""
        if choice.token_ids is None and (text or self.ids):
            self._knows_all = False
        self.ids += choice.token_ids or ()
        self._shown.append(text)
        self.is_finished = choice.finish_reason is not None

    def _go_on(self, choice: _Choice, event: bytes) -> Sequence[bytes]:
        assert self._held is not None and self._step is not None
        if choice.finish_reason == sse.ABORTED:
            return (event,)
        if choice.token_ids is None:
            raise sse.BrokenStream("an event without token ids")
        finish, stop_reason, num_text = choice.finish_reason, choice.stop_reason, len(choice.token_ids)
        if finish == "stop":  # by a token, since no stop strings were sent; vLLM leaves it out of the text
            num_text -= 1
        for number, token_id in enumerate(choice.token_ids):
            self.ids.append(token_id)
            found = self._held.add(self._step(token_id)) if number < num_text else None
            if found is not None:
                finish, stop_reason, self.is_cut = "stop", found, True
                break
        self.is_finished = finish is not None
        piece = self._piece(self._held.take(is_last=self.is_finished), finish, stop_reason)
        return (piece, self.totals(), sse.DONE) if self.is_cut else (piece,)

    def _piece(self, text: str, finish: str | None, stop_reason: int | str | None) -> bytes:
        choice: dict[str, Any] = {"index": 0, **({"delta": {"content": text}} if self._is_chat else {"text": text})}
        choice |= {"logprobs": None, "finish_reason": finish}
        if finish is not None or not self._is_chat:
            choice["stop_reason"] = stop_reason
        choice |= {"token_ids": None} if self._is_chat else {"prompt_token_ids": None, "token_ids": None}
        return b"data: " + msgspec.json.encode({**self._head, "choices": [choice], "usage": self._counts()})

    def _counts(self) -> dict[str, Any]:
        prompt, output = len(self._prompt_ids), len(self.ids)
        return {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}


class Recorded(Source):
    """An engine's answer whose events pass through a transcript: the first engine's are recorded, a later one's go on."""

    def __init__(self, upstream: Upstream, transcript: Transcript, *, is_first: bool) -> None:
        self._upstream = upstream
        self._transcript = transcript
        self._translate = transcript.record if is_first else transcript.go_on
        self._reader: Reader | None = None

    def read(self, reader: Reader) -> None:
        """Give all events to `reader`."""
        self._reader = reader
        self._upstream.read(self)

    def pause(self) -> None:
        """Take no more from the engine for now."""
        self._upstream.pause()

    def resume(self) -> None:
        """Take more again."""
        self._upstream.resume()

    def recycle(self) -> None:
        """The answer is complete; an engine that does not know so is told to stop."""
        if self._transcript.is_cut:
            self._upstream.abort()
        else:
            self._upstream.recycle()

    def events(self, events: Sequence[bytes]) -> None:
        """From the engine."""
        reader = self._reader
        translated: list[bytes] = []
        if reader is None:
            return
        try:
            for event in events:
                translated += self._translate(event)
                if event.startswith(sse.ERRORS):
                    break
        except sse.BrokenStream as error:
            self._reader = None
            reader.events(translated)
            reader.ended(str(error), False)
            return
        reader.events(translated)

    def ended(self, reason: str, has_broken_off: bool) -> None:
        """From the engine."""
        if self._reader is not None:
            self._reader.ended(reason, has_broken_off)


class Totals(Source):
    """The end of an answer whose engine broke off when only the totals were missing."""

    def __init__(self, transcript: Transcript) -> None:
        self._events = (transcript.totals(), sse.DONE)

    def read(self, reader: Reader) -> None:
        """The end is all there is."""
        reader.events(self._events)

    def pause(self) -> None:
        """Nothing comes."""

    def resume(self) -> None:
        """Nothing comes."""

    def recycle(self) -> None:
        """Nothing is held."""


def _decode(event: bytes) -> _Chunk:
    try:
        return _decoder.decode(event[len(b"data: ") :])
    except msgspec.MsgspecError as error:
        raise sse.BrokenStream(f"an event that cannot be read: {error}") from error
