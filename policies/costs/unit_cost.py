"""What a million tokens cost by model class: the price of an engine's GPUs over what it serves at its operating point.

    an engine's dollars an hour  =  node's price ÷ GPUs of a node × GPUs of an engine
    a request's engine seconds   =  g = P · prefill + O · (decode + C · kv)        (policies/capacity/operating_point.py)
    a request's dollars          =  engine's dollars a second × g ÷ u              u: the useful-token utilization

`g` is a sum of what its prompt and what its answer take, so dollars divide between input and output tokens in the same
proportion; a prompt token that is found in the cache costs nothing here. GPUs alone: gateways, networks and idle floors are in
`flotilla cost`, and utilization below `u` makes every figure dearer by the same factor.

Worked example, small: $21.96 ÷ 8 × 1 = $2.745 an hour; g = 0.067 s of prompt + 0.013 s of answer, u = 0.7:
1,155 tokens in cost 2.745 ÷ 3,600 × 0.067 ÷ 0.7 = $0.000073, which is $0.063 a million, and 211 out $0.067 a million.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from policies.capacity.operating_point import Mix, OperatingPoint, work_s
from policies.capacity.plan import ClassDemand

TOKENS = 1e6


@dataclass(frozen=True)
class UnitCost:
    """One class on one kind of capacity, with the figures that the result is made of."""

    model_class: str
    node_usd_per_h: float
    gpus_per_node: int
    gpus_per_engine: int
    req_per_s: float
    """Of one engine at its operating point."""
    utilization_ratio: float
    prompt_s: float
    """Engine seconds that a mean request's uncached prompt takes."""
    answer_s: float
    """Engine seconds that its answer takes."""
    mix: Mix

    @property
    def engine_usd_per_h(self) -> float:
        """Its share of a node."""
        return self.node_usd_per_h / self.gpus_per_node * self.gpus_per_engine

    @property
    def usd_per_request(self) -> float:
        """Of a mean request."""
        return self.engine_usd_per_h / 3600 / self.req_per_s

    @property
    def usd_per_mtok(self) -> float:
        """Of a million tokens, in and out together."""
        return self.usd_per_request / (self.mix.input_tokens + self.mix.output_tokens) * TOKENS

    @property
    def usd_per_mtok_input(self) -> float:
        """Of a million uncached prompt tokens; 0 where all are cached."""
        return self._part(self.prompt_s, self.mix.uncached_tokens)

    @property
    def usd_per_mtok_output(self) -> float:
        """Of a million generated tokens."""
        return self._part(self.answer_s, self.mix.output_tokens)

    def _part(self, seconds: float, tokens: float) -> float:
        share = seconds / (self.prompt_s + self.answer_s)
        return self.usd_per_request * share / tokens * TOKENS if tokens else 0.0

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "model_class": self.model_class,
            "node_usd_per_h": round(self.node_usd_per_h, 6),
            "engine_usd_per_h": round(self.engine_usd_per_h, 6),
            "req_per_s": round(self.req_per_s, 4),
            "utilization_ratio": round(self.utilization_ratio, 4),
            "usd_per_mtok": round(self.usd_per_mtok, 6),
            "usd_per_mtok_input": round(self.usd_per_mtok_input, 6),
            "usd_per_mtok_output": round(self.usd_per_mtok_output, 6),
        }

    @property
    def arithmetic(self) -> str:
        """The whole sum on one line."""
        return (
            f"{self.model_class}: ${self.node_usd_per_h:,.2f} ÷ {self.gpus_per_node} × {self.gpus_per_engine} GPUs"
            f" = ${self.engine_usd_per_h:,.3f} an hour;  ÷ 3,600 ÷ {self.req_per_s:.2f} requests a second"
            f" ({self.utilization_ratio:.0%} useful) = ${self.usd_per_request:.6f} a request;"
            f"  {self.prompt_s:.3f} s of prompt and {self.answer_s:.3f} s of answer"
            f" → {self.mix.uncached_tokens:,.0f} in, {self.mix.output_tokens:,.0f} out"
        )


def unit_cost(item: ClassDemand, point: OperatingPoint, mix: Mix, discount_ratio: float = 0.0) -> UnitCost:
    """The cost of a class at `point`; `discount_ratio` is what spot is cheaper by.

    Raises:
        ValueError: its node has no price.
    """
    if item.usd_per_node_h is None:
        raise ValueError(f"{item.name}: its node has no price")
    answer_s = mix.output_tokens * (item.profile.law.decode_s_per_sequence + mix.context_tokens * item.profile.law.kv_s_per_token)
    return UnitCost(
        model_class=item.name,
        node_usd_per_h=item.usd_per_node_h * (1 - discount_ratio),
        gpus_per_node=item.gpus_per_node,
        gpus_per_engine=item.gpus_per_engine,
        req_per_s=point.req_per_s,
        utilization_ratio=point.utilization_ratio,
        prompt_s=work_s(item.profile, mix) - answer_s,
        answer_s=answer_s,
        mix=mix,
    )
