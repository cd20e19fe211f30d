"""A region is left and comes back: what is written, what is refused, and that any of it may be killed at any point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, NoCredentialsError
from recovery_world import EAST, KEY, REGIONS, TABLE, WEST, World

from infra.errors import UserError
from infra.recovery import failback, failover, operations
from infra.recovery.guard import explain
from infra.recovery.record import Kind, RunLog, State, StepRecord
from infra.recovery.runner import StepFailed
from infra.recovery.step import Options, Run, Step
from infra.recovery.table import FailoverTable
from policies.failover.controls import Verdict
from policies.failover.items import CONTROL, Control, Freeze

NAMES = {Kind.FAILOVER: [step.name for step in failover.STEPS], Kind.FAILBACK: [step.name for step in failback.STEPS]}


def lose(world: World, region: str = EAST) -> None:
    """The region's processes and its AWS are gone, and a minute has passed."""
    world.down.add(region)
    world.sleep(60)


def test_a_lost_region_is_left_and_the_record_says_how(world: World) -> None:
    lose(world)
    record = world.recovery().failover(EAST, "power is out")
    assert record.state is State.DONE
    assert [(step.name, step.state) for step in record.steps] == [(name, State.DONE) for name in NAMES[Kind.FAILOVER]]
    assert world.controls(WEST) == {EAST: True}
    assert world.verdict(EAST, WEST) is Verdict.EVACUATED
    assert world.num_ready[WEST] == 2, "20 + 20 in flight fit into two engines of 32"
    assert world.asked == ["/api/v1/chat/completions 200"] * failover.NUM_SYNTHETIC
    assert "7 archived segments" in record.step("take-over-usage").seen
    assert "abandoned" in record.step("drain").seen


def test_nothing_is_written_in_the_lost_region(world: World) -> None:
    lose(world)
    before = world.items(EAST)
    world.recovery().failover(EAST, "power is out")
    assert world.items(EAST) == before


def test_a_region_comes_back_with_nothing_left_behind(world: World) -> None:
    lose(world)
    world.recovery().failover(EAST, "power is out")
    world.down.clear()
    world.sleep(10)
    record = world.recovery().failback(EAST, "it is back")
    assert [(step.name, step.state) for step in record.steps] == [(name, State.DONE) for name in NAMES[Kind.FAILBACK]]
    world.settle()
    for region in REGIONS:
        assert world.controls(region) == {EAST: False}
        items = world.items(region)
        assert items["freeze", "deploys"]["is_frozen"] is False
        assert items["takeover", EAST]["by_region"] == ""
        assert items["floor", f"{WEST}#small"]["min_engines"] == 0
        assert world.verdict(EAST, region) is Verdict.SERVING


def test_a_survivor_grows_to_what_all_the_traffic_needs(world: World) -> None:
    world.in_flight = {EAST: 60, WEST: 40}
    world.sleep(1)
    lose(world)
    record = world.recovery().failover(EAST, "power is out")
    assert record.step("raise-floors").wrote == [f"floor {WEST}#small: model_class=small, min_engines=4"]
    assert world.num_ready[WEST] == 4


def test_a_dry_run_writes_nothing_and_its_record_has_the_same_shape(world: World) -> None:
    lose(world)
    before = world.items(WEST)
    dry = world.recovery().failover(EAST, "a drill", is_dry_run=True)
    assert world.items(WEST) == before
    real = world.recovery().failover(EAST, "power is out")
    assert dry.as_values().keys() == real.as_values().keys()
    assert [step.name for step in dry.steps] == [step.name for step in real.steps]
    assert {step.state for step in dry.steps} == {State.PLANNED}
    assert [step.wrote for step in dry.steps] == [step.wrote for step in real.steps]


def test_an_unfinished_failover_is_taken_back(world: World) -> None:
    lose(world)
    recovery = world.recovery(options=Options(api_key="wrong"))
    with pytest.raises(StepFailed, match=r"verify: not seen within 60 s: small answers 401 \(invalid_api_key\)"):
        recovery.failover(EAST, "power is out")
    assert world.controls(WEST) == {EAST: True}, "what was done holds"
    record = recovery.abort(EAST)
    assert record.state is State.ABORTED
    assert world.controls(WEST) == {EAST: False}
    assert world.table(WEST).get(Freeze, ("freeze", "deploys")).is_frozen is False  # type: ignore[union-attr]
    world.recovery().failover(EAST, "now for good")


def test_two_failovers_from_both_sides_of_a_partition_are_taken_back_one_after_the_other(world: World) -> None:
    """Deploys stay refused until the second of them is back: its survivor carries everything."""
    for lost, other in ((EAST, WEST), (WEST, EAST)):
        world.down = {lost}
        world.sleep(60)
        world.recovery(seat=other).failover(lost, "nobody answers")
    world.down.clear()
    world.sleep(10)
    for region in REGIONS:
        assert {it for it in REGIONS if world.verdict(it, region) is Verdict.EVACUATED} == {EAST}, "it was the first"
    recovery = world.recovery()
    assert "deploys stay refused until us-east-2" in recovery.failback(WEST, "healed").step("lift").seen
    assert world.items(EAST)["freeze", "deploys"]["is_frozen"]
    world.sleep(10)
    assert recovery.failback(EAST, "healed").step("lift").seen == "floors are lifted, deploys are allowed"
    world.settle()
    assert not world.items(EAST)["freeze", "deploys"]["is_frozen"]
    assert world.controls(EAST) == world.controls(WEST) == {EAST: False, WEST: False}


def test_who_is_asked_before_each_step_may_say_no_and_go_on_later(world: World) -> None:
    lose(world)
    asked: list[str] = []

    def confirm(step: Step) -> None:
        asked.append(step.name)
        if step.name == "evacuate":
            raise InterruptedError("not before I have called somebody")

    with pytest.raises(InterruptedError):
        world.recovery(confirm=confirm).failover(EAST, "power is out")
    assert asked == ["declare", "freeze-deploys", "check-survivors", "raise-floors", "evacuate"]
    assert not world.controls(WEST)
    asked.clear()
    assert world.recovery(confirm=lambda step: asked.append(step.name)).failover(EAST, "power is out").state is State.DONE
    assert asked == NAMES[Kind.FAILOVER][4:], "what is done is not asked for again"


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


def killed_after(world: World, num_writes: int, act: Callable[[Callable[[float], None]], object]) -> bool:
    """Runs `act`, giving it a `sleep`, and kills it once its write number `num_writes` has happened; False if it ended before."""
    left = num_writes
    originals = FailoverTable.put, FailoverTable.put_if

    def counted(original: Any) -> Any:
        def put(self: Any, *arguments: Any) -> None:
            nonlocal left
            original(self, *arguments)
            left -= 1
            if left == 0:
                raise Killed

        return put

    def obey(seconds: float) -> None:
        FailoverTable.put, FailoverTable.put_if = originals  # type: ignore[method-assign]
        world.sleep(seconds)
        FailoverTable.put, FailoverTable.put_if = counted(originals[0]), counted(originals[1])  # type: ignore[method-assign]

    FailoverTable.put, FailoverTable.put_if = counted(originals[0]), counted(originals[1])  # type: ignore[method-assign]
    try:
        act(obey)
    except Killed:
        return True
    finally:
        FailoverTable.put, FailoverTable.put_if = originals  # type: ignore[method-assign]
    return False


def end_state(world: World) -> dict[Any, Any]:
    """What the survivor's table says, but for whose run it was and when."""
    dull = {
        "run_id",
        "at_s",
        "started_at_s",
        "ended_at_s",
        "took_s",
        "lease_until_s",
        "revision",
        "owner",
        "by",
        "reason",
        "steps",
    }
    kept = {key: item for key, item in world.items(WEST).items() if key[0] not in ("report", "shipped")}
    return {key: {name: value for name, value in item.items() if name not in dull} for key, item in kept.items()}


def test_a_failover_that_is_killed_after_any_write_goes_on_to_the_same_end(world: World) -> None:
    """The incident: an operator's laptop dies between 'evacuated' and 'verified', and nobody knows what was done."""
    lose(world)
    world.recovery().failover(EAST, "power is out")
    wanted, num_kills, places = end_state(world), 0, set()
    for num_writes in range(1, 60):
        _forget(world)
        killed = killed_after(world, num_writes, lambda sleep: world.recovery(sleep=sleep).failover(EAST, "power is out"))
        if not killed:
            break
        num_kills += 1
        places.add(_place(world))
        world.sleep(40)  # the lease of a process that is gone runs out
        _go_on(world)
        assert end_state(world) == wanted, f"killed after write {num_writes}"
    assert num_kills > 20
    assert places == {(name, state) for name in NAMES[Kind.FAILOVER] for state in (State.RUNNING, State.DONE)} | {
        ("", State.PENDING)
    }


def _place(world: World) -> tuple[str, State]:
    """The step that the run is in, or the last that is done; the place before them all has no name."""
    record = world.recovery().status(EAST)
    assert record is not None
    begun = [step for step in record.steps if step.state is not State.PENDING]
    return (begun[-1].name, begun[-1].state) if begun else ("", State.PENDING)


def _go_on(world: World) -> None:
    """The same command again."""
    try:
        assert world.recovery().failover(EAST, "power is out").state is State.DONE
    except UserError as error:  # killed after its last write
        assert "is failed over already" in error.message


def _forget(world: World) -> None:
    """As before any failover."""
    client = world.clients[WEST]
    for pk, sk in world.items(WEST):
        if pk not in ("report", "shipped") or sk.endswith("#by"):
            client.delete_item(TableName=TABLE, Key={"pk": {"S": pk}, "sk": {"S": sk}})
    world.said.clear()


def _unknown_region(world: World) -> Any:
    return world.recovery().failover("mars-1", "x")


def _twice(world: World) -> Any:
    world.recovery().failover(EAST, "x")
    return world.recovery().failover(EAST, "x")


def _too_small(world: World) -> Any:
    world.in_flight[WEST] = 200
    world.sleep(1)
    return world.recovery().failover(EAST, "x")


def _no_release(world: World) -> Any:
    key = f"releases/small/{world.release_id}/model.safetensors"
    boto3.client("s3", region_name=WEST).delete_object(Bucket=f"artifacts-{WEST}", Key=key)
    return world.recovery().failover(EAST, "x")


def _survivor_is_evacuated(world: World) -> Any:
    world.table(WEST).put(Control(WEST, True, "x", "r0", "lee", 1.0))
    return world.recovery().failover(EAST, "x")


def _survivor_says_nothing(world: World) -> Any:
    world.clock.now_s += 600
    return world.recovery().failover(EAST, "x")


def _no_key(world: World) -> Any:
    return world.recovery(options=Options()).failover(EAST, "x")


def _not_out(world: World) -> Any:
    return world.recovery().failback(EAST, "x")


def _not_back(world: World) -> Any:
    world.recovery().failover(EAST, "x")
    return world.recovery().failback(EAST, "x")


def _no_run(world: World) -> Any:
    return world.recovery().abort(EAST)


def _seat_is_lost(world: World) -> Any:
    return world.recovery(seat=EAST).failover(EAST, "x")


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (_unknown_region, "prod has no region 'mars-1'"),
        (_twice, f"{EAST} is failed over already"),
        (_too_small, "the survivors cannot carry 92 requests of small"),
        (_no_release, f"{WEST} lacks release .* of small: model.safetensors is missing or not whole"),
        (_survivor_is_evacuated, f"{WEST} is evacuated itself"),
        (_survivor_says_nothing, "no survivor reports"),
        (_no_key, "there is no API key for synthetic requests"),
        (_not_out, f"{EAST} is not failed over"),
        (_not_back, f"{EAST} last reported .* s ago: it is not back"),
        (_no_run, f"no failover of {EAST} is under way"),
        (_seat_is_lost, f"--from {EAST} is not a survivor"),
    ],
)
def test_what_cannot_be_done_is_one_line(world: World, does: Callable[[World], Any], told: str) -> None:
    lose(world)
    with pytest.raises(UserError, match=told) as caught:
        does(world)
    assert "\n" not in caught.value.message and caught.value.hint


def test_a_survivor_too_small_is_taken_by_who_accepts_shedding(world: World) -> None:
    world.in_flight[WEST] = 200
    world.sleep(1)
    lose(world)
    options = Options(accept_shedding=True, api_key=KEY)
    assert world.recovery(options=options).failover(EAST, "power is out").state is State.DONE


def test_clients_who_have_moved_are_not_counted_again(world: World) -> None:
    """The incident: a survivor that served all the traffic was said to be too small for it: part was counted twice."""
    world.in_flight = {EAST: 60, WEST: 40}
    world.sleep(1)
    lose(world)
    world.in_flight[WEST] = 100
    world.sleep(1)
    with pytest.raises(UserError, match="the survivors cannot carry 32 requests of small"):  # they may still be about to come
        world.recovery().failover(EAST, "power is out")
    world.sleep(world.estate.moves_within_s)
    record = world.recovery().failover(EAST, "power is out")
    assert record.step("check-survivors").reason == "small: 100 in flight, 64 places now, 128 at most"


@pytest.mark.parametrize("does", [_too_small, _no_release, _survivor_is_evacuated, _survivor_says_nothing])
def test_what_is_refused_has_evacuated_nobody(world: World, does: Callable[[World], Any]) -> None:
    lose(world)
    with pytest.raises(UserError):
        does(world)
    assert not world.controls(WEST).get(EAST)


def test_a_second_operator_is_told_who_runs_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(world)
    seen: list[str] = []

    def meanwhile(step: StepRecord) -> None:
        if step.name == "drain" and step.state is State.RUNNING:
            with monkeypatch.context() as patch:
                patch.setattr("infra.recovery.record.operator", lambda: "lee@elsewhere")
                with pytest.raises(UserError, match="is running this failover") as caught:
                    world.recovery(by="lee").failover(EAST, "x")
                seen.append(caught.value.message)

    assert world.recovery(on_step=meanwhile).failover(EAST, "power is out").state is State.DONE
    assert len(seen) == 1


def test_of_two_operators_who_begin_at_once_one_is_told_and_writes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read that there is no run; the record's first write decides."""
    lose(world)
    slower = world.recovery(by="lee")
    assert killed_after(world, 1, lambda sleep: world.recovery(sleep=sleep).failover(EAST, "power is out"))
    before = world.items(WEST)
    with monkeypatch.context() as patch:
        patch.setattr(slower, "status", lambda lost: None)
        with pytest.raises(UserError, match="somebody else has taken up run") as caught:
            slower.failover(EAST, "x")
    assert "\n" not in caught.value.message and caught.value.hint
    assert world.items(WEST) == before


@pytest.mark.parametrize("num_calls", [0, 9, 18, 27])
def test_credentials_that_expire_are_one_line_and_the_same_command_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch, num_calls: int
) -> None:
    lose(world)
    left, call = num_calls, BaseClient._make_api_call

    def expiring(client: Any, operation: str, arguments: Any) -> Any:
        nonlocal left
        if client._service_model.service_name == "dynamodb" and operation != "Scan":
            left -= 1
            if left < 0:
                raise ClientError({"Error": {"Code": "ExpiredTokenException", "Message": "x"}}, operation)
        return call(client, operation, arguments)

    recovery = world.recovery(sleep=lambda seconds: None)
    with monkeypatch.context() as patch:
        patch.setattr(BaseClient, "_make_api_call", expiring)
        with pytest.raises(UserError, match="the AWS credentials have expired") as caught:
            recovery.failover(EAST, "power is out")
    assert "\n" not in caught.value.message and "the same command" in str(caught.value.hint)
    world.sleep(40)
    assert world.recovery().failover(EAST, "power is out").state is State.DONE


def _refused(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "why"}}, "GetItem")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (_refused("ExpiredTokenException"), "t: the AWS credentials have expired"),
        (_refused("RequestTimeTooSkewed"), "t: this machine's clock is wrong"),
        (_refused("ResourceNotFoundException"), "t: there is no such table"),
        (_refused("AccessDeniedException"), "t: AccessDeniedException: why"),
        (NoCredentialsError(), "t: no AWS credentials"),
        (EndpointConnectionError(endpoint_url="https://x"), 't: Could not connect to the endpoint URL: "https://x"'),
    ],
)
def test_what_aws_refuses_is_told_with_what_to_do(error: ClientError | BotoCoreError, told: str) -> None:
    explained = explain(error, "t")
    assert explained.message == told and explained.hint


def test_the_lease_of_a_process_that_is_gone_is_taken_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(world)
    assert killed_after(world, 6, lambda sleep: world.recovery(sleep=sleep).failover(EAST, "x"))
    run = world.recovery().status(EAST)
    assert run is not None and run.owner
    monkeypatch.setattr("infra.recovery.record.os.getpid", lambda: 1)
    monkeypatch.setattr("infra.recovery.record.os.kill", _no_process)
    assert world.recovery().failover(EAST, "x").run_id == run.run_id


def _no_process(pid: int, signal: int) -> None:
    raise ProcessLookupError


def test_a_region_that_still_serves_is_waited_for(world: World) -> None:
    """A region that only half fails is evacuated while it answers: its streams may end."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) > 3:
            world.in_flight[EAST] = 0
        world.sleep(seconds)

    record = world.recovery(sleep=sleep).failover(EAST, "it talks nonsense")
    assert record.step("drain").seen == f"{EAST} has no request in flight"


def test_why_a_step_waits_is_told_while_it_waits_and_once_for_each_reason(world: World) -> None:
    """A minute without a word looks like a hang, and whoever interrupts it loses a minute more."""
    lose(world)
    told: list[str] = []

    def keep(step: StepRecord) -> None:
        if step.name == "verify" and step.state is State.RUNNING and step.seen:
            told.append(step.seen)

    with pytest.raises(StepFailed):
        world.recovery(options=Options(api_key="wrong"), on_step=keep).failover(EAST, "power is out")
    assert told == ["waits up to 60 s: small answers 401 (invalid_api_key); expected: An answer to each."]
    record = world.recovery().status(EAST)
    assert record is not None and not record.step("verify").seen, "nothing of it was seen, so the record says nothing"


def test_what_a_run_replaces_is_kept(world: World) -> None:
    lose(world)
    first = world.recovery().failover(EAST, "power is out")
    world.down.clear()
    world.sleep(10)
    world.recovery().failback(EAST, "it is back")
    assert ("run", f"{EAST}#{first.run_id}") in world.items(WEST)


def _calls_route_53(run: Run) -> str:
    return str(run.guard.client("route53", WEST).list_hosted_zones())


def _deletes_a_table(run: Run) -> str:
    return str(run.guard.client("dynamodb", WEST).delete_table(TableName=TABLE))


def _asks_the_lost_region(run: Run) -> str:
    return str(run.guard.client("dynamodb", EAST).list_tables())


def _asks_its_gateways(run: Run) -> str:
    return str(run.guard.get(f"{run.estate.region(EAST).url}/region"))


def _asks_the_world(run: Run) -> str:
    return str(run.guard.get("https://example.com/"))


@pytest.mark.parametrize(
    ("step", "planted", "told"),
    [
        *((step.name, _calls_route_53, "a client for route53") for step in failover.STEPS),
        ("drain", _deletes_a_table, "dynamodb:DeleteTable"),
        ("drain", _asks_the_lost_region, f"a client for dynamodb in {EAST}, which is lost"),
        ("drain", _asks_its_gateways, "neither the API's address nor a survivor's"),
        ("drain", _asks_the_world, "neither the API's address nor a survivor's"),
    ],
)
def test_a_step_that_calls_a_control_plane_is_refused_by_name(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str, planted: Callable[[Run], str], told: str
) -> None:
    """The incident: a runbook that changed DNS through Route 53's API, whose control plane was down with the region."""
    steps = tuple(replace(it, check=planted) if it.name == step else it for it in failover.STEPS)
    monkeypatch.setitem(operations.STEPS, Kind.FAILOVER, steps)  # type: ignore[arg-type]
    lose(world)
    with pytest.raises(StepFailed, match=f"{step}: refused: .*{told}"):
        world.recovery().failover(EAST, "a drill")


def test_a_control_that_was_evacuated_by_somebody_is_read_with_its_reason(world: World) -> None:
    lose(world)
    world.recovery(by="kim").failover(EAST, "engines talk nonsense")
    control = world.table(WEST).get(Control, (CONTROL, EAST))
    assert control is not None and (control.reason, control.by) == ("engines talk nonsense", "kim")


def test_a_clock_that_is_wrong_stops_before_anything_is_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(world)
    monkeypatch.setattr(FailoverTable, "clock_error_s", 3600.0, raising=False)
    monkeypatch.setattr(FailoverTable, "__setattr__", _keep_clock_error)
    with pytest.raises(StepFailed, match="this machine's clock is 3600 s ahead of"):
        world.recovery().failover(EAST, "x")
    assert not world.controls(WEST)


def _keep_clock_error(self: Any, name: str, value: Any) -> None:
    if name != "clock_error_s":
        object.__setattr__(self, name, value)


def test_the_log_of_a_run_that_somebody_else_took_up_stops_the_first(world: World) -> None:
    lose(world)
    recovery = world.recovery()
    record = recovery._new(EAST, Kind.FAILOVER, "x", is_dry_run=False)
    log = RunLog(world.table(WEST), record, world.clock)
    log.begin(None)
    record.revision = 0
    with pytest.raises(UserError, match="somebody else has taken up run"):
        log.save()
