"""Prompts as the model sees them: its own chat template rendered, its own tokenizer counting. No I/O.

The template is the release's, and releases are ours; the sandbox stands between it and a mistake. It is rendered the way
`transformers` does (trimmed blocks, loop controls, `tojson` without HTML escapes), since that is how the engine does it: a
count that differs from the engine's by one token is a wrong bill and a wrong refusal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from serving.gateway.encode import Encoder, encoder_of
from serving.gateway.heads import Heads

Message = Mapping[str, Any]
"""`role`, `content` (a text, or None) and, where they are there, `tool_calls`, `tool_call_id`, `name`."""
_FAST_INLINE_CHARS = 16_000
_SLOW_INLINE_CHARS = 2_000
_PROBE = "probe-of-plain-content"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_DEFAULT_TEMPLATE, _TOOLS_TEMPLATE = "default", "tool_use"
"""By `transformers`' names, which are vLLM's."""


class UnusableTemplate(Exception):
    """The chat template does not compile or cannot render one plain message."""


class RefusedConversation(Exception):
    """The template itself refuses these messages, such as two of one role in a row; the text is its own."""


class ChatTemplate:
    """A model's chat template.

    Raises:
        UnusableTemplate: as it says.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        extensions: list[type[Extension]] = [loopcontrols]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._special_tokens = dict(special_tokens)
        self._knows_developers = '"developer"' in source or "'developer'" in source
        self._wants_parts = False
        try:
            self._template = environment.from_string(source)
            # A plain copy of Jinja's chained mapping, which each rendering would walk twice in Python.
            self._template.globals = dict(self._template.globals)
            if not self._carries_content():  # some templates take content only as a list of parts
                self._wants_parts = True
                if not self._carries_content():
                    raise ValueError("a plain message does not come through")
        except (jinja2.TemplateError, RefusedConversation, TypeError, ValueError) as error:
            raise UnusableTemplate(f"{type(error).__name__}: {error}") from error

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The prompt for `messages`, ready for the assistant's turn, with the `tools` that it may call.

        Raises:
            RefusedConversation: as it says.
        """
        try:
            return self._render(messages, tools)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RefusedConversation(str(error)) from error

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        given = messages if self._knows_developers else _with_one_system_message(messages)
        given = [self._as_rendered(message) for message in given]
        return self._template.render(
            messages=given, tools=tools, documents=None, add_generation_prompt=True, **self._special_tokens
        )

    def _as_rendered(self, message: Message) -> Message:
        """What vLLM (0.32, `renderers/chat_utils.py`) makes of a message: no content is empty content, and a call's arguments are
        an object, an empty one where the model wrote something else."""
        content = message["content"]
        if self._wants_parts:
            content = [] if content is None else [{"type": "text", "text": content}]
        if not message.get("tool_calls"):
            return {**message, "content": "" if content is None else content}
        calls = [
            {**call, "function": {**call["function"], "arguments": _object(call["function"].get("arguments"))}}
            for call in message["tool_calls"]
        ]
        return {**message, "content": "" if content is None else content, "tool_calls": calls}

    def _carries_content(self) -> bool:
        try:
            return _PROBE in self._render([{"role": "user", "content": _PROBE}])
        except (jinja2.TemplateError, TypeError):
            return False


class PromptCounter:
    """Turns prompts of one release into tokens. Safe to use in threads."""

    def __init__(
        self, tokenizer: Tokenizer, encoder: Encoder, template: ChatTemplate, tools_template: ChatTemplate | None = None
    ) -> None:
        """`tools_template` is for conversations with tools, where the model has another for them."""
        self.why_slow = encoder.why_slow
        """Why texts are encoded by the slower of two ways; empty where they are not."""
        self.inline_chars = _SLOW_INLINE_CHARS if encoder.why_slow else _FAST_INLINE_CHARS
        """A prompt of so many characters may hold up the event loop: about half a millisecond, hashes and template included."""
        self.num_token_ids: int = tokenizer.get_vocab_size(with_added_tokens=True)
        """Token ids run from 0 to one less than this."""
        self._tokenizer = tokenizer
        self._encode = encoder.encode
        self._template = template
        self._tools_template = tools_template or template
        special_tokens = [str(token.content) for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        self.heads = Heads(lambda text: encoder.encode(text, False), special_tokens)
        """Of registered prompts."""

    def chat_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """Token ids of a conversation, the template's own included and, where it shows them, the tools'.

        Raises:
            RefusedConversation: the template refuses the messages.
        """
        template = self._tools_template if tools else self._template
        return self._ids(template.render(messages, tools), add_special_tokens=False)

    def prompted_ids(
        self, name: str, num_registered: int, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Those of a conversation whose first `num_registered` messages are the registered prompt `name`, which is encoded once.

        Raises:
            RefusedConversation: the template refuses the messages.
        """
        template = self._tools_template if tools else self._template

        def with_probe(text: str) -> str:
            return self._template.render([*messages[:num_registered], {"role": "user", "content": text}])

        text = template.render(messages, tools)
        try:
            return self.heads.ids(name, text, with_probe)
        except RefusedConversation:  # a user's message may not follow it: nothing can be remembered
            return self._ids(text, add_special_tokens=False)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens that the tokenizer adds by itself."""
        return self._ids(text, add_special_tokens=True)

    def num_tokens(self, text: str) -> int:
        """Tokens of a text by itself: of a message's, about what it adds to a conversation."""
        return len(self._encode(text, False))

    def decoder(self, before: Sequence[int]) -> Callable[[int], str]:
        """Turns one token id after the other, all of which follow `before`, into the text that each completes; special tokens and
        unfinished characters are empty."""
        stream = DecodeStream(ids=list(before), skip_special_tokens=True)
        return lambda token_id: stream.step(self._tokenizer, token_id) or ""

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._encode(text, add_special_tokens))


def prompt_counter(tokenizer_json: bytes, tokenizer_config: bytes, chat_template: bytes | None) -> PromptCounter:
    """The counter made of a release's `tokenizer.json`, `tokenizer_config.json` and, if it has one, `chat_template.jinja`.

    Raises:
        UnusableTemplate: there is no chat template, or it cannot be used.
        ValueError: the tokenizer or its configuration cannot be read.
    """
    config = json.loads(tokenizer_config)
    sources = {_DEFAULT_TEMPLATE: chat_template.decode()} if chat_template is not None else _inline_templates(config)
    source, tools_source = sources.get(_DEFAULT_TEMPLATE), sources.get(_TOOLS_TEMPLATE)
    if source is None:
        raise UnusableTemplate("the release has no chat template")
    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the Rust side raises plain Exception
        raise ValueError(f"tokenizer.json: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = {name: token for name in _SPECIAL_TOKENS if (token := _special_token(config.get(name))) is not None}
    encoder = encoder_of(tokenizer_json.decode(), tokenizer)
    tools_template = ChatTemplate(tools_source, special) if tools_source is not None else None
    return PromptCounter(tokenizer, encoder, ChatTemplate(source, special), tools_template)


def _with_one_system_message(messages: Sequence[Message]) -> Sequence[Message]:
    """What vLLM (0.32, `renderers/hf.py`) makes of a conversation with `developer` messages for a template that has no such role:
    they become system messages, and where there are several, or one that is not the first, all are joined at the front."""
    if all(message["role"] != "developer" for message in messages):
        return messages
    is_system = [message["role"] in ("system", "developer") for message in messages]
    if sum(is_system) == 1 and is_system[0]:
        return [{**messages[0], "role": "system"}, *messages[1:]]
    contents = [message["content"] for message, joins in zip(messages, is_system, strict=True) if joins and message["content"]]
    others = [message for message, joins in zip(messages, is_system, strict=True) if not joins]
    return [{"role": "system", "content": "\n\n".join(contents)}, *others]


def _inline_templates(config: Mapping[str, Any]) -> dict[str, str]:
    """`chat_template` of a tokenizer configuration, a text or a list of named ones, by name."""
    value = config.get("chat_template")
    if isinstance(value, list):
        return {entry["name"]: entry["template"] for entry in value}
    return {_DEFAULT_TEMPLATE: value} if isinstance(value, str) else {}


def _special_token(value: Any) -> str | None:
    """A special token of a tokenizer configuration: a text, or an object that holds it as `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _object(arguments: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise RefusedConversation(message)
