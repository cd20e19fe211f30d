"""The Pulumi program: the stack's name says which layer to build."""

from __future__ import annotations

from pathlib import Path

from infra import config, stack_config
from infra.naming import parse_stack


def build(stack_name: str, stacks_dir: Path = config.STACKS_DIR) -> None:
    """Declares every resource of the stack called `stack_name`.

    Raises:
        ConfigError: its name, its file or the catalog is wrong; no resource has been declared then.
    """
    stack = parse_stack(stack_name)
    values = config.project_values()
    match stack.layer:
        case "foundation":
            from infra.layers import foundation

            foundation.build(config.load(stack, stack_config.FoundationConfig, values, stacks_dir))
        case "cluster":
            from infra.layers import cluster

            cluster.build(config.load(stack, stack_config.ClusterConfig, values, stacks_dir))
        case "serving":
            from infra.layers import serving

            serving.build(config.load(stack, stack_config.ServingConfig, values, stacks_dir))
        case "edge":
            from infra.layers import edge

            edge.build(config.load(stack, stack_config.EdgeConfig, values, stacks_dir))


if __name__ == "__main__":
    import pulumi

    build(pulumi.get_stack())
