"""What a request is let in for, and what it did cost: tokens and money, as limits take them.

Of rates the prompt and the expected answer are reserved; of budgets all that the answer may cost, at the price of an uncached
prompt. Where a budget has less left, the answer is made as short as it pays for, so that the engine itself ends it, in the right
moment and with `length`; nothing has to be looked at while it streams.
"""

from __future__ import annotations

from policies.admission.limits import Cost
from policies.billing.tariffs import Rate
from serving.gateway.context import Context
from serving.gateway.limits import EXPECTED_OUTPUT_TOKENS, Reservation
from serving.gateway.settle import Meter
from serving.metering.events import Outcome

_PICO_PER_NANO = 1000


def wanted(context: Context, num_choices: int, rate: Rate) -> Cost:
    """What to reserve before the request runs."""
    prompt_tokens = context.prompt_tokens
    return Cost(
        requests=1,
        input_tokens=prompt_tokens,
        output_tokens=num_choices * min(context.max_tokens, EXPECTED_OUTPUT_TOKENS),
        nano_usd=_nano_usd(rate, prompt_tokens, 0, num_choices * context.max_tokens),
        least_nano_usd=_nano_usd(rate, prompt_tokens, 0, num_choices * min(context.max_tokens, 1)),
    )


def used(meter: Meter | None) -> Cost:
    """What has been received for a request, and what is billed for it; nothing without a meter."""
    if meter is None:
        return Cost()
    opened = meter.opened
    rate = Rate(
        opened.price_version,
        opened.input_micro_usd_per_mtok,
        opened.cached_input_micro_usd_per_mtok,
        opened.output_micro_usd_per_mtok,
    )
    is_billed = meter.outcome is not Outcome.NOT_SERVED
    nano_usd = _nano_usd(rate, meter.prompt_tokens, meter.cached_tokens, meter.output_tokens) if is_billed else 0
    return Cost(input_tokens=meter.prompt_tokens, output_tokens=meter.output_tokens, nano_usd=nano_usd)


def allowance(reservation: Reservation, rate: Rate, num_choices: int) -> int | None:
    """Tokens of each answer that the budget pays for; None where it pays for all that were asked for.

    Example: 1,000 nano-dollars for a prompt of 400 at 1 each leave 600; at 2 a token that is 300 tokens, or 150 of two answers.
    """
    if reservation.bound_by == "admitted" or not rate.output_micro_usd_per_mtok:
        return None
    prompt = reservation.cost.input_tokens * rate.input_micro_usd_per_mtok
    left = reservation.granted_nano_usd * _PICO_PER_NANO - prompt
    return left // (rate.output_micro_usd_per_mtok * num_choices)


def _nano_usd(rate: Rate, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> int:
    """Rounded up: what is rounded down is never paid for."""
    return -(-rate.cost_pico_usd(prompt_tokens, cached_tokens, output_tokens) // _PICO_PER_NANO)
