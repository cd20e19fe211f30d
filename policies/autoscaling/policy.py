"""What a model class wants of its scaling, as data: one object for the leader gateway, the ScaledObject, `flotilla up` and the
simulator.

Times are seconds. `shortened` divides every one of them, for drills that show in a minute what takes an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Ratio = Annotated[float, Field(gt=0, le=1)]


class ScalingPolicy(BaseModel):
    """Growing waits for nothing; shrinking follows a quarter of an hour without need, since an engine takes minutes to come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target_in_flight: Annotated[float, Field(gt=0, le=4096)]
    """Requests that one engine should hold, running and waiting."""
    target_kv_ratio: Ratio = 0.8
    """Of its KV memory; beyond some 0.9 vLLM preempts requests, which does their prompts again."""
    target_tokens_per_s: Annotated[float, Field(gt=0)] | None = None
    """Tokens that one engine should compute a second, prompts and answers; None leaves this signal out."""
    ttft_p99_target_s: Seconds = 1.0
    """First tokens later than this are a need; see `busy_ratio`."""
    ttft_promise_s: Seconds = 0.2
    """A request is served well when its first token comes within this."""
    promise_ratio: Ratio = 0.95
    """Of requests that should be served well."""
    busy_ratio: Ratio = 0.5
    """Latency asks for more engines only where each holds this share of its target: what is slow while engines have little to
    do (a prompt of 30,000 tokens) does not get faster by another engine."""

    stable_window_s: Seconds = 60
    """What is needed is a mean over this."""
    panic_window_s: Seconds = 15
    """And over this, where that asks for much more."""
    panic_ratio: Annotated[float, Field(ge=1, le=10)] = 1.5
    """In a panic the need of the short window, divided by this, is not held to `step_up`."""
    max_growth_ratio: Annotated[float, Field(ge=1, le=10)] = 2.0
    """Not even a panic makes more of them than this in an `up_period_s`: it bounds what a wrong number can buy."""
    step_up: Annotated[int, Field(ge=1, le=100)] = 2
    up_period_s: Seconds = 60
    """`step_up` engines more in this time."""
    step_down: Annotated[int, Field(ge=1, le=100)] = 1
    down_period_s: Seconds = 300
    """`step_down` engines less in this time."""
    down_window_s: Seconds = 900
    """A size goes when nothing within this has needed it."""
    shrink_margin_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Room that a smaller size must still have above the need."""
    lead_time_s: Annotated[float, Field(ge=0, le=7200)] = 0
    """A cold start: the need is foreseen for its end, by the trend of `trend_window_s`. 0 foresees nothing."""
    trend_window_s: Seconds = 300
    stale_after_s: Seconds = 45
    """Samples older than this say nothing."""
    min_heard_ratio: Ratio = 0.8
    """Where fewer of the ready engines were heard, their sum may tell of need, never of none."""

    @property
    def horizon_s(self) -> float:
        """What is older decides nothing."""
        return max(self.down_window_s, self.down_period_s, self.up_period_s, self.trend_window_s, self.stable_window_s)

    def shortened(self, factor: float) -> Self:
        """The same policy in a world that runs `factor` times as fast. Promises of latency are no times of scaling, and stay."""
        names = [name for name in type(self).model_fields if name.endswith(("_window_s", "_period_s"))]
        names += ["lead_time_s", "stale_after_s"]
        return self.model_copy(update={name: getattr(self, name) / factor for name in names})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.panic_window_s > self.stable_window_s:
            raise ValueError(
                f"`panic_window_s` is {self.panic_window_s:g}, must be at most `stable_window_s` ({self.stable_window_s:g})."
                " Lower it."
            )
        return self


class Limits(BaseModel):
    """How many engines a class may have in a region, by what they run on: base on reserved nodes and then on on-demand ones,
    overflow on spot. So the order of the pools is that of this arithmetic: overflow begins where base is at its most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    floor: Annotated[int, Field(ge=0, le=1000)]
    """Always there: what is committed with one region lost, and warm spares. On base alone."""
    max_base: Annotated[int, Field(ge=1, le=1000)]
    max_overflow: Annotated[int, Field(ge=0, le=1000)] = 0

    @property
    def maximum(self) -> int:
        """Base and overflow at their most."""
        return self.max_base + self.max_overflow

    @property
    def is_elastic(self) -> bool:
        """Whether there is anything to decide."""
        return self.maximum > self.floor

    def placed(self, replicas: int) -> tuple[int, int]:
        """`replicas` as base and overflow. 70 of at most 60 and 24 are 60 and 10."""
        base = min(replicas, self.max_base)
        return base, min(replicas - base, self.max_overflow)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.floor > self.max_base:
            raise ValueError(f"`floor` is {self.floor}, must be at most `max_base` ({self.max_base}). Lower it.")
        return self


def _known(values: dict[str, float | None]) -> dict[str, float | None]:
    ScalingPolicy.model_validate({"target_in_flight": 1, **values})
    return values


PolicyValues = Annotated[dict[str, float | None], AfterValidator(_known)]
"""Some fields of a policy, as a catalog or a stack file has them; the others follow from the model, or stay as they are."""


def policy_of(*layers: Mapping[str, float | None]) -> ScalingPolicy:
    """The policy of these values, the later ones over the earlier."""
    return ScalingPolicy.model_validate({name: value for layer in layers for name, value in layer.items()})
