"""The twin as an engine: vLLM's interface behind another command line.

A twin takes from a release its tokenizer and template, so any release will do; its answers are the twin's own, so only a twin's
release has canaries that it gives.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from serving.engine.adapters import EngineArgsError, Launch, VllmAdapter


@dataclass(frozen=True)
class TwinAdapter(VllmAdapter):
    """`python -m serving.twin`."""

    entry: tuple[str, ...] = ("-m", "serving.twin")

    def command(self, launch: Launch) -> tuple[str, ...]:
        """As vLLM's; a release sets nothing, as there is nothing of a model to set.

        Raises:
            EngineArgsError: an argument is given twice, or is not the giver's to give.
        """
        if launch.release_args:
            raise EngineArgsError(f"the release sets --{min(launch.release_args)}, which a twin does not have")
        self.check(launch)
        own_args = ["--model", str(launch.model_folder), "--served-model-name", launch.served_name]
        own_args += ["--host", launch.host, "--port", str(launch.port)]
        return (sys.executable, *self.entry, *own_args, *launch.pod_args)

    def canary_body(self, served_name: str, prompt: str, max_tokens: int, salt: str) -> dict[str, object]:
        """As vLLM's; a twin ends answers at a length of its own unless it is told not to."""
        return {**super().canary_body(served_name, prompt, max_tokens, salt), "ignore_eos": True}
