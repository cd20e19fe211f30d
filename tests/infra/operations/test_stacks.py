"""The names that deployments loop over."""

from __future__ import annotations

import json

import pytest

from infra.operations import stacks


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["prod", "--regions", "--json"], json.dumps(["us-east-2", "us-west-2"])),
        (["staging"], "staging.foundation\nstaging.cluster.us-east-2\nstaging.serving.us-east-2\nstaging.edge"),
    ],
)
def test_names_come_in_the_order_in_which_they_are_deployed(
    arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["stacks", *arguments])
    stacks.main()
    assert capsys.readouterr().out.strip() == expected
