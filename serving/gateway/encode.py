"""Text to token ids: by `fastokens` where it gives the ids of `tokenizers` on a fixed corpus, by `tokenizers` itself where not.

`tokenizers` is what engines use, so its ids are the truth; it takes 32 ms for 20,000 characters of unseen text and 260 for
120,000, where `fastokens` takes 0.25 and 9 (SmolLM2's tokenizer, two shared vCPUs, busy). The corpus is tried when a release is
loaded, against that release's own tokenizer: scripts, spaces, numbers, code, wide characters, and the tokenizer's own special
tokens in the midst of text. A tokenizer that `fastokens` does not know, or reads otherwise, costs time and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import fastokens  # type: ignore[import-untyped]
from tokenizers import Tokenizer

Encode = Callable[[str, bool], Sequence[int]]
"""The ids of a text, with the special tokens that the tokenizer adds by itself or without. Safe to use in threads."""

_CORPUS: tuple[str, ...] = (
    "",
    " ",
    "a",
    "Hello, world! What is the capital of France? It's Paris; they'll say: \"Paris.\"",
    "   leading, trailing   \t\n\n\n\r\n  and   inner\u00a0\u2003 spaces \u200b\u200d ",
    "0 1 12 123 1234 12345 3.14159 1e-10 0xDEADBEEF 2026-11-24T14:19:47Z $1,234.56 50%",
    "def f(x: int) -> dict[str, list[int]]:\n\treturn {'a': [x ** 2, ~x]}  # TODO: é\n\n\nclass A:\n    pass\n",
    '{"name": "get_weather", "arguments": {"city": "Z\\u00fcrich", "days": [1, 2, 3]}}\n</tool_call>',
    "<div class='x'>&nbsp;</div> https://example.com/a?b=c&d=%20e#f user@example.com C:\\temp\\x.txt",
    "naïve café größe œuvre Ærøskøbing İstanbul ﬁn ½ ² Ⅷ ™ … – — ‘’ “” «»",
    "e\u0301 vs é, n\u0303 vs ñ, \u1112\u1161\u11ab vs 한",
    "Привет, как дела? Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया। สวัสดีชาวโลก",
    "你好,世界。今日は、世界!안녕하세요 세계. 東京都渋谷区 3丁目",
    "🚀🐢 👩‍👩‍👧‍👦 🇫🇷 👍🏽 ❤️ ☃ \U0001f9d1\u200d\U0001f4bb",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "-" * 97 + "=" * 64 + "\n" * 9 + " " * 83 + "." * 41,
    "ThisIsCamelCase and snake_case_names and SCREAMING_ONES and kebab-case-ones, don't can't I'M WE'RE",
    "\x00\x01\x1b[0m\x7f \ufeff \ufffd \ue000",
    "Thequickbrownfoxjumpsoverthelazydog " * 7 + "antidisestablishmentarianism pneumonoultramicroscopic",
)
_NUM_SPECIAL = 64
"""Of a tokenizer's special tokens so many are tried."""


class Encoder:
    """How a release's texts are encoded."""

    def __init__(self, encode: Encode, why_slow: str) -> None:
        self.encode = encode
        self.why_slow = why_slow
        """Why `tokenizers` does it; empty where it does not."""


def encoder_of(tokenizer_json: str, tokenizer: Tokenizer) -> Encoder:
    """The fast encoder, if its ids are those of `tokenizer`, which `tokenizer_json` describes; else the slow one, and why."""
    slow = _slow(tokenizer)
    try:
        fast = _fast(tokenizer_json)
        for text in (*_CORPUS, *_with_special_tokens(tokenizer)):
            for with_special in (False, True):
                if list(fast(text, with_special)) != list(slow(text, with_special)):
                    return Encoder(slow, f"fastokens has other ids for {text[:40]!r}")
    except Exception as error:  # whatever it says, there is another
        return Encoder(slow, f"fastokens: {type(error).__name__}: {str(error)[:200]}")
    return Encoder(fast, "")


def _fast(tokenizer_json: str) -> Encode:
    """Cut and filled up to no length, as the slow one is."""
    document = {**json.loads(tokenizer_json), "truncation": None, "padding": None}
    tokenizer = fastokens.Tokenizer.from_json_str(json.dumps(document))
    return lambda text, with_special: tokenizer.encode(text, with_special).ids


def _slow(tokenizer: Tokenizer) -> Encode:
    # The batch call lets other threads run meanwhile; the single one holds the interpreter for as long as it takes.
    return lambda text, with_special: tokenizer.encode_batch_fast([text], add_special_tokens=with_special)[0].ids


def _with_special_tokens(tokenizer: Tokenizer) -> list[str]:
    """A conversation in the tokenizer's own special tokens, and its text between each of them."""
    tokens = [str(token.content) for token in tokenizer.get_added_tokens_decoder().values()][:_NUM_SPECIAL]
    return ["".join(f"{token}user\nHi {token} there{token}" for token in tokens), *(f"a {token}b" for token in tokens)]
