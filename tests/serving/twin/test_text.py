"""What a twin writes follows from what it was asked, and from nothing else."""

from __future__ import annotations

from serving.twin.words import ENGLISH
from tests.serving.twin.conftest import Asker, Start, own_vocabulary


def text_of(document: dict) -> str:
    return str(document["choices"][0]["text"])


async def test_replicas_give_the_same_greedy_answer(start: Start) -> None:
    answers = {text_of(await (await start()).complete("the capital of the country", 30)) for _ in range(3)}
    assert len(answers) == 1


async def test_other_prompts_seeds_and_adapters_give_other_answers(start: Start, adapter: str) -> None:
    first, other_seed = await start(), await start(seed=2)
    first.twin.load_adapter("acme", adapter)
    answers = [
        text_of(await first.complete("one", 12)),
        text_of(await first.complete("two", 12)),
        text_of(await other_seed.complete("one", 12)),
        text_of(await first.complete("one", 12, model="acme")),
    ]
    assert len(set(answers)) == len(answers)


async def test_a_salt_changes_no_text(twin: Asker) -> None:
    assert text_of(await twin.complete("one", 12)) == text_of(await twin.complete("one", 12, cache_salt="pepper"))


async def test_an_answer_continued_elsewhere_by_token_ids_ends_the_same(start: Start) -> None:
    first, second = await start(), await start()
    whole = (await first.complete("the people", 40, return_token_ids=True))["choices"][0]
    begun = whole["prompt_token_ids"] + whole["token_ids"][:13]
    rest = (await second.complete(begun, 27, return_token_ids=True))["choices"][0]
    assert rest["token_ids"] == whole["token_ids"][13:]
    assert whole["text"].endswith(rest["text"])


async def test_answers_that_are_not_greedy_repeat_by_their_seed_only(twin: Asker) -> None:
    async def answer(**fields: object) -> str:
        return text_of(await twin.complete("one", 12, temperature=1, **fields))

    assert await answer(seed=5) == await answer(seed=5) != await answer(seed=6)
    assert await answer() != await answer()


async def test_choices_differ_and_the_first_is_what_one_alone_would_be(twin: Asker) -> None:
    several = (await twin.complete("one", 12, temperature=1, seed=5, n=3))["choices"]
    assert [choice["index"] for choice in several] == [0, 1, 2]
    assert len({choice["text"] for choice in several}) == 3
    assert several[0]["text"] == text_of(await twin.complete("one", 12, temperature=1, seed=5))


async def test_an_answer_in_the_next_prompt_has_the_tokens_it_was_made_of(twin: Asker) -> None:
    """Otherwise the second turn of a conversation would not find the first one's blocks."""
    choice = (await twin.complete("the people", 200, return_token_ids=True))["choices"][0]
    assert own_vocabulary().encode(choice["text"], add_special_tokens=False) == choice["token_ids"]


async def test_answers_hold_characters_of_several_bytes(twin: Asker) -> None:
    assert not text_of(await twin.complete("the people", 200)).isascii()


async def test_an_answer_ends_by_itself_unless_it_is_told_not_to(start: Start) -> None:
    talkative = await start(mean_answer_tokens=20)
    ended = (await talkative.complete("the people", 1000))["choices"][0]
    assert ended["finish_reason"] == "stop"
    assert (await talkative.complete("the people", 1000, ignore_eos=True))["choices"][0]["finish_reason"] == "length"
    at_least = await talkative.complete("the people", 1000, min_tokens=300)
    assert at_least["usage"]["completion_tokens"] > 300


def test_a_listed_word_is_one_token() -> None:
    words = own_vocabulary()
    lengths = {word: len(words.encode(" " + word, add_special_tokens=False)) for word in ENGLISH}
    assert [word for word, length in lengths.items() if length != 1] == []
    assert words.decode(words.encode("What is that? 東京!", add_special_tokens=False)) == "What is that? 東京!"
