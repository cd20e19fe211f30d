"""Texts encoded fast where the ids are right, and slowly where they are not: a count is never wrong for speed's sake."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from serving.gateway import encode
from serving.gateway.encode import encoder_of
from serving.twin import vocabulary

TWINS = vocabulary.own_files()[vocabulary.TOKENIZER].decode()
ENCODER = encoder_of(TWINS, Tokenizer.from_str(TWINS))
ORACLE = Tokenizer.from_str(TWINS)
PIECES = st.sampled_from(["<|im_start|>", "<|im_end|>", " the", "people", "\n\n", "  ", "é", "🚀", "'ll", "123"])


@given(st.text(max_size=80) | st.lists(PIECES | st.text(max_size=5), max_size=20).map("".join), st.booleans())
def test_a_byte_level_bpe_is_encoded_fast_with_the_ids_of_tokenizers(text: str, with_special: bool) -> None:
    assert ENCODER.why_slow == ""
    assert list(ENCODER.encode(text, with_special)) == ORACLE.encode(text, add_special_tokens=with_special).ids


def test_threads_may_share_an_encoder() -> None:
    texts = [f"the people of {number} " * 200 for number in range(32)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda text: list(ENCODER.encode(text, False)), texts * 4))
    assert found == [ORACLE.encode(text, add_special_tokens=False).ids for text in texts] * 4


def test_truncation_and_padding_in_the_file_cut_and_fill_nothing() -> None:
    document = json.loads(TWINS)
    document["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.no_truncation()
    encoder = encoder_of(json.dumps(document), tokenizer)
    assert (encoder.why_slow, len(encoder.encode(" the" * 9, False))) == ("", 9)


def word_level() -> Tokenizer:
    """A kind of tokenizer that a BPE is not."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(["hello world"], trainers.WordLevelTrainer(special_tokens=["?"], show_progress=False))
    return tokenizer


def test_a_tokenizer_that_it_does_not_know_is_left_to_tokenizers_and_says_why() -> None:
    tokenizer = word_level()
    encoder = encoder_of(tokenizer.to_str(), tokenizer)
    assert encoder.why_slow.startswith("fastokens")
    assert list(encoder.encode("Hello world", False)) == tokenizer.encode("Hello world").ids


@pytest.mark.parametrize("spoilt", ["Привет", "<|im_end|>"])
def test_one_other_id_anywhere_in_the_corpus_is_enough_to_fall_back(monkeypatch: pytest.MonkeyPatch, spoilt: str) -> None:
    fast = encode._fast(TWINS)

    def other(text: str, with_special: bool) -> Any:
        ids = list(fast(text, with_special))
        return ids[:-1] if spoilt in text else ids

    monkeypatch.setattr(encode, "_fast", lambda _: other)
    encoder = encoder_of(TWINS, ORACLE)
    assert encoder.why_slow.startswith("fastokens has other ids for")
    assert list(encoder.encode("a", False)) == ORACLE.encode("a", add_special_tokens=False).ids
