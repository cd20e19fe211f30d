"""Measures the guardrails: seeded mistakes in the graphs of prod, and how many of them are noticed.

Run by `make drill-guardrails`. Prints a table and one line of JSON; exits 1 where the figures do not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys

from rich.console import Console
from rich.table import Table

from infra import config
from infra.embedded.graph import Graph, Resource
from infra.embedded.recorder import environment_stacks, record
from infra.guardrails.graphs import estate_of, judge_graphs, load_waivers
from infra.reviews.review import finding_key
from policies.guardrails.rule import judge
from policies.guardrails.rules import RULES
from tests.infra.guardrails.mutations import MUTATIONS, Mutation

MIN_CAUGHT_PERCENT = 98.0
MIN_RULES = 40
MAX_WAIVERS = 5
Case = tuple[Mutation, str, Resource]


def cases(graphs: dict[str, Graph], num: int, seed: int) -> list[Case]:
    """`num` mistakes: each kind at least once where it can be made, then at random over kinds and places."""
    rng = random.Random(seed)
    places = {
        mutation: [(stack, victim) for stack, graph in graphs.items() for victim in mutation.victims(graph)]
        for mutation in MUTATIONS
    }
    possible = [mutation for mutation in MUTATIONS if places[mutation]]
    chosen = [(mutation, *rng.choice(places[mutation])) for mutation in possible]
    while len(chosen) < num:
        mutation = rng.choice(possible)
        chosen.append((mutation, *rng.choice(places[mutation])))
    return chosen[:num]


def main() -> int:
    """The drill."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--num", type=int, default=200, help="mistakes to make")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    catalog, waivers, today = config.load_catalog(), load_waivers(), config.today()
    graphs = record(environment_stacks("prod"))
    clean = judge_graphs(graphs, catalog, waivers, today)
    before = {verdict.stack: {finding_key(finding) for finding in verdict.findings} for verdict in clean.verdicts}

    missed: list[str] = []
    table = Table("mistake", "made on", "noticed by", title=f"{given.num} mistakes, seed {given.seed}", title_justify="left")
    chosen = cases(graphs, given.num, given.seed)
    for mutation, stack, victim in chosen:
        verdict = judge(estate_of(mutation.made(graphs[stack], victim), catalog), RULES, waivers, today)
        new = [finding for finding in verdict.findings if finding_key(finding) not in before[stack]]
        noticed = ", ".join(sorted({finding.rule for finding in new}))
        table.add_row(mutation.name, f"{stack} {victim.name}", noticed or "[bold red]nobody[/]")
        if not new:
            missed.append(f"{mutation.name} on {stack} {victim.name}")
    console.print(table)
    num_clean = sum(len(verdict.findings) for verdict in clean.verdicts)
    caught_percent = 100 * (1 - len(missed) / len(chosen))
    figures = {
        "num_mutations": len(chosen),
        "num_kinds": len({mutation.name for mutation, _, _ in chosen}),
        "caught_percent": round(caught_percent, 1),
        "num_rules": len(RULES),
        "num_findings_on_clean_graph": num_clean,
        "num_waivers": len(waivers),
        "seed": given.seed,
    }
    holds = caught_percent >= MIN_CAUGHT_PERCENT and num_clean == 0 and len(RULES) >= MIN_RULES and len(waivers) <= MAX_WAIVERS
    print(json.dumps({**figures, "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
