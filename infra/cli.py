"""The command line: assembled from the `commands.py` beside what each group drives, and nothing else.

Commands call functions and hold no logic. What a person can mend arrives here as a UserError and leaves as one line and exit
code 2; anything else is our fault, leaves as one line and exit code 1, and shows its traceback with FLOTILLA_DEBUG=1.
"""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from infra.capacity import commands as capacity
from infra.costs import commands as costs
from infra.drills import commands as drills
from infra.embedded import commands as region
from infra.embedded import fault_commands as faults
from infra.guardrails import commands as guardrails
from infra.images import commands as images
from infra.operations import commands as operations
from infra.recovery import commands as recovery
from infra.restores import commands as restores
from infra.scaling import commands as scaling
from serving.errors import UserError
from serving.gateway import commands as gateway
from serving.gateway import exclusion_commands as exclusions
from serving.gateway import plan_commands as plans
from serving.metering import commands as metering
from serving.models import commands as models

app = typer.Typer(
    name="flotilla",
    help="LLM serving as code: run a region on this machine, and look after one anywhere.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
region.register(app)
faults.register(app)
drills.register(app)
operations.register(app)
recovery.register(app)
restores.register(app)
guardrails.register(app)
costs.register(app)
capacity.register(app)
scaling.register(app)
gateway.register(app)
plans.register(app)
exclusions.register(app)
metering.register(app)
models.register(app)
images.register(app)


def main() -> None:
    """Entry point of the `flotilla` script."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        app()
    except UserError as error:
        for line in error.message.splitlines():
            errors.print("flotilla:", line, style="bold red", markup=False)
        if error.hint:
            errors.print("  →", error.hint, markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if os.environ.get("FLOTILLA_DEBUG"):
            raise
        errors.print(f"flotilla: unexpected {type(error).__name__}: {error}", style="bold red", markup=False)
        errors.print("  → this is a defect; FLOTILLA_DEBUG=1 shows where", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
