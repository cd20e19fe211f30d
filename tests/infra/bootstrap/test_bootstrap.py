"""The Terraform that Pulumi needs first: its own tests, with no cloud, and an apply to the emulated AWS.

Both need terraform on PATH and the AWS provider in a filesystem mirror: in one of the places where terraform looks, below /opt,
or where FLOTILLA_TERRAFORM_PLUGINS says. Nothing is downloaded; without them the tests are skipped, and say what is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.config import load_catalog
from infra.naming import LOCAL

BOOTSTRAP = Path(__file__).resolve().parents[3] / "infra" / "bootstrap"
PLUGINS_VARIABLE = "FLOTILLA_TERRAFORM_PLUGINS"
PROVIDER = "registry.terraform.io/hashicorp/aws"
HOME, OTHER = "us-east-2", "us-west-2"
TIMEOUT_S = 240
EMULATED = """
provider "aws" {
  s3_use_path_style = true
}
provider "aws" {
  alias             = "replica"
  s3_use_path_style = true
}
"""
"""What an override file adds for the emulated AWS; its address comes by AWS_ENDPOINT_URL."""

pytestmark = pytest.mark.timeout(2 * TIMEOUT_S)


@dataclass(frozen=True)
class Terraform:
    """Runs terraform in a copy of the folder, with nothing of this machine's but the provider."""

    folder: Path
    settings: Path

    def __call__(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        ours = {"TF_CLI_CONFIG_FILE": str(self.settings), "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
        return subprocess.run(
            ["terraform", *arguments],
            cwd=self.folder,
            env={**kept, **ours, **(env or {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )


def provider_version() -> str:
    found = re.search(r'source\s*=\s*"hashicorp/aws"\s*version\s*=\s*"([\d.]+)"', (BOOTSTRAP / "versions.tf").read_text())
    assert found, "versions.tf pins the provider"
    return found[1]


def mirror() -> Path | None:
    """A filesystem mirror that has the provider."""
    named = os.environ.get(PLUGINS_VARIABLE)
    usual = [Path("~/.terraform.d/plugins").expanduser(), Path("/usr/local/share/terraform/plugins"), *Path("/opt").glob("*")]
    places = [Path(named)] if named else usual
    return next((place for place in places if (place / PROVIDER / provider_version()).is_dir()), None)


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    """Terraform, initialised."""
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not on PATH")
    plugins = mirror()
    if plugins is None:
        pytest.skip(f"no filesystem mirror has {PROVIDER} {provider_version()}; {PLUGINS_VARIABLE} may name one")
    folder = tmp_path_factory.mktemp("bootstrap")
    shutil.copytree(BOOTSTRAP, folder / "copy", ignore=shutil.ignore_patterns(".terraform", "*.tfstate*"))
    settings = folder / "terraformrc"
    settings.write_text(f'provider_installation {{\n  filesystem_mirror {{\n    path = "{plugins}"\n  }}\n}}\n')
    terraform = Terraform(folder / "copy", settings)
    initialised = terraform("init", "-input=false", "-no-color", "-lockfile=readonly")
    assert initialised.returncode == 0, initialised.stderr
    return terraform


def test_it_is_formatted_and_valid(terraform: Terraform) -> None:
    formatted = terraform("fmt", "-check", "-recursive")
    assert formatted.returncode == 0, f"terraform fmt -recursive would change {formatted.stdout}"
    valid = terraform("validate", "-no-color")
    assert valid.returncode == 0, valid.stdout + valid.stderr


def test_its_own_tests_pass(terraform: Terraform) -> None:
    tested = terraform("test", "-no-color")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    passed = re.search(r"Success! (\d+) passed, 0 failed", tested.stdout)
    assert passed and int(passed[1]) >= 7, tested.stdout


@pytest.mark.slow
@pytest.mark.emulated_aws
def test_it_applies_twice_and_state_is_copied_without_its_locks(
    terraform: Terraform, emulated_aws: Callable[[str, str], Any], emulated_aws_url: str
) -> None:
    env = {
        "AWS_ENDPOINT_URL": emulated_aws_url,
        "AWS_ACCESS_KEY_ID": "emulated",
        "AWS_SECRET_ACCESS_KEY": "emulated",
        "TF_VAR_name_prefix": "flotilla",
        "TF_VAR_environment": "prod",
        "TF_VAR_account_id": "000000000000",
        "TF_VAR_regions": json.dumps([HOME, OTHER]),
        "TF_VAR_repository": "example/flotilla",
    }
    (terraform.folder / "emulated_override.tf").write_text(EMULATED)
    applied = terraform("apply", "-auto-approve", "-input=false", "-no-color", env=env)
    assert applied.returncode == 0, applied.stderr
    again = terraform("plan", "-detailed-exitcode", "-input=false", "-no-color", env=env)
    assert again.returncode == 0, f"a second apply would change something:\n{again.stdout}{again.stderr}"

    outputs = json.loads(terraform("output", "-json", env=env).stdout)
    assert outputs["deploy_role_arns"]["value"].keys() == {"global", HOME, OTHER}
    buckets = {region: f"flotilla-prod-state-{region}" for region in (HOME, OTHER)}
    for region, bucket in buckets.items():
        s3 = emulated_aws("s3", region)
        assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
        lock = s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]
        assert lock["Rule"]["DefaultRetention"] == {"Mode": "GOVERNANCE", "Days": 30}
    source, target = HOME, OTHER
    stack, lock_file = (
        ".pulumi/stacks/flotilla/prod.foundation.json",
        ".pulumi/locks/organization/flotilla/prod.foundation/1.json",
    )
    for key in (lock_file, stack):
        emulated_aws("s3", source).put_object(Bucket=buckets[source], Key=key, Body=b"{}")
    deadline = time.monotonic() + 10
    copied: set[str] = set()
    while stack not in copied:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        listed = emulated_aws("s3", target).list_objects_v2(Bucket=buckets[target]).get("Contents", [])
        copied = {item["Key"] for item in listed}
    assert copied == {stack}, "a copied lock would be stale for ever"


@pytest.mark.parametrize("environment", [name for name in load_catalog().environments if name != LOCAL])
def test_its_values_are_those_of_the_catalog(environment: str) -> None:
    """Terraform cannot read the catalog, so it is told the same again."""
    catalog = load_catalog()
    given = dict(re.findall(r'^(\w+)\s*=\s*(\[.*?\]|".*?")', (BOOTSTRAP / f"{environment}.tfvars").read_text(), re.MULTILINE))
    told = {name: json.loads(value) for name, value in given.items() if name != "repository"}
    declared = catalog.environments[environment]
    others = [region for region in declared.regions if region != declared.home_region]
    assert told == {
        "name_prefix": catalog.name_prefix,
        "environment": environment,
        "account_id": declared.account_id,
        "regions": [declared.home_region, *others],
    }
