"""The tags of every resource that can carry them: who made it, where it belongs, what it is. Bills and orphans go by them."""

from __future__ import annotations

from infra.naming import PROJECT, StackName

REQUIRED = ("project", "environment", "stack", "component")


def tags_of(stack: StackName, component: str, **further: str) -> dict[str, str]:
    """Tags for a resource of `component`; `further` adds to them, such as `Name` for the console."""
    return {
        "project": PROJECT,
        "environment": stack.environment,
        "stack": str(stack),
        "component": component,
        **further,
    }
