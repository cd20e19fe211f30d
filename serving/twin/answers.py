"""Answers as vLLM 0.32 writes them: the events of a stream, the document of a plain answer, and the counts in both.

A stream is most of what a twin does, so an event is put together of pieces: what all events of the answer begin with, the token's
text, what follows it, and the counts. Nothing is encoded per token, since each word's JSON is made once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from serving.stop_strings import HeldText
from serving.twin.asked import Asked, core_died
from serving.twin.call_pieces import CallPieces, whole_call
from serving.twin.faults import STREAM_FAULTS, Fault, FaultKind
from serving.twin.generation import Generation
from serving.twin.logprobs import chat, joined, plain
from serving.twin.truth import Record
from serving.twin.vocabulary import Vocabulary

FINGERPRINT = "vllm-0.32.0-twin"
_PLAIN_CHAT = b'%b%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null,"token_ids":null}]%b'
_PLAIN_TEXT = (
    b'%b%d,"text":%b,"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]%b'
)
_END = b"}\n\n"
_encode = msgspec.json.encode


class Client(Protocol):
    """The connection that an answer goes to."""

    def event(self, data: bytes) -> None:
        """Send one event of a stream."""

    def end(self) -> None:
        """End the stream in good order."""

    def document(self, body: bytes) -> None:
        """Send the whole answer."""

    def reset(self) -> None:
        """Break the connection off."""


class Answer:
    """One request's answer on its way to its client; `deliver` takes the tokens of all its generations."""

    def __init__(
        self,
        asked: Asked,
        record: Record,
        client: Client,
        words: Mapping[int, bytes],
        vocabulary: Vocabulary,
        fault: Fault | None,
        over: Callable[[str], None],
    ) -> None:
        """`words` has the JSON of each word; `over` is told how the answer ended, before its last byte is sent."""
        self._asked, self._record, self._client, self._words = asked, record, client, words
        self._vocabulary = vocabulary
        self._kind = fault.kind if fault and (asked.is_streamed or fault.kind not in STREAM_FAULTS) else None
        self._at_token = fault.at_token if fault else 0
        self._factor = fault.factor if fault and fault.kind is FaultKind.LIE_USAGE else 1.0
        self._over = over
        self._num_open = self.num_choices = len(asked.prompts) * asked.num_choices
        self._texts = [HeldText(asked.stop) for _ in range(self.num_choices)]
        self._calls: dict[int, CallPieces] = {}
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in range(self.num_choices)]
        self._endings: dict[int, tuple[Generation, str, str | None]] = {}
        self._created = int(time.time())
        self._has_started = self._is_broken = False
        self._num_cached = 0
        self._has_counts = asked.wants_running_usage and self._kind is not FaultKind.DROP_USAGE
        is_special = asked.stop or asked.wants_token_ids or asked.echo or asked.form or asked.num_logprobs is not None
        self._is_simple = asked.is_streamed and not (is_special or fault)
        self._plain = _PLAIN_CHAT if asked.is_chat else _PLAIN_TEXT
        self._counts = b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d' + (
            b',"completion_tokens_details":null}}\n\n' if asked.is_chat else b"}}\n\n"
        )
        common = {"id": record.request_id, "object": "chat.completion.chunk" if asked.is_chat else "text_completion"}
        self._common = _encode({**common, "created": self._created, "model": asked.model})[:-1]
        self._head = b"data: " + self._common + b',"choices":[{"index":'

    def deliver(self, generation: Generation, token_id: int, finish: str | None) -> bool:
        """Take a token; True says that the generation is to end with it."""
        if not self._has_started:
            self._start(generation)
        if finish is None and self._is_simple:
            num_prompt, num_output = generation.num_prompt, generation.num_output
            counts = self._counts % (num_prompt, num_prompt + num_output, num_output) if self._has_counts else _END
            self._record.sent_tokens += 1
            self._client.event(self._plain % (self._head, generation.index, self._words[token_id], counts))
            return False
        return self._deliver(generation, token_id, finish)

    def _start(self, generation: Generation) -> None:
        """The first token is there: a stream of a chat tells its role first."""
        self._has_started = True
        self._num_cached = generation.num_cached
        asked = self._asked
        if not (asked.is_chat and asked.is_streamed):
            return
        ids = _encode(list(asked.prompts[0])) if asked.wants_token_ids else b"null"
        counts = self._counts % (generation.num_prompt, generation.num_prompt, 0) if self._has_counts else _END
        tail = b',"prompt_token_ids":%b,"prompt_text":null}\n\n' % ids
        for index in range(self.num_choices):
            delta = b'%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]' % index
            self._client.event(self._head + delta + counts.removesuffix(_END) + tail)

    def _deliver(self, generation: Generation, token_id: int, finish: str | None) -> bool:
        text = self._texts[generation.index]
        if self._kind in _BREAKS and self._record.sent_tokens >= self._at_token and self._break():
            return True
        offset = len(text.text)
        word = self._word(generation, token_id)
        stop_reason = text.add(word) if word else None
        if stop_reason is not None:
            finish = "stop"
        logprobs = self._likely(generation.index, token_id, offset)
        if self._asked.is_streamed:
            piece = text.take(is_last=finish is not None)
            if event := self._event(generation, token_id, piece, finish, stop_reason, logprobs):
                self._client.event(event)
        self._record.sent_tokens += 1
        if finish is not None:
            self._end_choice(generation, finish, stop_reason)
        return stop_reason is not None

    def _word(self, generation: Generation, token_id: int) -> str:
        if generation.script is not None:
            return generation.script.pieces[generation.num_output - 1]
        word = self._words.get(token_id)
        return msgspec.json.decode(word) if word else ""

    def _likely(self, index: int, token_id: int, offset: int) -> dict[str, Any] | None:
        top = self._asked.num_logprobs
        if top is None:
            return None
        text, words = self._vocabulary.token_text, self._vocabulary.words.ascii
        found = chat(token_id, top, text, words) if self._asked.is_chat else plain(token_id, top, text, words, offset)
        self._logprobs[index].append(found)
        return found

    def _event(
        self,
        generation: Generation,
        token_id: int,
        piece: str,
        finish: str | None,
        stop_reason: str | None,
        logprobs: dict[str, Any] | None,
    ) -> bytes | None:
        """An event with all that may be in one; None where vLLM sends none."""
        asked, prompt = self._asked, self._prompt_of(generation.index)
        is_first = generation.num_output == 1
        if is_first and asked.echo:
            piece = asked.echo[generation.index // asked.num_choices] + piece
        ids = [token_id] if asked.wants_token_ids else None
        choice: dict[str, Any] = {"index": generation.index}
        if asked.is_chat:
            delta = self._delta(generation, piece)
            if not delta and finish is None and logprobs is None and ids is None:
                return None
            choice |= {"delta": delta, "logprobs": logprobs, "finish_reason": self._finish(generation, finish)}
            if finish is not None:
                choice["stop_reason"] = stop_reason
            choice["token_ids"] = ids
        else:
            choice |= {"text": piece, "logprobs": logprobs, "finish_reason": finish, "stop_reason": stop_reason}
            choice |= {"prompt_token_ids": prompt if is_first and asked.wants_token_ids else None, "token_ids": ids}
        event: dict[str, Any] = {"choices": [choice]}
        if self._has_counts:
            event["usage"] = self._usage(generation.num_prompt, generation.num_output)
            if asked.is_chat:
                event["usage"]["completion_tokens_details"] = None
        if finish is not None and not asked.wants_usage:
            event["system_fingerprint"] = FINGERPRINT
        return b"data: " + self._common + b"," + _encode(event)[1:] + b"\n\n"

    def _delta(self, generation: Generation, piece: str) -> dict[str, Any]:
        """What a piece of a chat's answer says; empty where a parser of tool calls keeps it."""
        script = generation.script
        if script is not None and script.call is not None:
            return self._calls.setdefault(generation.index, CallPieces(script.call)).take(piece)
        return {"content": piece} if piece or not self._asked.has_parser else {}

    def _finish(self, generation: Generation, finish: str | None) -> str | None:
        """vLLM says `tool_calls` of calls that it was free to choose, and `stop` of one that the client named."""
        form, script = self._asked.form, generation.script
        is_call = finish == "stop" and script is not None and script.call is not None
        return "tool_calls" if is_call and form is not None and not form.is_named else finish

    def _break(self) -> bool:
        """Do what the fault says, at the token that it names; True where nothing comes after it."""
        if self._kind is FaultKind.GARBLE:
            if not self._is_broken:
                self._is_broken = True
                self._client.event(self._head + b'0,"delta":{"content":"\n\n')
            return False
        if self._kind is FaultKind.TRUNCATE:
            self._over("truncated")
            self._client.event(self._head + b'0,"delta":{"content":"')
            self._client.end()
        elif self._kind is FaultKind.ERROR:
            self._over("failed")
            self._client.event(b"data: " + core_died(500).document() + b"\n\ndata: [DONE]\n\n")
            self._client.end()
        elif self._kind is FaultKind.CUT:
            self._over("cut")
            self._client.reset()
        else:
            self._over("died")
        return True

    def _end_choice(self, generation: Generation, finish: str, stop_reason: str | None) -> None:
        self._endings[generation.index] = (generation, finish, stop_reason)
        self._num_open -= 1
        if self._num_open:
            return
        self._over(finish)
        if not self._asked.is_streamed:
            self._client.document(self._document())
            return
        if self._asked.wants_usage and self._kind not in (FaultKind.DROP_USAGE, FaultKind.DROP_FINAL_USAGE):
            event = {"choices": [], "usage": self._final_usage(), "system_fingerprint": FINGERPRINT}
            self._client.event(b"data: " + self._common + b"," + _encode(event)[1:] + b"\n\n")
        self._client.event(b"data: [DONE]\n\n")
        self._client.end()

    def _usage(self, prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
        told = int(output_tokens * self._factor)
        return {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens + told, "completion_tokens": told}

    def _totals(self) -> dict[str, Any]:
        output_tokens = sum(generation.num_output for generation, _, _ in self._endings.values())
        return self._usage(sum(map(len, self._asked.prompts)), output_tokens)

    def _details(self) -> dict[str, int | None]:
        """vLLM tells what it has newly made findable for chats only, in streams and documents alike."""
        if not self._asked.is_chat:
            return {"cached_tokens": self._num_cached}
        first = self._endings[0][0]
        size = first.table.block_tokens
        created = first.num_prompt // size * size - self._num_cached
        return {"cached_tokens": self._num_cached, "created_cache_tokens": max(0, created)}

    def _final_usage(self) -> dict[str, Any]:
        return {**self._totals(), "prompt_tokens_details": self._details()}

    def _document(self) -> bytes:
        asked = self._asked
        choices = [self._choice(*self._endings[index]) for index in range(self.num_choices)]
        none = dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))
        if asked.is_chat:
            ids = list(asked.prompts[0]) if asked.wants_token_ids else None
            none = {"prompt_logprobs": None, "prompt_token_ids": ids, "prompt_text": None, **none}
        details = {"created_cache_tokens": None, **self._details(), "multimodal_tokens": None}
        details = {"cached_tokens": details.pop("cached_tokens"), **details}
        usage = {**self._totals(), "prompt_tokens_details": details, "completion_tokens_details": None}
        document = {
            "id": self._record.request_id,
            "object": "chat.completion" if asked.is_chat else "text_completion",
            "created": self._created,
            "model": asked.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage,
            **none,
        }
        if self._kind in (FaultKind.DROP_USAGE, FaultKind.DROP_FINAL_USAGE):
            del document["usage"]
        return _encode(document)

    def _choice(self, generation: Generation, finish: str, stop_reason: str | None) -> dict[str, Any]:
        asked, text = self._asked, self._texts[generation.index].text
        ids = generation.ids[generation.num_prompt :] if asked.wants_token_ids else None
        likely = joined(self._logprobs[generation.index])
        ending = {"logprobs": likely, "finish_reason": finish, "stop_reason": stop_reason, "token_ids": ids}
        if asked.is_chat:
            none = dict.fromkeys(("refusal", "annotations", "audio", "function_call"))
            message: dict[str, Any] = {"role": "assistant", "content": text, **none}
            if generation.script is not None and generation.script.call is not None and finish == "stop":
                message |= {"content": "", "tool_calls": [whole_call(generation.script.call, text)]}
                ending["finish_reason"] = self._finish(generation, finish)
            message["reasoning"] = None
            return {"index": generation.index, "message": message, **ending, "routed_experts": None}
        if asked.echo:
            text = asked.echo[generation.index // asked.num_choices] + text
        prompt = self._prompt_of(generation.index) if asked.wants_token_ids else None
        ending |= {"prompt_logprobs": None, "prompt_token_ids": prompt, "routed_experts": None}
        return {"index": generation.index, "text": text, **ending}

    def _prompt_of(self, index: int) -> list[int]:
        return list(self._asked.prompts[index // self._asked.num_choices])


_BREAKS = frozenset({FaultKind.GARBLE, FaultKind.TRUNCATE, FaultKind.ERROR, FaultKind.CUT, FaultKind.DIE})
