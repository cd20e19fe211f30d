"""What is started and stopped next, as tables. A pod is written `name:revision[!]`: `!` means ready, `~` stopping."""

from __future__ import annotations

import pytest
from embedded_support import workload
from hypothesis import given
from hypothesis import strategies as st

from infra.embedded.desired import Workload
from infra.embedded.rollout import PodView, Steps, decide_steps

NEW = workload().template.revision
FIRST, SECOND, THIRD = (f"web-{NEW[:5]}-{index}" for index in range(3))


def pods(*written: str) -> list[PodView]:
    views = []
    for text in written:
        name, _, rest = text.partition(":")
        revision = NEW if rest.startswith("new") else "old"
        views.append(PodView(name, revision, rest.endswith("!"), rest.endswith("~")))
    return views


DEPLOYMENT = [
    # replicas, surge, unavailable, pods, starts, stops
    (2, 1, 0, [], [FIRST, SECOND], []),
    (2, 1, 0, [f"{FIRST}:new!", f"{SECOND}:new!"], [], []),
    (2, 1, 0, ["a:old!", "b:old!"], [FIRST], []),  # 2 + 1 - 2 = 1 may start
    (2, 1, 0, ["a:old!", "b:old!", f"{FIRST}:new"], [], []),  # not ready yet: nothing may stop
    (2, 1, 0, ["a:old!", "b:old!", f"{FIRST}:new!"], [], ["a"]),  # 3 ready - 2 wanted = 1 may stop
    (2, 1, 0, ["a:old~", "b:old!", f"{FIRST}:new!"], [], []),  # what stops still has its memory
    (2, 1, 0, ["b:old!", f"{FIRST}:new!"], [SECOND], []),
    (1, 1, 0, ["a:old"], [FIRST], ["a"]),  # serves nobody: stopped without waiting
    (1, 0, 1, ["a:old!"], [], ["a"]),
    (1, 0, 1, ["a:old~"], [], []),
    (1, 0, 1, [], [FIRST], []),
    (3, 0, 3, ["a:old!", "b:old!", "c:old!"], [], ["a", "b", "c"]),  # Recreate
    (1, 1, 0, [f"{FIRST}:new!", f"{SECOND}:new", f"{THIRD}:new!"], [], [SECOND, THIRD]),  # surplus: not ready, then youngest
    (0, 1, 0, ["a:old!", f"{FIRST}:new!"], [], [FIRST, "a"]),
]


@pytest.mark.parametrize(("replicas", "surge", "unavailable", "present", "starts", "stops"), DEPLOYMENT)
def test_a_deployment(
    replicas: int, surge: int, unavailable: int, present: list[str], starts: list[str], stops: list[str]
) -> None:
    wanted = workload(replicas=replicas, max_surge=surge, max_unavailable=unavailable)
    steps = decide_steps(wanted, pods(*present))
    assert (list(steps.start), sorted(steps.stop)) == (starts, sorted(stops))


STATEFUL_SET = [
    (2, False, [], ["web-0"], []),
    (2, True, [], ["web-0", "web-1"], []),
    (2, False, ["web-0:new"], [], []),
    (2, False, ["web-0:new!"], ["web-1"], []),
    (2, False, ["web-0:new!", "web-1:new!"], [], []),
    (2, False, ["web-0:old!", "web-1:old!"], [], ["web-1"]),
    (2, False, ["web-0:old!", "web-1:old~"], [], []),
    (2, False, ["web-0:old!"], ["web-1"], []),
    (2, False, ["web-0:old!", "web-1:new"], [], []),
    (2, False, ["web-0:old!", "web-1:new!"], [], ["web-0"]),
    (2, False, ["web-0:old", "web-1:old!"], [], ["web-0"]),  # not ready: replaced first
    (1, False, ["web-0:new!", "web-1:new!"], [], ["web-1"]),
    (0, False, ["web-0:new!"], [], ["web-0"]),
]


@pytest.mark.parametrize(("replicas", "is_parallel", "present", "starts", "stops"), STATEFUL_SET)
def test_a_stateful_set(replicas: int, is_parallel: bool, present: list[str], starts: list[str], stops: list[str]) -> None:
    wanted = workload(kind="StatefulSet", replicas=replicas, is_parallel=is_parallel)
    steps = decide_steps(wanted, pods(*present))
    assert (list(steps.start), list(steps.stop)) == (starts, stops)


@given(
    st.integers(0, 4),
    st.integers(0, 2),
    st.integers(0, 2),
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=6),
    st.sampled_from(["Deployment", "StatefulSet"]),
)
def test_every_rollout_ends_and_a_deployment_never_serves_with_too_few(
    replicas: int, surge: int, unavailable: int, present: list[tuple[bool, bool]], kind: str
) -> None:
    """Each step is carried out at once, new pods become ready one step later: from any beginning the end is the wanted state."""
    wanted: Workload = workload(
        kind=kind, replicas=replicas, max_surge=max(surge, 1 - min(unavailable, 1)), max_unavailable=unavailable
    )
    now = [PodView(f"web-{index}", NEW if is_new else "old", is_ready) for index, (is_new, is_ready) in enumerate(present)]
    most = max(len(now), replicas + wanted.max_surge)
    for _ in range(60):
        steps = decide_steps(wanted, now)
        if steps == Steps() and all(pod.ready for pod in now):
            break
        ready_before = sum(pod.ready for pod in now)
        stopped_ready = sum(pod.ready for pod in now if pod.name in steps.stop)
        if kind == "Deployment" and stopped_ready:
            assert ready_before - stopped_ready >= replicas - unavailable
        now = [PodView(pod.name, pod.revision, True) for pod in now if pod.name not in steps.stop]
        now += [PodView(name, NEW, False) for name in steps.start]
        assert len(now) <= most
        assert len({pod.name for pod in now}) == len(now)
    assert [pod.revision for pod in now] == [NEW] * replicas
