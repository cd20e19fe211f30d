"""Runs the Pulumi program with no CLI, no cloud and no credentials, and returns what it declares.

The program is the one that `pulumi up` runs, `infra/__main__.py`, configured by the same stack files; only the engine's side is
ours (`RecordingMonitor`). Each stack runs in a thread, an event loop and a context of its own, so nothing leaks into the next or
into the caller, who may be inside an event loop. Requests run on the program's loop, one at a time: no race, and every run of
the same program yields the same graph.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from infra import config
from infra.documents import raise_all
from infra.embedded.graph import Graph
from infra.errors import ConfigError
from infra.naming import PROJECT, StackName, parse_stack
from infra.stack_config import LAYER_CONFIGS

P = ParamSpec("P")
T = TypeVar("T")


def environment_stacks(environment: str, *, stacks_dir: Path = config.STACKS_DIR) -> list[str]:
    """Names of every stack of `environment`, each after those it refers to.

    Raises:
        ConfigError: the catalog cannot be read, does not fit, or knows no such environment.
    """
    regions = config.environment_of(config.load_catalog(stacks_dir), environment).regions
    stacks = [StackName(environment, "foundation")]
    stacks += [StackName(environment, "cluster", region) for region in regions]
    stacks += [StackName(environment, "serving", region) for region in regions]
    stacks += [StackName(environment, "edge")]
    return [str(stack) for stack in stacks]


def every_stack(*, stacks_dir: Path = config.STACKS_DIR) -> list[str]:
    """Names of every stack of every environment of the catalog.

    Raises:
        ConfigError: the catalog cannot be read or does not fit.
    """
    environments = config.load_catalog(stacks_dir).environments
    return [stack for environment in sorted(environments) for stack in environment_stacks(environment, stacks_dir=stacks_dir)]


def record(
    stacks: Sequence[str],
    *,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    stacks_dir: Path = config.STACKS_DIR,
) -> dict[str, Graph]:
    """The graph of each of `stacks`, by name, in the order they were recorded.

    Stacks that these refer to are recorded too, before them, and are part of the answer. `overrides` is configuration by stack
    name, laid over that stack's file: `{"local.serving.us-east-2": {"gateway": {"replicas": 2}}}`.

    Raises:
        ConfigError: a stack's name, the catalog or a stack file is wrong; every fault is named.
        Exception: whatever the program raises, as it is.
    """
    from infra.__main__ import build

    wanted = [parse_stack(stack) for stack in stacks]
    try:
        config.load_catalog(stacks_dir)
    except ConfigError:
        # Without a catalog nobody knows what these stacks refer to; their own files are checked all the same.
        _configured(wanted, overrides or {}, stacks_dir)
        raise
    graphs: dict[str, Graph] = {}
    for stack, values in _configured(_with_references(wanted, stacks_dir), overrides or {}, stacks_dir).items():
        graphs[str(stack)] = record_program(partial(build, str(stack), stacks_dir), str(stack), values=values, graphs=graphs)
    return graphs


def _with_references(wanted: Sequence[StackName], stacks_dir: Path) -> list[StackName]:
    """`wanted` and all that they refer to, in the environment's order."""
    ordered: list[StackName] = []
    for environment in sorted({stack.environment for stack in wanted}):
        known = [parse_stack(stack) for stack in environment_stacks(environment, stacks_dir=stacks_dir)]
        for stack in wanted:
            if stack.environment == environment and stack not in known:
                raise ConfigError(
                    f"{stack}: no such stack; {environment} has {', '.join(map(str, known))}",
                    f"add the region to `environments.{environment}.regions` of {config.CATALOG_NAME}, or correct the name",
                )
        needed = {earlier for stack in wanted if stack.environment == environment for earlier in (*stack.upstream(known), stack)}
        ordered += [stack for stack in known if stack in needed]
    return ordered


def _configured(
    stacks: Sequence[StackName], overrides: Mapping[str, Mapping[str, Any]], stacks_dir: Path
) -> dict[StackName, dict[str, Any]]:
    """Configuration of each stack, checked for all before any runs, so that one look shows every fault."""
    configured: dict[StackName, dict[str, Any]] = {}
    faults: dict[str, None] = {}
    for stack in stacks:
        try:
            values = config.read_stack_file(stack, stacks_dir)
            for key, value in overrides.get(str(stack), {}).items():
                values[key] = overlaid(values.get(key), value)
            config.load(stack, LAYER_CONFIGS[stack.layer], values, stacks_dir)
            configured[stack] = values
        except ConfigError as error:
            faults.update(dict.fromkeys(error.message.splitlines()))
    raise_all(faults)
    return configured


def overlaid(value: Any, override: Any) -> Any:
    """`value` with `override` laid over it: mappings key by key, anything else whole."""
    if isinstance(value, Mapping) and isinstance(override, Mapping):
        return {**value, **{key: overlaid(value.get(key), item) for key, item in override.items()}}
    return override


def record_program(
    program: Callable[[], None],
    stack: str,
    *,
    values: Mapping[str, Any] | None = None,
    graphs: Mapping[str, Graph] | None = None,
) -> Graph:
    """What `program` declares as the stack called `stack`, with configuration `values` and the stacks `graphs` to refer to.

    Raises:
        Exception: whatever the program raises, as it is.
    """
    return _alone(partial(_run, program, stack, values or {}, graphs or {}))


def _run(program: Callable[[], None], stack: str, values: Mapping[str, Any], graphs: Mapping[str, Graph]) -> Graph:
    """Runs `program` in this thread, which the caller has set apart."""
    from pulumi.runtime import set_all_config
    from pulumi.runtime.mocks import MockEngine
    from pulumi.runtime.settings import Settings, configure
    from pulumi.runtime.stack import run_in_stack

    from infra.embedded.monitor import RecordingMonitor

    monitor = RecordingMonitor(PROJECT, stack, graphs)
    configure(Settings(PROJECT, stack, monitor=monitor, engine=MockEngine(None), dry_run=False, organization="organization"))
    set_all_config({f"{PROJECT}:{key}": value if isinstance(value, str) else json.dumps(value) for key, value in values.items()})
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        loop.set_default_executor(_InlineExecutor())
        # One fault fails every output that depends on it; the first is raised, and the echoes would only bury it.
        loop.set_exception_handler(lambda _loop, _context: None)
        runner.run(run_in_stack(program))
    return monitor.graph()


def _alone(function: Callable[[], T]) -> T:
    """Calls `function` in a thread with a fresh context."""
    with ThreadPoolExecutor(1, thread_name_prefix="recorder") as executor:
        return executor.submit(contextvars.Context().run, function).result()


class _InlineExecutor(ThreadPoolExecutor):
    """Runs each call at once, where it is submitted: the monitor never waits, so it needs no thread and can have no race."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # delivered to whoever awaits the call, as a pool would
            future.set_exception(error)
        return future
