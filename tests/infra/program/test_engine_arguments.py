"""What the catalog asks of an engine, put to its own parser (the pinned vLLM's, the twin's): an argument unknown to it stops a
fleet at start."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra.config import load_catalog
from serving.twin.__main__ import parser
from serving.twin.release import SOURCE

REPOSITORY = Path(__file__).resolve().parents[3]
PYTHON = REPOSITORY / ".venv-engine/bin/python"
PARSE = """
import contextlib, dataclasses, io, json, sys
from vllm.config.speculative import SpeculativeConfig
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

known = {field.name for field in dataclasses.fields(SpeculativeConfig)}
answers = {}
for name, line in json.load(sys.stdin).items():
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = vars(make_arg_parser(FlexibleArgumentParser()).parse_args(line))
    except SystemExit:
        answers[name] = {"refused": said.getvalue()}
        continue
    speculative = parsed["speculative_config"] or {}
    answers[name] = {
        "max_model_len": parsed["max_model_len"],
        "tensor_parallel_size": parsed["tensor_parallel_size"],
        "enable_lora": bool(parsed["enable_lora"]),
        "unknown": sorted(speculative.keys() - known),
    }
json.dump(answers, sys.stdout)
"""


def asked(lines: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HOME": os.environ["HOME"]}
    done = subprocess.run(
        [PYTHON, "-c", PARSE], input=json.dumps(lines), capture_output=True, text=True, timeout=110, env=environment, check=True
    )
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.mark.engine
def test_vllm_accepts_the_arguments_of_every_model_and_refuses_a_misspelt_one() -> None:
    models = {name: model for name, model in load_catalog().models.items() if model.engine == "vllm"}
    lines = {name: list(model.engine_arguments()) for name, model in models.items()}
    answers = asked({**lines, "misspelt": ["--max-num-seq-s", "8"], "wrong type": ["--max-num-seqs", "many"]})
    for name in ("misspelt", "wrong type"):
        assert "max-num-seq" in answers.pop(name)["refused"]
    assert answers == {
        name: {
            "max_model_len": model.context_window_tokens,
            "tensor_parallel_size": model.tensor_parallel_size,
            "enable_lora": model.lora is not None,
            "unknown": [],
        }
        for name, model in models.items()
    }
    assert sum(model.speculation is not None for model in models.values()) == 2, "both ways to speculate were asked"


def test_a_twin_accepts_the_arguments_of_every_twin() -> None:
    twins = {name: model for name, model in load_catalog().models.items() if model.engine == "twin"}
    for name, model in twins.items():
        found = parser().parse_args(list(model.engine_arguments()))
        assert found.max_model_len == model.context_window_tokens, name
        assert found.enable_lora is (model.lora is not None)
    assert {model.source for model in twins.values()} == {SOURCE}
    assert len(twins) == 3
