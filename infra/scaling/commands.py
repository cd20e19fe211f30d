"""`flotilla simulate`: what the deployed policy for scaling makes of a load, beside those that it is judged by."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from infra.scaling import report
from infra.scaling.picture import picture
from infra.scaling.recordings import recorded_load
from infra.scaling.setting import setting
from policies.autoscaling.contenders import CONTENDERS, OURS, contender
from policies.autoscaling.fidelity import ModelError, checkable, model_error
from policies.autoscaling.loads import LOADS, diurnal
from policies.autoscaling.peak import at_peak
from policies.autoscaling.policy import ScalingPolicy
from policies.autoscaling.replay import replay
from policies.autoscaling.scenario import Bounds, EngineModel, Load
from policies.autoscaling.simulation import simulate
from serving.errors import UserError


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command("simulate")(simulate_policies)


def simulate_policies(
    load: Annotated[
        str,
        typer.Option(help=f"{', '.join(LOADS)}, or a CSV file: time of each request, and tokens in and out where it has them."),
    ] = "diurnal",
    policy: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(CONTENDERS)}; repeat it. [default: all]")] = None,
    model_class: Annotated[str, typer.Option("--class", help="Model class.")] = "small",
    env: Annotated[str, typer.Option("--env", help="Environment whose model and prices count.")] = "prod",
    peak_req_per_s: Annotated[
        float | None, typer.Option(min=0.1, help="Of the busiest minute. [default: what 60 % of the ceiling carries]")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.1, max=168, help="Of a generated load.")] = 24,
    cached_percent: Annotated[float, typer.Option(min=0, max=99, help="Of prompt tokens found in the prefix cache.")] = 0,
    min_engines: Annotated[int | None, typer.Option(min=1, help="The floor. [default: the stack's]")] = None,
    max_engines: Annotated[int | None, typer.Option(min=1, max=10_000, help="The ceiling, spot included.")] = None,
    spot: Annotated[int | None, typer.Option(min=0, help="The last so many of them are on spot.")] = None,
    spot_losses_per_h: Annotated[float, typer.Option(min=0, max=60, help="How often each spot engine goes: assumed.")] = 0.05,
    node_s: Annotated[float, typer.Option(min=0, help="Until a new engine's node is there: assumed.")] = 90,
    in_flight: Annotated[
        float | None, typer.Option(min=1, help="Requests that an engine should hold. [default: the deployed policy's]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of load, lengths and losses.")] = 1,
    svg: Annotated[Path | None, typer.Option(help="Write a picture into this file.")] = None,
    check_against_events: Annotated[
        bool, typer.Option("--check-against-events", help="Run the hour of the peak request by request too, and show the error.")
    ] = False,
    peak: Annotated[
        bool, typer.Option("--peak", help="The hour of the peak alone, every class: are all promises kept at once?")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Replay a load against a model of a class's engines under policies for scaling. Simulated: nothing runs or is bought."""
    unknown = sorted(set(policy or ()) - set(CONTENDERS))
    if unknown:
        raise UserError(f"--policy: no policy {unknown[0]!r}", f"known are {', '.join(CONTENDERS)}")
    if peak:
        _peaks(env, hours, seed, node_s, as_json)
        return
    found = setting(env, model_class, node_s, spot_losses_per_h)
    bounds = _bounds(found.bounds, min_engines, max_engines, spot)
    given = _load(load, peak_req_per_s or found.peak_req_per_s, hours, cached_percent / 100, seed)
    goes_by = found.policy.model_copy(update={"target_in_flight": in_flight}) if in_flight else found.policy
    names = policy or list(CONTENDERS)
    outcomes = [simulate(name, contender(name, goes_by, bounds), given, found.engine, bounds, seed=seed) for name in names]
    part, fewer = checkable(given, bounds)
    errors = [_error(name, goes_by, part, found.engine, fewer, seed) for name in names] if check_against_events else []
    heading = report.title(given.arrivals_per_s, goes_by.target_in_flight, found.engine.cold_start_s)
    if svg:
        _write(svg, picture(f"{load}: {heading}", given.arrivals_per_s, outcomes))
    if as_json:
        document = {
            "load": load,
            "seed": seed,
            "target_in_flight": goes_by.target_in_flight,
            "policies": [asdict(item) for item in outcomes],
        }
        typer.echo(json.dumps({**document, "errors": [asdict(item) for item in errors]}))
        return
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(report.outcomes_table(outcomes, heading), "", report.buckets_table(outcomes), "")
    console.print(report.bars(given.arrivals_per_s, outcomes), "")
    if errors:
        console.print(report.errors_table(errors, sum(part.arrivals_per_s)), "")
    reachable = outcomes[0].reachable_ratio
    console.print(
        Text(
            "Kept: requests that came while half of all first tokens came within 200 ms and nobody was shed."
            f" In time: within 200 ms, of the {reachable:.0%} of requests that an idle engine would serve so."
            " Useful: tokens' own time over what was paid for."
            f" {report.cold_start_note(found.cold_start, found.node_s)}"
            " A fluid model: --check-against-events says how far it is off.",
            style="dim",
        )
    )


def _bounds(deployed: Bounds, minimum: int | None, maximum: int | None, spot: int | None) -> Bounds:
    """What is deployed, or given."""
    maximum = deployed.maximum if maximum is None else maximum
    spot = min(deployed.spot, maximum) if spot is None else spot
    minimum = deployed.minimum if minimum is None else minimum
    if minimum > maximum - spot:
        raise UserError(
            f"--min-engines is {minimum}, above --max-engines less --spot ({maximum - spot})", "lower it: no floor is on spot"
        )
    return replace(deployed, minimum=minimum, maximum=maximum, spot=spot)


def _peaks(env: str, hours: float, seed: int, node_s: float, as_json: bool) -> None:
    from infra import config

    peaks = []
    for model_class in config.environment_of(config.load_catalog(), env).models:
        found = setting(env, model_class, node_s)
        # A floor above what the peak needs would hide what the policy does.
        bounds = replace(found.bounds, minimum=max(1, found.bounds.maximum // 8))
        load = Load(diurnal(found.peak_req_per_s, int(hours * 3600), seed))
        peaks.append(at_peak(model_class, contender(OURS, found.policy, bounds), load, found.engine, bounds))
    if as_json:
        typer.echo(json.dumps([{**asdict(item), "holds": item.holds} for item in peaks]))
    else:
        Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(report.peaks(peaks))
    if not all(item.holds for item in peaks):
        raise typer.Exit(1)


def _error(name: str, policy: ScalingPolicy, load: Load, engine: EngineModel, bounds: Bounds, seed: int) -> ModelError:
    fluid = simulate(name, contender(name, policy, bounds), load, engine, bounds, seed=seed)
    return model_error(fluid, replay(name, contender(name, policy, bounds), load, engine, bounds, seed=seed))


def _load(load: str, peak_req_per_s: float, hours: float, cached_ratio: float, seed: int) -> Load:
    if load in LOADS:
        return Load(LOADS[load](peak_req_per_s, int(hours * 3600), seed), cached_ratio=cached_ratio)
    path = Path(load)
    if not path.is_file():
        raise UserError(f"--load: {load} is neither {', '.join(LOADS)} nor a file", "name one of them")
    try:
        return recorded_load(path, peak_req_per_s, cached_ratio)
    except ValueError as error:
        raise UserError(
            f"--load: {load}: {error}", "its first column must be a time of each request: seconds, or a date"
        ) from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--svg: {path}: {error.strerror}", "name a file that can be written") from error
