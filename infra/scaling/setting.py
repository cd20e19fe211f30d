"""What a simulation takes from the catalog, a region's stack and the price file: an engine on its GPUs, how it starts, what it
costs, how many there may be, and the policy that decides it.
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.autoscaling.policy import ScalingPolicy
from policies.autoscaling.scenario import Bounds, EngineModel
from policies.capacity.operating_point import Mix, operating_point
from policies.cold_start import IMAGE_GB, NUM_WEIGHT_FILES, ColdStart, model_cold_start

PEAK_UTILIZATION_RATIO, PEAK_SHARE = 0.75, 0.6


@dataclass(frozen=True)
class Setting:
    """A class in the home region of an environment, as it is simulated."""

    model_class: str
    engine: EngineModel
    cold_start: ColdStart
    node_s: float
    bounds: Bounds
    policy: ScalingPolicy
    """What is deployed."""

    @property
    def peak_req_per_s(self) -> float:
        """A peak to simulate where none is given: what 60 % of all engines carry at 75 %."""
        point = operating_point(self.engine.profile, Mix(), PEAK_UTILIZATION_RATIO, self.engine.max_batch)
        return self.bounds.maximum * PEAK_SHARE * point.req_per_s


def setting(env: str, model_class: str, node_s: float, spot_losses_per_h: float = 0.0) -> Setting:
    """The class's engine on its GPUs, with the cold start that A100 nodes are modelled with, behind `node_s` for the node.

    Raises:
        UserError: the class is not served there, or runs on no A100.
    """
    # Pulumi's SDK takes a second to import.
    from infra import config
    from infra.capacity.commands import class_demands
    from infra.components.workloads.engine_scaling import scaling_limits, scaling_policy
    from infra.costs.report import load_prices
    from infra.naming import StackName
    from infra.stack_config import ServingConfig

    catalog = config.load_catalog()
    environment = config.environment_of(catalog, env)
    (demand,) = class_demands(catalog, env, {model_class: 1.0})
    key = next(key for key in environment.models if key == model_class)
    model = catalog.models[environment.models[key]]
    stack = StackName(env, "serving", environment.home_region)
    engines = config.load(stack, ServingConfig, config.read_stack_file(stack)).config.engines[key]
    cold = model_cold_start(IMAGE_GB, model.weights_gib, NUM_WEIGHT_FILES, demand.gpus_per_engine)
    limits = scaling_limits(engines)
    return Setting(
        model_class,
        EngineModel(
            profile=demand.profile,
            max_batch=demand.max_batch,
            cold_start_s=node_s + cold.total_s,
            gpus=demand.gpus_per_engine,
            usd_per_h=(demand.usd_per_node_h or 0.0) / demand.gpus_per_node * demand.gpus_per_engine,
        ),
        cold,
        node_s,
        Bounds(
            minimum=limits.floor,
            maximum=limits.maximum,
            spot=limits.max_overflow,
            spot_losses_per_h=spot_losses_per_h,
            spot_discount_ratio=load_prices().spot.discount_ratio,
        ),
        scaling_policy(key, model, catalog.classes[key], engines),
    )
