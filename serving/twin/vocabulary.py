"""The tokens of a twin: its own small tokenizer, or the one of a model's folder.

A folder is what vLLM's `--model` names: `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`. The twin's own is made
here, of a word list, and ships in code: a release of a twin carries it, so that gateway and twin count the same tokens without
a download. In it each word of `words.py` is one token, and any other text is spelt by its bytes: English takes about three
tokens a word, a prompt made of the list's words exactly one.

A twin writes words that are one token each and stay so when they come back in a prompt: an answer that becomes part of the
next question has the same ids, and so finds its own KV blocks, as with a real model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from serving.gateway.prompts import ChatTemplate
from serving.twin.words import ENGLISH, WIDE

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% if tools %}{{ '<|im_start|>system\\n# Tools\\n' }}{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ '<tool_call>\\n{\"name\": \"' + call['function']['name'] }}"
    "{{ '\", \"arguments\": ' + call['function']['arguments'] | tojson + '}\\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_MAX_WORDS = 2048
_MAX_WIDE = len(WIDE)
_CACHED_SEGMENTS = 4096
_WORD = re.compile(r" [^\W\d_]{2,}")


class VocabularyError(Exception):
    """The folder's tokenizer cannot be used; the message names it."""


@dataclass(frozen=True)
class Words:
    """What a twin writes with."""

    ascii: tuple[int, ...]
    wide: tuple[int, ...]
    """Ids of words with characters of several bytes; may be empty."""
    text: Mapping[int, str]


class Vocabulary:
    """Text to ids and back, a conversation to its prompt."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, special_tokens: Sequence[str], eos_token: str) -> None:
        self.size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self.eos_id = int(tokenizer.token_to_id(eos_token) or 0)
        self.template = template
        self.words = _words(tokenizer)
        self.plain_words = [self.words.text[token_id].strip() for token_id in self.words.ascii]
        """Those of ASCII, without the spaces before them."""
        self._tokenizer = tokenizer
        self._split = re.compile("(" + "|".join(re.escape(token) for token in special_tokens) + ")")
        self._segment = lru_cache(_CACHED_SEGMENTS)(self._encode_segment)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of `text`. Special tokens cut it into segments that do not depend on each other, and the turns of a
        conversation come again and again: each segment is encoded once."""
        prefix = self._tokenizer.encode("", add_special_tokens=True).ids if add_special_tokens else []
        ids = list(prefix)
        for segment in self._split.split(text):
            if segment:
                ids += self._segment(segment)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids))
        return text

    def spell(self, text: str) -> list[tuple[int, str]]:
        """The tokens of a text in ASCII, and the text of each."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [(token_id, text[begin:end]) for token_id, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True)]

    def token_text(self, token_id: int) -> str:
        """The text of any token, special ones by their names."""
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text

    def token(self, token_id: int) -> str:
        """The text of one token that the twin wrote."""
        return self.words.text.get(token_id, "")

    def token_strs(self, ids: Sequence[int]) -> list[str]:
        """Tokens as the tokenizer spells them, such as `Ġworld`."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in ids]

    def _encode_segment(self, segment: str) -> tuple[int, ...]:
        # The batch call lets other threads run meanwhile.
        return tuple(self._tokenizer.encode_batch_fast([segment], add_special_tokens=False)[0].ids)


@lru_cache(1)
def own_files() -> Mapping[str, bytes]:
    """The files of the twin's own tokenizer, by name; the same bytes each time."""
    config = {"bos_token": _SPECIAL[0], "eos_token": _SPECIAL[2], "pad_token": _SPECIAL[0]}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    return {
        TOKENIZER: _own_tokenizer().to_str().encode(),
        CONFIG: json.dumps(config, sort_keys=True).encode(),
        TEMPLATE: _CHATML.encode(),
    }


def load(folder: Path | None) -> Vocabulary:
    """The vocabulary in `folder`; None is the twin's own.

    Raises:
        VocabularyError: a file is missing or cannot be read.
    """
    if folder is None:
        return make(own_files())
    try:
        files = {name: (folder / name).read_bytes() for name in (TOKENIZER, CONFIG)}
        template = folder / TEMPLATE
        return make({**files, TEMPLATE: template.read_bytes()} if template.is_file() else files)
    except (OSError, ValueError) as error:
        raise VocabularyError(f"{folder}: {error}") from error


def make(files: Mapping[str, bytes]) -> Vocabulary:
    """The vocabulary of a model's files.

    Raises:
        ValueError: one cannot be read.
    """
    config = json.loads(files[CONFIG])
    try:
        tokenizer = Tokenizer.from_buffer(files[TOKENIZER])
    except Exception as error:  # the Rust side raises plain Exception
        raise ValueError(f"{TOKENIZER}: {error}") from error
    source = files[TEMPLATE].decode() if TEMPLATE in files else config.get("chat_template") or _CHATML
    special = {name: _content(config[name]) for name in ("bos_token", "eos_token", "pad_token", "unk_token") if config.get(name)}
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return Vocabulary(tokenizer, ChatTemplate(source, special), added, special["eos_token"])


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _own_tokenizer() -> Tokenizer:
    """A byte-level BPE whose merges spell each word from its left: `Ġt`+`h`, `Ġth`+`e`. No other merge applies inside a word, so
    the longest listed word that the text begins with is one token, and what follows is bytes."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    spelled = [to_bytes.pre_tokenize_str(" " + word)[0][0] for word in (*ENGLISH, *WIDE)]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Words before their pieces: the first that are found are written with.
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*characters, *spelled]))}
    merges: dict[tuple[str, str], None] = {}
    for word in spelled:
        for end in range(1, len(word)):
            merges[(word[:end], word[end])] = None
            vocabulary.setdefault(word[: end + 1], len(vocabulary))
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    return tokenizer


def _words(tokenizer: Tokenizer) -> Words:
    """The first words of the vocabulary that are one token wherever they stand between spaces."""
    ascii_ids: list[int] = []
    wide_ids: list[int] = []
    text: dict[int, str] = {}
    ids = sorted(tokenizer.get_vocab(with_added_tokens=False).values())
    for token_id, word in zip(ids, tokenizer.decode_batch([[token_id] for token_id in ids]), strict=True):
        found, most = (ascii_ids, _MAX_WORDS) if word.isascii() else (wide_ids, _MAX_WIDE)
        is_word = _WORD.fullmatch(word) or (not word.isascii() and "\ufffd" not in word and word[:1] == " " and len(word) > 1)
        if len(found) < most and is_word and tokenizer.encode(word, add_special_tokens=False).ids == [token_id]:
            found.append(token_id)
            text[token_id] = word
    return Words(tuple(ascii_ids), tuple(wide_ids), text)
