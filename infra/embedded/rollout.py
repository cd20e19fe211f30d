"""What to start and what to stop next, so that a workload comes to its wanted revision and size without losing service.

Pure: the agent calls it again after every change and does what it says. A Deployment starts new pods before it stops ready
old ones, within `max_surge` and `max_unavailable`; a StatefulSet's pod has to be gone before its successor of the same name
starts, so it replaces one ordinal at a time, the highest first. In either, a pod that is not ready serves nobody and is
replaced without waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.embedded.desired import Workload


@dataclass(frozen=True)
class PodView:
    """What the decision needs to know of a pod."""

    name: str
    revision: str
    ready: bool
    is_stopping: bool = False


@dataclass(frozen=True)
class Steps:
    """Names of pods to start and to stop now; both empty when there is nothing to do but wait."""

    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


def decide_steps(workload: Workload, pods: Sequence[PodView]) -> Steps:
    """The next steps for `workload`, whose pods are given from the oldest to the youngest."""
    return _deployment(workload, pods) if workload.kind == "Deployment" else _stateful(workload, pods)


def _deployment(workload: Workload, pods: Sequence[PodView]) -> Steps:
    revision = workload.template.revision
    live = [pod for pod in pods if not pod.is_stopping]
    new = [pod for pod in live if pod.revision == revision]
    old = [pod for pod in live if pod.revision != revision]

    # Surplus first: those that are not ready, then the youngest.
    surplus = sorted(new, key=lambda pod: (pod.ready, -new.index(pod)))[: max(0, len(new) - workload.replicas)]
    stop = [pod for pod in old if not pod.ready] + surplus
    # Invariant: never fewer than this many ready pods by our own doing.
    spare = sum(pod.ready for pod in live if pod not in stop) - (workload.replicas - workload.max_unavailable)
    stop += [pod for pod in old if pod.ready][: max(0, spare)]

    room = workload.replicas + workload.max_surge - len(pods)  # those that are stopping still take their memory
    num_start = min(workload.replicas - (len(new) - len(surplus)), room)
    taken = {pod.name for pod in pods}
    free = (
        name
        for index in range(len(taken) + workload.replicas + 1)
        if (name := f"{workload.name}-{revision[:5]}-{index}") not in taken
    )
    return Steps(start=tuple(name for name, _ in zip(free, range(num_start), strict=False)), stop=tuple(pod.name for pod in stop))


def _stateful(workload: Workload, pods: Sequence[PodView]) -> Steps:
    by_name = {pod.name: pod for pod in pods}
    wanted = [f"{workload.name}-{ordinal}" for ordinal in range(workload.replicas)]
    surplus = [pod.name for pod in pods if pod.name not in wanted and not pod.is_stopping]
    if surplus:
        return Steps(stop=tuple(surplus))
    if any(pod.is_stopping for pod in pods):
        return Steps()
    missing = tuple(name for name in wanted if name not in by_name)
    if missing and workload.is_parallel:
        return Steps(start=missing)
    for name in wanted:
        if name in missing:
            return Steps(start=(name,))
        if not by_name[name].ready and by_name[name].revision == workload.template.revision:
            return Steps()  # the next ordinal starts, or is replaced, when this one is ready
    outdated = [by_name[name] for name in reversed(wanted) if by_name[name].revision != workload.template.revision]
    if outdated:
        return Steps(stop=(min(outdated, key=lambda pod: pod.ready).name,))
    return Steps()
