"""Whether deploys are frozen: asked by `flotilla deploy`, and by the workflows as `python -m infra.recovery.freeze prod`.

Any region that can be read may say so; that none can be read is refused too: nobody means to deploy into an hour in which no
table answers.
"""

from __future__ import annotations

import sys

from infra.errors import UserError
from infra.recovery.estate import Estate, load_estate
from infra.recovery.guard import Guard, NoTable
from infra.recovery.table import FailoverTable
from policies.failover.items import DEPLOYS, FREEZE, Freeze


def refuse_frozen(estate: Estate) -> None:
    """Passes where nobody has frozen deploys.

    Raises:
        UserError: somebody has, or no region's table can be read.
    """
    guard, trouble, num_read = Guard(estate, ""), None, 0
    for region in estate.regions:
        try:
            freeze = FailoverTable(guard, estate.failover_table, region).get(Freeze, (FREEZE, DEPLOYS))
        except NoTable:  # nothing is deployed there yet, so nothing can have failed over
            freeze = None
        except UserError as error:  # a lost region cannot be read, and that is no reason to deploy nowhere
            trouble = trouble or error
            continue
        num_read += 1
        if freeze is not None and freeze.is_frozen:
            raise UserError(
                f"deploys of {estate.environment} are frozen: {freeze.reason} (run {freeze.run_id}, by {freeze.by})",
                "finish the failover (`flotilla failover status REGION`): failback and abort lift the freeze",
            )
    if trouble is not None and not num_read:
        raise trouble


def main(arguments: list[str]) -> int:
    """Exit code 0 where deploys are allowed, else 2 with the reason in one line."""
    try:
        (environment,) = arguments
        refuse_frozen(load_estate(environment))
    except ValueError:
        print("usage: python -m infra.recovery.freeze ENVIRONMENT", file=sys.stderr)  # noqa: T201 (a script of workflows)
        return 2
    except UserError as error:
        print(f"{error.message}\n  → {error.hint}", file=sys.stderr)  # noqa: T201 (a script of workflows)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
