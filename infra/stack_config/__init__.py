"""What each layer's stack file may say: `config` of `stacks/Pulumi.<stack>.yaml`, below the namespace `flotilla:`, as types.

One module a layer. Defaults are those of production. Rules that need another file too are in `infra.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from infra.naming import Layer
from infra.stack_config.cluster import ClusterConfig
from infra.stack_config.edge import EdgeConfig
from infra.stack_config.foundation import FoundationConfig
from infra.stack_config.serving import ServingConfig

__all__ = ["LAYER_CONFIGS", "ClusterConfig", "EdgeConfig", "FoundationConfig", "LayerConfig", "LayerT", "ServingConfig"]

LayerConfig = FoundationConfig | ClusterConfig | ServingConfig | EdgeConfig
LayerT = TypeVar("LayerT", bound=LayerConfig)
LAYER_CONFIGS: Mapping[Layer, type[LayerConfig]] = {
    "foundation": FoundationConfig,
    "cluster": ClusterConfig,
    "serving": ServingConfig,
    "edge": EdgeConfig,
}
