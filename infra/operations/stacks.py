"""Names of an environment's stacks or regions, for a shell: `python -m infra.operations.stacks prod --regions --json`."""

from __future__ import annotations

import argparse
import json

from infra import config
from infra.embedded.recorder import environment_stacks


def main() -> None:
    """Prints a name a line, in the order in which they are deployed; with --json one list on one line."""
    options = argparse.ArgumentParser(prog="python -m infra.operations.stacks", description=__doc__)
    options.add_argument("environment")
    options.add_argument("--regions", action="store_true", help="its regions, the home region first, and not its stacks")
    options.add_argument("--json", action="store_true", help="one JSON list")
    given = options.parse_args()
    names = regions(given.environment) if given.regions else environment_stacks(given.environment)
    print(json.dumps(names) if given.json else "\n".join(names))  # noqa: T201 (a script's output)


def regions(environment: str) -> list[str]:
    """Regions of the environment, the home region first: what others depend on is deployed before them.

    Raises:
        ConfigError: there is no such environment.
    """
    known = config.environment_of(config.load_catalog(), environment)
    return [known.home_region, *(region for region in known.regions if region != known.home_region)]


if __name__ == "__main__":
    main()
