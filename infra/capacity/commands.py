"""`flotilla capacity`: from users to GPUs and dollars, with the arithmetic shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.catalog import Catalog
from policies.capacity.operating_point import Mix, work_s
from policies.capacity.plan import TTFT_LIMIT_S, ClassDemand, Demand, Plan, decide_capacity
from policies.capacity.step_law import PROFILES
from serving.errors import UserError

DEFAULT_SHARES = "small=0.7,medium=0.2,large=0.1"
BUCKETS_TOKENS = (128, 512, 1024, 2048, 8192, 32768)


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command()(capacity)


def capacity(
    env: Annotated[str, typer.Option("--env", help="Environment whose regions and models count.")] = "prod",
    users_per_day: Annotated[int, typer.Option(min=1, help="People who use it in a day.")] = 10_000_000,
    req_per_min: Annotated[float, typer.Option(min=1, help="Requests at the peak.")] = 100_000,
    shares: Annotated[str, typer.Option(help="Share of requests by model class.")] = DEFAULT_SHARES,
    input_tokens: Annotated[float, typer.Option(min=1, help="Of a mean request.")] = Mix().input_tokens,
    output_tokens: Annotated[float, typer.Option(min=1, help="Of a mean request.")] = Mix().output_tokens,
    cached_percent: Annotated[float, typer.Option(min=0, max=99, help="Of input tokens found in the prefix cache.")] = 0.0,
    utilization_percent: Annotated[float, typer.Option(min=1, max=99, help="Useful-token utilization at the peak.")] = 70.0,
    spares: Annotated[int, typer.Option(min=0, help="Warm spares of each class in each region.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Work out engines, GPUs, nodes and dollars for a demand, with any one region lost. Modelled, not measured, and says so."""
    from infra import config

    catalog = config.load_catalog()
    regions = config.environment_of(catalog, env).regions
    mix = Mix(input_tokens, output_tokens, cached_percent / 100)
    demand = Demand(users_per_day, req_per_min, mix)
    plan = decide_capacity(
        demand, list(class_demands(catalog, env, _parsed(shares))), len(regions), utilization_percent / 100, spares
    )
    if as_json:
        typer.echo(json.dumps({**asdict(plan), "gpus": plan.gpus, "usd_per_h": plan.usd_per_h}))
    else:
        Console(soft_wrap=True, highlight=False).print(_render(plan))


def class_demands(catalog: Catalog, env: str, shares: dict[str, float]) -> Iterator[ClassDemand]:
    """The classes of `env` that `shares` names, with their models' shapes and prices.

    Raises:
        UserError: a class is not served there, or its model runs on no GPU that a profile is known for.
    """
    from infra.costs.report import load_prices
    from infra.instances import INSTANCE_SHAPES

    prices = load_prices().prices
    served = {str(model_class): catalog.models[name] for model_class, name in catalog.environments[env].models.items()}
    for model_class, share in shares.items():
        if model_class not in served:
            raise UserError(f"--shares: {env} serves no class {model_class!r}", f"it serves {', '.join(served)}")
        model, profile = served[model_class], PROFILES.get(f"a100-{model_class}")
        if model.gpus is None or profile is None or not model.gpus.kind.startswith("a100"):
            raise UserError(
                f"{env} serves {model_class} on {model.gpus.kind if model.gpus else 'CPUs'}, and only A100s have a profile",
                "choose an environment on A100s, such as --env prod",
            )
        node_type, shape = next((name, shape) for name, shape in INSTANCE_SHAPES.items() if shape.gpu == model.gpus.kind)
        price = prices.get(f"ec2:{node_type}")
        yield ClassDemand(
            name=model_class,
            share_ratio=share,
            profile=profile,
            gpus_per_engine=model.gpus.count,
            gpus_per_node=shape.num_gpus,
            max_batch=int(model.engine_args.get("max_num_seqs", 256)),
            usd_per_node_h=price.usd_per_h if price else None,
            kv_bytes_per_token=model.kv_bytes_per_token,
            context_window_tokens=model.context_window_tokens,
        )


def _parsed(shares: str) -> dict[str, float]:
    try:
        found = {name.strip(): float(value) for name, _, value in (part.partition("=") for part in shares.split(","))}
    except ValueError as error:
        raise UserError(f"--shares is {shares!r}, must be like {DEFAULT_SHARES}", "give each class a number") from error
    if abs(sum(found.values()) - 1) > 1e-6:
        raise UserError(f"--shares add up to {sum(found.values()):g}, must be 1", "correct them")
    return found


def _render(plan: Plan) -> RenderableType:
    return Group(*_arithmetic(plan), Text(), _fleet(plan), Text(), _first_tokens(plan), Text(), *_caveats(plan))


def _arithmetic(plan: Plan) -> Iterator[Text]:
    demand, mix = plan.demand, plan.demand.mix
    yield Text(
        f"{demand.req_per_min:,.0f} requests a minute = {demand.req_per_min / 60:,.0f} a second at the peak;"
        f" all day it would be {demand.req_per_user_day:.1f} for each of {demand.users_per_day:,} users."
    )
    yield Text(
        f"A mean request: {mix.input_tokens:,.0f} tokens in, {mix.cached_ratio:.0%} of them cached, {mix.output_tokens:,.0f} out."
    )
    carrying = max(1, plan.num_regions - 1)
    for item in plan.classes:
        point, work = item.point, work_s(PROFILES[f"a100-{item.name}"], mix)
        yield Text(
            f"{item.name}: a request is {work:.3f} s of its engine, so {point.utilization_ratio:.0%} useful is"
            f" {point.req_per_s:.2f} a second, {point.batch:.0f} at once, a step of {point.step_s * 1000:.0f} ms"
            f" (bound by {point.bound_by});  {item.peak_req_per_s:,.0f} ÷ {carrying} ÷ {point.req_per_s:.2f}"
            f" → {item.engines_per_region - item.spares_per_region:,} engines a region"
            f" + {item.spares_per_region} spare"
        )


def _fleet(plan: Plan) -> Table:
    table = Table(
        box=None, pad_edge=False, title=f"a region of {plan.num_regions}, any one of which may be lost", title_justify="left"
    )
    names = ("class", "engines", "GPUs", "nodes", "$/h", "$ per Mtok", "KV at 32K, GiB", "KV used")
    for name in names:
        table.add_column(name, justify="left" if name == "class" else "right")
    for item in plan.classes:
        usd, mtok = item.usd_per_h_per_region, item.usd_per_mtok
        table.add_row(
            item.name,
            f"{item.engines_per_region:,}",
            f"{item.gpus_per_region:,}",
            f"{item.nodes_per_region:,}",
            "no price" if usd is None else f"{usd:,.0f}",
            "no price" if mtok is None else f"{mtok:.3f}",
            f"{item.kv_gib_per_full_context:.2f}",
            f"{item.point.kv_utilization_ratio:.0%}",
        )
    total = "no price" if plan.usd_per_h is None else f"{plan.usd_per_h:,.0f}"
    table.add_row(f"all {plan.num_regions} regions", "", f"{plan.gpus:,}", "", total, style="bold")
    return table


def _first_tokens(plan: Plan) -> Table:
    from policies.capacity.operating_point import ttft_s

    limit_ms = TTFT_LIMIT_S * 1000
    title = f"P50 of the first token, ms, by uncached prompt tokens (the promise: {limit_ms:.0f})"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("class")
    for tokens in BUCKETS_TOKENS:
        table.add_column(f"{tokens:,}", justify="right")
    table.add_column("holds up to", justify="right")
    for item in plan.classes:
        profile = PROFILES[f"a100-{item.name}"]
        times_ms = [ttft_s(profile, item.point.step_s, tokens) * 1000 for tokens in BUCKETS_TOKENS]
        cells = [f"[{'green' if ms < limit_ms else 'red'}]{ms:,.0f}[/]" for ms in times_ms]
        table.add_row(item.name, *cells, f"{item.holds_ttft_up_to_tokens:,}")
    return table


def _caveats(plan: Plan) -> Iterator[Text]:
    yield Text(
        "Modelled from published kernel timings of A100s (policies/capacity/step_law.py), not measured on this fleet; a mean"
        " request stands for all. Dollars are on-demand list prices of GPU nodes alone: `flotilla cost` has the rest.",
        style="dim",
    )
    if plan.num_regions == 1:
        yield Text("One region has nothing to fall back on: losing it is losing the service.", style="yellow")
