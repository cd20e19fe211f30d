"""How long requests are: a sample that stands for all of them, and the buckets of uncached prompt tokens that reports use.

A mean request hides what decides a first token. Of the Azure conversations half have fewer than 1,000 tokens and every seventh
has more than 2,048, and those make whoever shares a step with them wait.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from policies.capacity.operating_point import Mix

BUCKETS_TOKENS = (128, 512, 1024, 2048, 8192, 32768)
"""Upper bounds of uncached prompt tokens; what is longer counts in the last."""


class Length(NamedTuple):
    """One request of a sample."""

    input_tokens: int
    output_tokens: int


AZURE_2023_CONVERSATIONS: tuple[Length, ...] = tuple(
    Length(*pair)
    for pair in (
        *((111, 123), (197, 180), (258, 93), (379, 76), (392, 96), (400, 104), (408, 108), (452, 105), (907, 251), (1004, 399)),
        *((1033, 409), (1058, 416), (1083, 415), (1112, 409), (1155, 393), (1268, 268), (1497, 136), (2304, 94), (3791, 76)),
        (4281, 72),
    )
)
"""Means of each twentieth of the Azure 2023 conversation trace, by prompt length: 1,155 tokens in and 211 out on average
(Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv, CC-BY 4.0; Patel et al., Splitwise, ISCA 2024; read 2026-11-24)."""


def mix_of(lengths: Sequence[Length], cached_ratio: float = 0.0) -> Mix:
    """The mean request of a sample, `cached_ratio` of whose prompts is in the prefix cache."""
    number = len(lengths)
    return Mix(
        sum(item.input_tokens for item in lengths) / number, sum(item.output_tokens for item in lengths) / number, cached_ratio
    )


def bucket_of(uncached_tokens: float) -> int:
    """The bucket's upper bound: 129 and 512 are in 512."""
    return BUCKETS_TOKENS[min(bisect_left(BUCKETS_TOKENS, uncached_tokens), len(BUCKETS_TOKENS) - 1)]
