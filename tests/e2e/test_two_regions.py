"""Both regions of `local` at once: each serves from its own replica of the artifacts, and a tenant is known in both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import openai
import pytest
from e2e_support import LocalRegion, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

REGIONS = ("us-east-2", "us-west-2")
PORT_OFFSET = 21_000


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegion]:
    state = tmp_path_factory.mktemp("regions") / "local"
    both = LocalRegion(state, {**os.environ, "FLOTILLA_STATE": str(state)})
    try:
        both.run(
            "up", *(part for region in REGIONS for part in ("--region", region)), "--port-offset", str(PORT_OFFSET), timeout_s=900
        )
        yield both
    finally:
        both.run("down", "--purge", check=False)


def ask(both: LocalRegion, region: str, key: str = "") -> str:
    api = openai.OpenAI(
        base_url=both.target.regions[region].base_url, api_key=key or both.target.api_key, timeout=120, max_retries=0
    )
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = api.chat.completions.create(model="small", messages=question, temperature=0, max_tokens=16)  # type: ignore[arg-type]
    return answer.choices[0].message.content or ""


def test_one_key_and_one_release_serve_in_both_regions(both: LocalRegion) -> None:
    assert {region: "Paris" in ask(both, region) for region in REGIONS} == dict.fromkeys(REGIONS, True)
    releases = {}
    for region, where in both.target.regions.items():
        objects = both.target.aws_client("s3", region).list_objects_v2(Bucket=where.artifact_bucket)["Contents"]
        releases[region] = sorted((item["Key"], item["Size"]) for item in objects)
    assert len(releases[REGIONS[0]]) > 5
    assert releases[REGIONS[0]] == releases[REGIONS[1]]


def test_a_tenant_made_in_one_region_has_one_bill_for_both(both: LocalRegion) -> None:
    both.run("tenants", "create", "traveller")
    key = json.loads(both.run("keys", "create", "traveller", "--json").stdout)["key"]
    for region in REGIONS:
        assert "Paris" in ask(both, region, key)
    wait_until(lambda: both.usage("traveller")["requests"] == len(REGIONS), 30, "a row of each region in the ledger")


def test_a_region_that_is_not_named_keeps_running_as_it_is(both: LocalRegion) -> None:
    before = {pod["name"]: pod["started_at_ms"] for pod in both.pods()}
    report = json.loads(both.run("up", "--region", REGIONS[0], "--port-offset", str(PORT_OFFSET), "--json").stdout)
    assert report["changed"] is False
    assert {pod["name"]: pod["started_at_ms"] for pod in both.pods()} == before
    assert "Paris" in ask(both, REGIONS[1])
