"""The prefix index: chains share hashes exactly where an engine could share blocks, and the index says what it was told."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.routing.prefix_index import BLOCK_TOKENS, Chain, PrefixIndex, chain_of


def chain(tokens: list[int], adapter: str = "", salt: str = "s") -> Chain:
    return chain_of(tokens, adapter=adapter, salt=salt)


def blocks(*letters: str) -> list[int]:
    return [ord(letter) for letter in letters for _ in range(BLOCK_TOKENS)]


def test_only_full_blocks_count() -> None:
    assert [len(chain([1] * num)) for num in (0, 1, BLOCK_TOKENS - 1, BLOCK_TOKENS, 3 * BLOCK_TOKENS + 1)] == [0, 0, 0, 1, 3]


def test_chains_share_hashes_as_far_as_their_tokens_are_the_same() -> None:
    first, second = chain(blocks("a", "b", "c")), chain(blocks("a", "x", "c"))
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert first[2] != second[2], "the same block after another one is another block"
    assert first[:2] == chain(blocks("a", "b", "z")[: 2 * BLOCK_TOKENS + 5])


def test_adapters_and_tenants_share_nothing() -> None:
    """A shared hash would tell one tenant, by its speed, what another has asked."""
    tokens = blocks("a", "b")
    chains = [chain(tokens), chain(tokens, adapter="l"), chain(tokens, salt="t")]
    assert len({found for one in chains for found in one}) == 2 * len(chains)


PATHS = st.lists(st.tuples(st.integers(0, 4), st.text("abc", min_size=1, max_size=9)), max_size=25)


def walk(sent: list[tuple[int, str]], asked: str) -> dict[int, int]:
    """How much of `asked` each replica was sent, the slow way."""
    held: dict[int, int] = {}
    for replica, letters in sent:
        length = 0
        while length < min(len(letters), len(asked)) and letters[length] == asked[length]:
            length += 1
        if length:
            held[replica] = max(held.get(replica, 0), length)
    return held


@settings(deadline=None)
@given(sent=PATHS, asked=st.text("abc", max_size=9))
def test_a_match_is_what_a_walk_along_the_chain_finds(sent: list[tuple[int, str]], asked: str) -> None:
    index = PrefixIndex()
    for replica, letters in sent:
        index.add(1 << replica, chain(blocks(*letters)))
    found = index.match(chain(blocks(*asked)))
    assert {replica: length for length, held in found for replica in range(5) if held >> replica & 1} == walk(sent, asked)
    assert [length for length, _ in found] == sorted({length for length, _ in found}, reverse=True)


@settings(deadline=None)
@given(sent=PATHS, max_blocks=st.integers(1, 12))
def test_a_replica_keeps_its_latest_blocks_and_never_more(sent: list[tuple[int, str]], max_blocks: int) -> None:
    index = PrefixIndex(max_blocks)
    for replica, letters in sent:
        index.add(1 << replica, chain(blocks(*letters)))
        length = min(len(letters), max_blocks)
        assert any(found >= length and held >> replica & 1 for found, held in index.match(chain(blocks(*letters))))
        assert len(index) <= max_blocks * len({replica for replica, _ in sent})
    for replica in range(5):
        index.forget(1 << replica)
    assert len(index) == 0
    assert index._holders == {}, "nothing is left behind"
