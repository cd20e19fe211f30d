"""What one engine does at a given utilization: requests a second, batch, length of a step, time to first token. A closed form.

An engine in balance generates one token of each of B sequences a step, and computes the prompts of those that come in. With P
uncached prompt tokens and O output tokens a request, and C tokens of context to read for each sequence, a step of
`policies.capacity.step_law` takes

    T = base + B · (P/O · prefill + decode + C · kv)          and the engine serves        λ = B / (O · T)  requests a second.

Putting one into the other gives, with g = P · prefill + O · (decode + C · kv), the engine's own seconds for a request,

    T = base / (1 - λ · g)

So λ · g is the share of time spent on tokens and not on `base`: the *useful-token utilization*. It is what "GPU utilization above
70 %" can mean; the figure that nvidia-smi shows is near 100 % whenever anything runs. At 70 %, λ = 0.7 / g and T = base / 0.3.

A first token waits half a step on average for the one that runs, and then for its own, which holds its prompt besides:

    TTFT ≈ T/2 + T + uncached · prefill      (one step for each `max_num_batched_tokens` of a longer prompt)

Worked example, Qwen2.5-7B on one A100-40G, 1,155 tokens in of which none is cached, 211 out: g = 0.0672 + 0.0129 = 0.080 s;
at 70 %: λ = 8.7 a second, T = 38 ms, B = 71, TTFT = 19 + 38 + 67 = 125 ms.

What it leaves out: arrivals that clump (routing by load over many engines takes most of that away), preemption, and the first
steps of an empty engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from policies.capacity.step_law import Profile

BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Mix:
    """A mean request."""

    input_tokens: float = 1155.0
    """Mean of the Azure 2023 conversation trace (Azure/AzurePublicDataset), as is the next."""
    output_tokens: float = 211.0
    cached_ratio: float = 0.0
    """Share of input tokens found in the prefix cache."""

    @property
    def uncached_tokens(self) -> float:
        """Prompt tokens that must be computed."""
        return self.input_tokens * (1 - self.cached_ratio)

    @property
    def context_tokens(self) -> float:
        """Tokens that a sequence reads in a step, on average over its life: its prompt and half of its answer."""
        return self.input_tokens + self.output_tokens / 2


@dataclass(frozen=True)
class OperatingPoint:
    """One engine at work."""

    utilization_ratio: float
    """Useful-token utilization: below what was asked for where the KV cache or the batch is full first."""
    req_per_s: float
    batch: float
    step_s: float
    ttft_p50_s: float
    """Of a mean request."""
    kv_utilization_ratio: float
    bound_by: str
    """What it is that stops it: `utilization`, `batch` or `kv cache`."""


def work_s(profile: Profile, mix: Mix) -> float:
    """The engine's own seconds for a request: `g`."""
    law = profile.law
    per_token_s = law.decode_s_per_sequence + mix.context_tokens * law.kv_s_per_token
    return mix.uncached_tokens * law.prefill_s_per_token + mix.output_tokens * per_token_s


def operating_point(
    profile: Profile, mix: Mix, utilization_ratio: float, max_batch: int, max_kv_ratio: float = 0.9
) -> OperatingPoint:
    """The engine at `utilization_ratio`, or as near as `max_batch` sequences and `max_kv_ratio` of its KV cache allow.

    Raises:
        ValueError: the utilization is not between 0 and 1, both out.
    """
    if not 0 < utilization_ratio < 1:
        raise ValueError(f"utilization_ratio is {utilization_ratio}, must lie between 0 and 1: at 1 a step never ends")
    law, work = profile.law, work_s(profile, mix)
    kv_tokens = profile.num_blocks * BLOCK_TOKENS * max_kv_ratio
    by_kv = kv_tokens / mix.context_tokens
    limits = {
        "utilization": _batch_at(utilization_ratio, law.base_s, work, mix),
        "batch": float(max_batch),
        "kv cache": by_kv,
    }
    bound_by = min(limits, key=lambda name: limits[name])
    batch = limits[bound_by]
    step_s = law.base_s + batch * work / mix.output_tokens
    req_per_s = batch / (mix.output_tokens * step_s)
    return OperatingPoint(
        utilization_ratio=req_per_s * work,
        req_per_s=req_per_s,
        batch=batch,
        step_s=step_s,
        ttft_p50_s=ttft_s(profile, step_s, mix.uncached_tokens),
        kv_utilization_ratio=batch * mix.context_tokens / (profile.num_blocks * BLOCK_TOKENS),
        bound_by=bound_by,
    )


def ttft_s(profile: Profile, step_s: float, uncached_tokens: float, max_num_batched_tokens: int = 8192) -> float:
    """Time to first token of a prompt with so many uncached tokens, among steps of `step_s`."""
    num_steps = max(1, math.ceil(uncached_tokens / max_num_batched_tokens))
    return step_s / 2 + num_steps * step_s + uncached_tokens * profile.law.prefill_s_per_token


def max_uncached_tokens(profile: Profile, step_s: float, ttft_limit_s: float) -> int:
    """The longest uncached prompt whose first token comes within `ttft_limit_s`; 0 where none does."""
    left_s = ttft_limit_s - 1.5 * step_s
    return max(0, int(left_s / profile.law.prefill_s_per_token))


def _batch_at(utilization_ratio: float, base_s: float, work: float, mix: Mix) -> float:
    """B = λ · O · T with λ = u / g and T = base / (1 - u)."""
    return utilization_ratio / work * mix.output_tokens * base_s / (1 - utilization_ratio)
