"""How to reach what is up: the `access.json` that the other commands read, and the lines that a person pastes.

The demo key cannot be recovered, so it is kept, readable by its owner alone; `down` sets the file aside, since nothing
answers then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec

from infra.embedded import state as files
from infra.embedded.state import State
from serving.http_client import ApiRefusal, open_url
from serving.settings import GatewaySettings
from serving.target import LOCAL, RegionTarget, Target

DEMO_TENANT = "demo"
DEMO_KEY_NAME = "local"
QUESTION = "What is the capital of France?"


def target_of(
    aws_url: str, settings: Mapping[str, GatewaySettings], host_addresses: Mapping[str, Mapping[str, str]], api_key: str = ""
) -> Target:
    """The target of the regions in `settings`, each by its gateway's own settings; `host_addresses` by region and port name.

    A region without addresses has data and no gateway. The admin key is read from where the gateways read it.
    """
    some = next(iter(settings.values()))
    regions = {}
    for region, its in settings.items():
        addresses = host_addresses.get(region, {})
        regions[region] = RegionTarget(
            base_url=f"http://{addresses['http']}/v1" if addresses else "",
            admin_url=f"http://{addresses['admin']}" if addresses else "",
            artifact_bucket=its.artifact_bucket,
            tables=its.tables.model_dump(),
            archive_bucket=its.archive_bucket,
        )
    target = Target(LOCAL, some.home_region, "", api_key, regions, aws_url)
    secret = target.aws_client("secretsmanager", some.home_region).get_secret_value(SecretId=some.secrets.admin_key)
    return msgspec.structs.replace(target, admin_key=secret["SecretString"])


def ensure_key(target: Target, state: State) -> tuple[str, bool]:
    """A key of the demo tenant that works, and whether it had to be made: the one kept, if the gateway takes it."""
    from serving.gateway.admin_client import create_key, ensure_tenant

    kept = _kept_key(state)
    if kept and _is_accepted(target, kept):
        return kept, False
    ensure_tenant(target, DEMO_TENANT)
    return create_key(target, DEMO_TENANT, name=DEMO_KEY_NAME), True


def save(state: State, target: Target) -> None:
    """Writes `access.json`."""
    files.write_json(state.access_file, target)


def set_aside(state: State) -> None:
    """Takes `access.json` away from the other commands, and keeps its key for the next `up`."""
    if state.access_file.exists():
        state.access_file.replace(_aside(state))


def curl(base_url: str, api_key: str, model: str) -> str:
    """A command line that asks the model a question."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0})
    headers = f'-H "Authorization: Bearer {api_key}" -H "Content-Type: application/json"'
    return f"curl {base_url}/chat/completions {headers} -d '{body}'"


def python(base_url: str, api_key: str, model: str) -> str:
    """The same with OpenAI's own client."""
    return "\n".join(
        (
            "from openai import OpenAI",
            "",
            f'client = OpenAI(base_url="{base_url}", api_key="{api_key}")',
            "answer = client.chat.completions.create(",
            f'    model="{model}", messages=[{{"role": "user", "content": "{QUESTION}"}}], temperature=0',
            ")",
            "print(answer.choices[0].message.content)",
        )
    )


def _aside(state: State) -> Path:
    return state.access_file.with_name("access.down.json")


def _kept_key(state: State) -> str:
    for path in (state.access_file, _aside(state)):
        if kept := files.read(path, Target):
            return kept.api_key
    return ""


def _is_accepted(target: Target, key: str) -> bool:
    _, region = target.region()
    try:
        with open_url("GET", f"{region.base_url}/models", key, timeout_s=10):
            return True
    except ApiRefusal as refusal:
        if refusal.code == "invalid_api_key":
            return False
        raise
