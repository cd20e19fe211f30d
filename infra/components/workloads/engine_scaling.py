"""How the fleets of a model class are sized: the policy, and the ScaledObjects that obey what is decided by it. Pure.

The leader among a region's gateways decides (`policies.autoscaling.decide`) and exports `flotilla_desired_replicas`; a HPA cannot
decide it, as it knows neither a panic nor a cold start ahead. So each fleet's ScaledObject has two triggers:

| trigger | leader speaks | leader is silent, Prometheus answers | Prometheus is silent |
|---|---|---|---|
| `desired` | the size, obeyed to the engine | no answer: KEDA keeps the size | no answer: KEDA keeps the size |
| `work-unless-desired` | 0 | requests at engines and in queues, over a target for each | no answer: KEDA keeps the size |

The larger wins, and while a trigger has no answer nothing shrinks: without a leader fleets grow by their queues and never shrink.

Base and overflow stand behind one Service and share every request, so their work is one sum; overflow takes what base at its
maximum cannot:

    work 500, 32 an engine, base at most 12:  base ceil(500 / 32) = 16, cut to 12;  overflow ceil((500 - 12 × 32) / 32) = 4

Batch engines are not scaled, since nothing measures how much batch work waits: they begin at 0, and whoever runs batches says how
many there are, up to `batch_max_replicas`.
"""

from __future__ import annotations

from infra.catalog import ClassFleet, Model
from infra.components.workloads.engine_fleet import Size
from infra.components.workloads.fleets import INTERACTIVE, Fleet, FleetKind
from infra.components.workloads.scaled_object import Trigger
from infra.stack_config.serving import EngineConfig
from policies.autoscaling.pace import Pace
from policies.autoscaling.policy import Limits, ScalingPolicy, policy_of
from policies.autoscaling.rules import TARGET_SHARE
from policies.capacity.operating_point import Mix, operating_point
from policies.capacity.step_law import PROFILES
from policies.cold_start import IMAGE_GB, NUM_WEIGHT_FILES, model_cold_start
from serving import series
from serving.settings import ModelClass

TARGET_UTILIZATION_RATIO = 0.75
"""Useful-token utilization of an engine at its target. At the peak of a day 0.70 is left of it: engines are whole, and a size
that was needed stays for a while; P50 of first tokens is below 200 ms for every class (`flotilla simulate --peak`)."""


def scaling_policy(model_class: ModelClass, model: Model, fleet: ClassFleet, config: EngineConfig) -> ScalingPolicy:
    """The policy of a class in a region: what follows from its model, under what the catalog and the stack file say.

    On A100s an engine should hold what makes it `TARGET_UTILIZATION_RATIO` useful, and compute as many tokens a second;
    elsewhere nobody knows its steps, and it should hold an eighth of what it takes at once. Its lead time is the cold start that
    its GPUs are modelled with, and none where it has no GPU.
    """
    at_once = int(model.engine_args.get("max_num_seqs", model.max_in_flight_per_engine))
    follows: dict[str, float | None] = {"target_in_flight": max(1, round(at_once * TARGET_SHARE))}
    if model.gpus and model.gpus.kind.startswith("a100"):
        mix = Mix()
        point = operating_point(PROFILES[f"a100-{model_class}"], mix, TARGET_UTILIZATION_RATIO, at_once)
        follows["target_in_flight"] = round(point.batch)
        follows["target_tokens_per_s"] = round(point.req_per_s * (mix.input_tokens + mix.output_tokens))
    if model.gpus:
        cold = model_cold_start(IMAGE_GB, model.weights_gib, NUM_WEIGHT_FILES, model.gpus.count)
        follows["lead_time_s"] = round(cold.total_s)
    return policy_of(follows, fleet.scaling, config.scaling)


def scaling_limits(config: EngineConfig) -> Limits:
    """How many engines a class may have in a region."""
    return Limits(floor=config.min_replicas, max_base=config.max_replicas, max_overflow=config.overflow_max_replicas)


def fleet_sizes(model_class: ModelClass, config: EngineConfig, policy: ScalingPolicy) -> dict[Fleet, Size]:
    """The fleets of a class, and how many engines each has. A fleet that may have none is not there."""
    pace = Pace.obeying(policy)
    sizes = {
        FleetKind.BASE: Size(config.min_replicas, config.max_replicas, base_triggers(model_class, policy), pace),
        FleetKind.OVERFLOW: Size(
            0, config.overflow_max_replicas, overflow_triggers(model_class, policy, config.max_replicas), pace
        ),
        FleetKind.BATCH: Size(0, config.batch_max_replicas),
    }
    return {Fleet(model_class, kind): size for kind, size in sizes.items() if size.maximum}


def base_triggers(model_class: ModelClass, policy: ScalingPolicy) -> tuple[Trigger, ...]:
    """What is decided for base; all the work of the class, where nothing is."""
    return _triggers(model_class, FleetKind.BASE, _work(model_class), policy)


def overflow_triggers(model_class: ModelClass, policy: ScalingPolicy, max_base: int) -> tuple[Trigger, ...]:
    """What is decided for overflow; the work that is left when base has as many engines as it may, where nothing is."""
    beyond = f"clamp_min({_work(model_class)} - {max_base * policy.target_in_flight:g}, 0)"
    return _triggers(model_class, FleetKind.OVERFLOW, beyond, policy)


def _triggers(model_class: ModelClass, kind: FleetKind, work: str, policy: ScalingPolicy) -> tuple[Trigger, ...]:
    # Two may lead for a moment; the larger number is the one that shrinks nothing.
    desired = f'max({series.DESIRED_REPLICAS.name}{{model_class="{model_class}",fleet="{kind}"}})'
    # Without labels on either side they pair: absent() of an aggregation has none.
    unless_desired = f"({work}) * (absent({desired}) or vector(0))"
    return Trigger("desired", desired, 1), Trigger("work-unless-desired", unless_desired, policy.target_in_flight)


def _work(model_class: ModelClass) -> str:
    """PromQL. Gateways let engines have no more than they take at once, so what waits is mostly in gateways."""
    chosen = f'model_name="{model_class}",fleet=~"{"|".join(INTERACTIVE)}"'
    queued = f'sum({series.QUEUE_WAITING.name}{{model="{model_class}"}}) or vector(0)'
    return f"sum({series.VLLM_RUNNING}{{{chosen}}}) + sum({series.VLLM_WAITING}{{{chosen}}}) + ({queued})"
