"""What a simulation takes from the catalog and the price file: a class's engine on its GPUs, how it starts, what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from policies.autoscaling.scenario import EngineModel
from policies.cold_start import IMAGE_GB, NUM_WEIGHT_FILES, ColdStart, model_cold_start


@dataclass(frozen=True)
class Setting:
    """A class of an environment, as it is simulated."""

    engine: EngineModel
    cold_start: ColdStart
    node_s: float
    spot_discount_ratio: float


def setting(env: str, model_class: str, node_s: float) -> Setting:
    """The class's engine on its GPUs, with the cold start that A100 nodes are modelled with, behind `node_s` for the node.

    Raises:
        UserError: the class is not served there, or runs on no A100.
    """
    from infra import config
    from infra.capacity.commands import class_demands
    from infra.costs.report import load_prices

    catalog = config.load_catalog()
    config.environment_of(catalog, env)
    (demand,) = class_demands(catalog, env, {model_class: 1.0})
    model = next(catalog.models[name] for key, name in catalog.environments[env].models.items() if key == model_class)
    cold = model_cold_start(IMAGE_GB, model.weights_gib, NUM_WEIGHT_FILES, demand.gpus_per_engine)
    engine = EngineModel(
        profile=demand.profile,
        max_batch=demand.max_batch,
        cold_start_s=node_s + cold.total_s,
        gpus=demand.gpus_per_engine,
        usd_per_h=(demand.usd_per_node_h or 0.0) / demand.gpus_per_node * demand.gpus_per_engine,
    )
    return Setting(engine, cold, node_s, load_prices().spot.discount_ratio)
