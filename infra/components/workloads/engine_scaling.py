"""By what the fleets of a model class grow: the requests that its engines hold, running and waiting. Pure.

Base and overflow stand behind one Service and share every request, so their work is one sum. Base grows with all of it; once it
is at its maximum, overflow takes what is left. It shrinks in the reverse order by the same arithmetic:

    work 500, 32 an engine, base at most 12:  base ceil(500 / 32) = 16, cut to 12;  overflow ceil((500 - 12 × 32) / 32) = 4

Batch engines are not scaled, since nothing measures how much batch work waits: they begin at 0, and whoever runs batches says how
many there are, up to `batch_max_replicas`.
"""

from __future__ import annotations

from infra.catalog import Model
from infra.components.workloads.engine_fleet import Size
from infra.components.workloads.fleets import INTERACTIVE, Fleet, FleetKind
from infra.components.workloads.scaled_object import Trigger
from infra.stack_config.serving import EngineConfig
from policies.autoscaling.rules import TARGET_SHARE
from serving.settings import ModelClass

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
"""vLLM's own series. `model_name` is the class, by `--served-model-name`; `fleet` is the pod's label, by the scrape."""


def target_in_flight(model: Model, config: EngineConfig) -> int:
    """Requests that one engine should hold: 32 where it takes 256 at once."""
    if config.target_in_flight is not None:
        return config.target_in_flight
    at_once = int(model.engine_args.get("max_num_seqs", model.max_in_flight_per_engine))
    return max(1, round(at_once * TARGET_SHARE))


def fleet_sizes(model_class: ModelClass, model: Model, config: EngineConfig) -> dict[Fleet, Size]:
    """The fleets of a class, and how many engines each has. A fleet that may have none is not there."""
    target = target_in_flight(model, config)
    overflow = overflow_trigger(model_class, target, config.max_replicas)
    sizes = {
        FleetKind.BASE: Size(config.min_replicas, config.max_replicas, base_trigger(model_class, target)),
        FleetKind.OVERFLOW: Size(0, config.overflow_max_replicas, overflow),
        FleetKind.BATCH: Size(0, config.batch_max_replicas, None),
    }
    return {Fleet(model_class, kind): size for kind, size in sizes.items() if size.maximum}


def base_trigger(model_class: ModelClass, target: int) -> Trigger:
    """All the work of the class."""
    return Trigger("work", _work(model_class), target)


def overflow_trigger(model_class: ModelClass, target: int, max_base_replicas: int) -> Trigger:
    """What is left when base has as many engines as it may."""
    return Trigger("work-beyond-base", f"clamp_min({_work(model_class)} - {max_base_replicas * target}, 0)", target)


def _work(model_class: ModelClass) -> str:
    chosen = f'model_name="{model_class}",fleet=~"{"|".join(INTERACTIVE)}"'
    return f"sum({RUNNING}{{{chosen}}}) + sum({WAITING}{{{chosen}}})"
