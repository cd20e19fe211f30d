"""Preflight and the search for leftovers over a real wire: what the emulator does not know comes out as unsure, not as good."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from infra import config
from infra.naming import StackName
from infra.operations.findings import Severity, is_clear
from infra.operations.leftovers import Scope, leftovers
from infra.operations.preflight import preflight
from infra.tags import tags_of

pytestmark = pytest.mark.emulated_aws

Clients = Callable[[str, str], Any]
EMULATED_ACCOUNT = "000000000000"


def test_preflight_answers_what_it_can_and_is_unsure_of_the_rest(emulated_aws: Clients, tmp_path: Path) -> None:
    stacks_dir = Path(shutil.copytree(config.STACKS_DIR, tmp_path / "stacks"))
    catalog = stacks_dir / "catalog.yaml"
    catalog.write_text(catalog.read_text().replace("222222222222", EMULATED_ACCOUNT))
    found = preflight("prod.cluster.us-east-2", emulated_aws, datetime.now(UTC), stacks_dir)
    by_check: dict[str, set[Severity]] = {}
    for finding in found:
        by_check.setdefault(finding.check, set()).add(finding.severity)
    assert by_check["account"] == {Severity.OK}
    assert Severity.OK not in by_check["reservation"], "it holds no reservation, so none may be called good"
    assert Severity.OK not in by_check["node image"], "it has no images of EKS"
    assert by_check.keys() == {"account", "quota", "offering", "reservation", "version", "addon", "node image"}
    assert not is_clear(found)
    unsure = [finding for finding in found if finding.severity is Severity.UNSURE]
    assert unsure and all(finding.message.startswith("not answered: ") for finding in unsure)


def test_leftovers_are_found_by_their_tags(emulated_aws: Clients) -> None:
    sqs = emulated_aws("sqs", "us-east-2")
    sqs.create_queue(QueueName="left", tags=tags_of(StackName("staging", "cluster", "us-east-2"), "karpenter"))
    sqs.create_queue(QueueName="other", tags={"project": "weather"})
    found = leftovers(Scope("staging", ("us-east-2",)), emulated_aws)
    left = [finding.message for finding in found if finding.severity is Severity.BLOCKED]
    assert left == [f"arn:aws:sqs:us-east-2:{EMULATED_ACCOUNT}:left (stack staging.cluster.us-east-2)"]
