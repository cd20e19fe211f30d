"""Records the stacks of the tree that it runs in, which may be that of another commit.

`against` starts it by path, as a process of its own, with that tree as working directory and first on the path. So it imports
nothing of ours before it runs, and asks of the other commit only what the first one with a recorder had.

    python -P record_tree.py ANSWER_FILE [STACK...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path


def main(answer_file: Path, stacks: Sequence[str]) -> None:
    """Writes `{"graphs": {stack: text}}`, or `{"error": line}`; without `stacks`, of every stack of every environment."""
    try:
        answer: dict[str, object] = {"graphs": _recorded(stacks)}
    except Exception as error:  # told in one line by whoever asked
        message = str(getattr(error, "message", error)) or type(error).__name__
        answer = {"error": message.splitlines()[0]}
    answer_file.write_text(json.dumps(answer), encoding="utf-8")


def _recorded(stacks: Sequence[str]) -> dict[str, str]:
    import infra
    from infra import config
    from infra.embedded.graph_json import encode
    from infra.embedded.recorder import environment_stacks, record

    if not Path(str(infra.__file__)).resolve().is_relative_to(Path.cwd().resolve()):
        raise ImportError(f"`infra` comes from {infra.__file__}")
    known = [stack for environment in config.load_catalog().environments for stack in environment_stacks(environment)]
    wanted = [stack for stack in known if not stacks or stack in stacks]
    return {stack: encode(graph) for stack, graph in record(wanted).items()} if wanted else {}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
