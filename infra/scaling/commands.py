"""`flotilla simulate`: what a rule for scaling makes of a load, beside the rules that it is judged by."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from policies.autoscaling.loads import LOADS, replayed
from policies.autoscaling.rules import RULES, TARGET_SHARE, Targets
from policies.autoscaling.simulation import EngineModel, Limits, Outcome, simulate
from policies.capacity.operating_point import Mix, operating_point
from policies.cold_start import model_cold_start
from serving.errors import UserError

IMAGE_GB = 10.76
"""vLLM's image, as `policies.cold_start` has it from a measurement by others."""
NUM_WEIGHT_FILES = 8
BARS = "▁▂▃▄▅▆▇█"
PICTURE_WIDTH = 96


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command("simulate")(simulate_rules)


def simulate_rules(
    load: Annotated[
        str, typer.Option(help=f"{', '.join(LOADS)}, or a CSV file whose first column is the time of each request.")
    ] = "diurnal",
    rule: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(RULES)}; repeat it. [default: all]")] = None,
    model_class: Annotated[str, typer.Option("--class", help="Model class.")] = "small",
    env: Annotated[str, typer.Option("--env", help="Environment whose model and prices count.")] = "prod",
    peak_req_per_s: Annotated[float, typer.Option(min=0.1, help="Of the busiest minute, over all engines.")] = 400,
    hours: Annotated[float, typer.Option(min=0.1, max=168, help="Of a generated load.")] = 24,
    min_engines: Annotated[int, typer.Option(min=1, help="The floor.")] = 10,
    max_engines: Annotated[int, typer.Option(min=1, max=10_000, help="The ceiling.")] = 100,
    in_flight: Annotated[
        float | None, typer.Option(min=1, help="Requests that an engine should hold. [default: an eighth]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the generated load.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Replay a load against a model of a class's engines under rules for scaling. Simulated: nothing runs or is bought."""
    unknown = sorted(set(rule or ()) - RULES.keys())
    if unknown:
        raise UserError(f"--rule: no rule {unknown[0]!r}", f"known are {', '.join(RULES)}")
    if min_engines > max_engines:
        raise UserError(f"--min-engines is {min_engines}, above --max-engines ({max_engines})", "lower it")
    engine = _engine(env, model_class)
    arrivals = _arrivals(load, peak_req_per_s, hours, seed)
    targets = Targets(in_flight or max(1, round(engine.max_batch * TARGET_SHARE)))
    outcomes = [
        simulate(name, RULES[name], arrivals, engine, Limits(min_engines, max_engines), targets) for name in rule or RULES
    ]
    if as_json:
        typer.echo(
            json.dumps({"load": load, "seed": seed, "target_in_flight": targets.in_flight, "rules": list(map(asdict, outcomes))})
        )
    else:
        Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(_render(arrivals, outcomes, engine, targets))


def _engine(env: str, model_class: str) -> EngineModel:
    """The class's engine on its GPUs, with the cold start that A100 nodes are modelled with.

    Raises:
        UserError: the class is not served there, or runs on no A100.
    """
    from infra import config
    from infra.capacity.commands import class_demands

    catalog = config.load_catalog()
    config.environment_of(catalog, env)
    (demand,) = class_demands(catalog, env, {model_class: 1.0})
    model = next(catalog.models[name] for key, name in catalog.environments[env].models.items() if key == model_class)
    cold = model_cold_start(IMAGE_GB, model.weights_gib, NUM_WEIGHT_FILES, demand.gpus_per_engine)
    return EngineModel(
        profile=demand.profile,
        mix=Mix(),
        max_batch=demand.max_batch,
        cold_start_s=cold.total_s,
        gpus=demand.gpus_per_engine,
        usd_per_h=(demand.usd_per_node_h or 0.0) / demand.gpus_per_node * demand.gpus_per_engine,
    )


def _arrivals(load: str, peak_req_per_s: float, hours: float, seed: int) -> list[float]:
    if load in LOADS:
        return LOADS[load](peak_req_per_s, int(hours * 3600), seed)
    path = Path(load)
    if not path.is_file():
        raise UserError(f"--load: {load} is neither {', '.join(LOADS)} nor a file", "name one of them")
    try:
        return replayed(_times(path), peak_req_per_s)
    except ValueError as error:
        raise UserError(
            f"--load: {load}: {error}", "its first column must be a time of each request: seconds, or a date"
        ) from error


def _times(path: Path) -> Iterator[float]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        for number, row in enumerate(rows):
            if not row or (number == 0 and not row[0][:1].isdigit()):
                continue
            yield _seconds(row[0])


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # Azure's trace has seven digits of a second, one more than Python reads.
        head, dot, fraction = text.partition(".")
        return datetime.fromisoformat(f"{head}{dot}{fraction[:6]}").timestamp()


def _render(arrivals: Sequence[float], outcomes: Sequence[Outcome], engine: EngineModel, targets: Targets) -> RenderableType:
    title = (
        f"{sum(arrivals):,.0f} requests in {len(arrivals) / 3600:.1f} h; {targets.in_flight:.0f} in flight an engine;"
        f" {engine.cold_start_s:.0f} s of cold start"
    )
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("rule", "in time", "shed", "p50, ms", "p99, ms", "useful", "GPU-hours", "$", "changes"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for item in outcomes:
        table.add_row(
            item.rule,
            f"{item.slo_ratio:.1%}",
            f"{item.shed_ratio:.2%}",
            f"{item.ttft_p50_s * 1000:,.0f}",
            f"{item.ttft_p99_s * 1000:,.0f}",
            f"{item.utilization_ratio:.0%}",
            f"{item.gpu_hours:,.0f}",
            f"{item.usd:,.0f}",
            f"{item.num_changes:,}",
        )
    pictures: list[RenderableType] = [
        Text(f"{'requests':>13} {_bars([sum(arrivals[i : i + 60]) for i in range(0, len(arrivals), 60)])}")
    ]
    pictures += [Text(f"{item.rule:>13} {_bars(item.engines)}") for item in outcomes]
    point = operating_point(engine.profile, engine.mix, 0.7, engine.max_batch)
    note = Text(
        "In time: first token within 200 ms. Useful: tokens' own time over what was paid for; an engine is 70 % useful at"
        f" {point.batch:.0f} requests in flight. A fluid model: compare rules by it, and see policies/autoscaling/simulation.py.",
        style="dim",
    )
    return Group(table, Text(), *pictures, Text(), note)


def _bars(values: Sequence[float]) -> str:
    """A line of bars, the largest value full height."""
    width = min(PICTURE_WIDTH, len(values))
    if not width:
        return ""
    per = len(values) / width
    means = [_mean(values[int(index * per) : max(int(index * per) + 1, int((index + 1) * per))]) for index in range(width)]
    top = max(means) or 1
    return "".join(BARS[min(len(BARS) - 1, int(mean / top * len(BARS)))] for mean in means)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
