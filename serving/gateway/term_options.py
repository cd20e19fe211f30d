"""The terms of tenants and plans on the command line: each option once, for every command that sets terms.

Typer reads a command's options from its signature, so `takes_terms` writes them into it, and hands the command those that were
given as one dictionary: `terms`, as the admin API takes them.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from policies.context.compaction import STRATEGIES
from serving.errors import UserError

UNLIMITED = "unlimited"
ALL_MODELS = "all"
NO_BOUND = "none"
_USD = re.compile(r"(\d{1,7})(?:\.(\d{1,6}))?", re.ASCII)


@dataclass(frozen=True)
class TermOption:
    """How one term is given and shown."""

    flag: str
    metavar: str
    help: str
    title: str
    """In tables."""
    parse: Callable[[str, str], Any]
    """The admin API's value of an option's text. Raises UserError."""
    show: Callable[[Any], str]


def _word(flag: str, text: str) -> str:
    return text


def _bound(flag: str, text: str) -> str | None:
    return None if text == NO_BOUND else text


def _number(flag: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--{flag} is {text!r}; must be a number")
    return int(text)


def _limit(flag: str, text: str) -> int | None:
    if text == UNLIMITED:
        return None
    if not text.isdecimal():
        raise UserError(f"--{flag} is {text!r}; must be a number or `{UNLIMITED}`")
    return int(text)


def _budget(flag: str, text: str) -> int | None:
    if text == UNLIMITED:
        return None
    match = _USD.fullmatch(text)
    if match is None:
        raise UserError(f"--{flag} is {text!r}; must be dollars, such as 12.50, or `{UNLIMITED}`")
    return int(match[1]) * 1_000_000 + int((match[2] or "").ljust(6, "0"))


def _models(flag: str, text: str) -> list[str] | None:
    return None if text == ALL_MODELS else [name.strip() for name in text.split(",")]


def _strategy(flag: str, text: str) -> str:
    if text not in STRATEGIES:
        raise UserError(f"--{flag} is {text!r}; must be one of {', '.join(STRATEGIES)}")
    return text


def _limit_option(flag: str, what: str, title: str) -> TermOption:
    return TermOption(flag, f"N|{UNLIMITED}", what, title, _limit, lambda limit: UNLIMITED if limit is None else f"{limit:,}")


def _budget_option(flag: str, what: str, title: str) -> TermOption:
    shown = lambda budget: UNLIMITED if budget is None else f"${budget / 1e6:,.2f}"  # noqa: E731
    return TermOption(flag, f"USD|{UNLIMITED}", what, title, _budget, shown)


def _auto_option(flag: str, what: str, title: str) -> TermOption:
    return TermOption(flag, f"CLASS|{NO_BOUND}", what, title, _bound, lambda bound: bound or "–")


OPTIONS: dict[str, TermOption] = {
    "band": TermOption("band", "BAND", "Priority: interactive, standard or batch.", "band", _word, str),
    "weight": TermOption("weight", "N", "Share within the band, 1 to 1000.", "weight", _number, str),
    "requests_per_min": _limit_option("requests-per-min", "Requests a minute.", "requests/min"),
    "tokens_per_min": _limit_option("tokens-per-min", "Tokens a minute, prompt and answer together.", "tokens/min"),
    "input_tokens_per_min": _limit_option("input-tokens-per-min", "Tokens of prompts a minute.", "input/min"),
    "output_tokens_per_min": _limit_option("output-tokens-per-min", "Tokens of answers a minute.", "output/min"),
    "concurrency": _limit_option("concurrency", "Requests at once.", "at once"),
    "budget_day_micro_usd": _budget_option("budget-day-usd", "Dollars a day, by UTC; 12.50, for one.", "a day"),
    "budget_month_micro_usd": _budget_option("budget-month-usd", "Dollars a month, by UTC.", "a month"),
    "models": TermOption(
        "models",
        f"A,B|{ALL_MODELS}",
        "Model classes that may be used.",
        "models",
        _models,
        lambda names: ", ".join(names or ["all"]),
    ),
    "auto_floor": _auto_option("auto-floor", "The smallest model class that answers requests for `auto`.", "auto from"),
    "auto_ceiling": _auto_option("auto-ceiling", "The largest.", "to"),
    "context": TermOption(
        "context",
        "|".join(STRATEGIES),
        "What is done with a conversation that does not fit its window, where the request does not say.",
        "too long",
        _strategy,
        str,
    ),
}
"""By the term's name in the admin API."""
TITLES = tuple(option.title for option in OPTIONS.values())


def takes_terms(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for each term; its argument `terms` gets those that were given.

    Raises:
        UserError: from the command, for a text that is no value of its option.
    """
    signature = inspect.signature(command, eval_str=True)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "terms"]
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(f"--{option.flag}", metavar=option.metavar, help=option.help)],
        )
        for name, option in OPTIONS.items()
    ]

    @functools.wraps(command)
    def parsed(**given: Any) -> None:
        texts = {name: given.pop(name) for name in OPTIONS}
        terms = {name: OPTIONS[name].parse(OPTIONS[name].flag, text) for name, text in texts.items() if text is not None}
        command(**given, terms=terms)

    both = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in kept]
    parsed.__signature__ = signature.replace(parameters=[*both, *added])  # type: ignore[attr-defined]
    parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in [*both, *added]}
    return parsed


def term_of(flag: str) -> str:
    """The term that an option sets: `budget-day-usd` is `budget_day_micro_usd`.

    Raises:
        UserError: none has this name.
    """
    for name, option in OPTIONS.items():
        if option.flag == flag:
            return name
    raise UserError(f"`{flag}` is no term of a plan", f"there are {', '.join(option.flag for option in OPTIONS.values())}")


def shown_terms(terms: Mapping[str, Any]) -> list[str]:
    """The cells of a table's row, under `TITLES`."""
    return [option.show(terms.get(name)) for name, option in OPTIONS.items()]
