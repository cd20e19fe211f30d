"""`make drill-image`: the image is built twice, changed, opened, and run as it would be in a cluster. Needs a builder and runc.

Gateway, shipper and engine run from the image's own root file system, read-only and not as root, against the emulated AWS and
the Valkey of a region that `flotilla up` brings up; that region's own processes serve nothing here. Prints a table and, last,
one line of JSON; exits 1 where a figure does not hold. With --write-docs, the measured tables of docs/image.md are written anew.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

sys.path.insert(0, str(Path(__file__).parent))
import image_tables as tables
from containers import Container, config_of, start, unpack, wait_until

from infra.embedded.desired import MARKER
from infra.embedded.state import State
from serving.errors import UserError
from serving.image.build import Image, build, size_table
from serving.image.builders import choose
from serving.image.secrets import find_secrets
from serving.image.tree import REPOSITORY
from serving.metering.events import UsageClose
from serving.metering.framing import decode_segment
from serving.metering.segments import SEALED, list_segments

FLOTILLA = Path(sys.executable).parent / "flotilla"
IMAGES = REPOSITORY / ".image"
PORT_OFFSET = 23_000
ENGINE, GATEWAY = "engine-small", "gateway"
ADDRESS = {ENGINE: "127.77.0.2", GATEWAY: "127.77.0.3"}
COMPILERS = ("gcc", "cc", "g++", "c++", "cc1", "clang", "tcc", "ld", "as", "make", "rustc", "go", "nvcc", "ptxas", "cicc")
MANAGERS = ("apt", "apt-get", "dpkg", "pip", "pip3", "uv", "npm")
CACHES = ("root/", "home/", "tmp/", "var/cache/", "var/lib/apt/", "var/lib/dpkg/", "var/tmp/")
"""Where installers and people leave files."""
NUM_STREAMS, STREAM_TOKENS = 4, 24
"""So few that two slow cores finish them within the gateway's time to drain."""
MAX_REBUILD_S, MAX_REBUILD_MB = 60.0, 20.0

figures: dict[str, Any] = {}
checks: dict[str, bool] = {}


def note(name: str, value: Any, holds: bool | None = None) -> None:
    figures[name] = value
    if holds is not None:
        checks[name] = holds
    print(f"{name:<34}{value!s:>24}   {'' if holds is None else 'holds' if holds else 'DOES NOT HOLD'}", flush=True)


def builds(work: Path) -> Image:
    """The build that `make image` keeps, one from nothing, one of changed code, and one with a secret in it."""
    kept = build("cpu", IMAGES)
    fresh = build("cpu", work)
    note("build_from_nothing_s", round(fresh.took_s, 1))
    note("digest", fresh.digest.removeprefix("sha256:")[:16])
    note("second_build_has_same_digest", fresh.digest == kept.digest, fresh.digest == kept.digest)
    note("pulled_gib", round(kept.compressed_bytes / 2**30, 3))

    changed = work / "changed"
    changed.mkdir()
    for name in ("serving", "policies", "infra", "requirements", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, changed / name)
    with (changed / "serving/process.py").open("a") as file:
        file.write("\n# A change.\n")
    rebuilt = build("cpu", work, changed)
    new_mb = sum(layer.compressed_bytes for layer in rebuilt.layers if layer not in kept.layers) / 1e6
    note("rebuild_s", round(rebuilt.took_s, 1), rebuilt.took_s <= MAX_REBUILD_S)
    note("rebuild_new_layers_mb", round(new_mb, 2), 0 < new_mb <= MAX_REBUILD_MB)

    (changed / "serving/settings_local.py").write_text('KEY = "AKIA' + "QX7RSTUVWXYZ2345" + '"\n')
    try:
        build("cpu", work, changed)
        note("planted_secret_is_refused", False, False)
    except UserError as error:
        note("planted_secret_is_refused", True, "serving/settings_local.py" in error.message)
    return kept


def contents(root: Path, folder: Path) -> None:
    """What must not be in the image, and is every licence known."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    programs = {path.name for path in files if path.stat().st_mode & 0o111}
    for what, names in (("compilers", COMPILERS), ("package_managers", MANAGERS)):
        found = sorted(programs & set(names))
        note(f"num_{what}", len(found), not found)
    caches = [path for path in files if path.relative_to(root).as_posix().startswith(CACHES)]
    note("num_cached_files", len(caches), not caches)
    site = root / "opt/flotilla/site"
    tests = [path for path in root.rglob("tests") if path.is_dir()] + list((root / "opt/flotilla/app").rglob("infra"))
    note("num_test_folders", len(tests), not tests and (site / "vllm").is_dir())
    secrets = list(find_secrets(root))
    note("num_secrets", len(secrets), not secrets)
    set_id = [path for path in files if path.stat().st_mode & 0o6000]
    note("num_set_user_id_files", len(set_id), not set_id)
    licences = (folder / "licences.txt").read_text().splitlines()
    distributions = list(site.glob("*.dist-info"))
    note("num_licences_listed", len(licences), len(licences) > len(distributions) > 150)
    sbom = json.loads((folder / "sbom.cdx.json").read_text())
    note("num_sbom_components", len(sbom["components"]), len(sbom["components"]) == len(licences))


@contextmanager
def region(work: Path) -> Iterator[Path]:
    """A region whose emulated AWS, release and cache the image's processes use."""
    state = work / "region"
    env = {**os.environ, "FLOTILLA_STATE": str(state)}

    def flotilla(*arguments: str) -> None:
        subprocess.run([str(FLOTILLA), *arguments], cwd=REPOSITORY, env=env, check=True, stdout=subprocess.DEVNULL, timeout=900)

    flotilla("up", "--port-offset", str(PORT_OFFSET))
    try:
        yield state
    finally:
        flotilla("down", "--purge")


def process_of(workload: str, container: str, state: Path) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the region's own process of that container: what the program declares, made concrete."""
    of = re.compile(rf"{State(state).tag}/[a-z0-9-]+\.[a-z]+\.{workload}-[a-z0-9-]+/{container}")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode().split("\0")[:-1]
                environ = (entry / "environ").read_bytes().decode().split("\0")[:-1]
            except OSError:
                continue
            environment = dict(item.partition("=")[::2] for item in environ)
            if command[1:2] == ["-m"] and command[2].startswith("serving.") and of.fullmatch(environment.get(MARKER, "")):
                return command[1:], environment
    raise AssertionError(f"no process of {workload}/{container} runs below {state}")


class Pods:
    """Gateway, shipper and engine from the image."""

    def __init__(self, root: Path, layout: Path, work: Path, state: Path) -> None:
        self.root, self.work, self.state = root, work, state
        self.image_env = dict(item.partition("=")[::2] for item in config_of(layout)["Env"])  # type: ignore[attr-defined]
        self.journal, self.cache, self.endpoints = (work / "pod" / name for name in ("journal", "cache", "endpoints"))
        self.endpoints.mkdir(parents=True)

    def start(self, workload: str, container: str) -> Container:
        """The container as the region runs it, but from the image: with paths and an address of its own."""
        command, theirs = process_of(workload, container, self.state)
        ours = {key: value for key, value in theirs.items() if key.startswith(("FLOTILLA_", "AWS_", "VLLM_")) and key != MARKER}
        settings = self.work / "pod/settings" / container
        # A copy: the region's own is private to its user, as a Secret is to its pod.
        settings.mkdir(parents=True)
        settings_file = settings / Path(theirs["FLOTILLA_SETTINGS_FILE"]).name
        settings_file.write_bytes(Path(theirs["FLOTILLA_SETTINGS_FILE"]).read_bytes())
        ours |= {"FLOTILLA_SETTINGS_FILE": str(settings_file), "FLOTILLA_POD_IP": ADDRESS[workload]}
        ours["FLOTILLA_POD_NAME"] = f"{workload}-9"  # the region's own gateway is 0, and names its segments so
        if workload == ENGINE:
            writable, readable = [self.cache], [settings]
            ours |= {"FLOTILLA_MODEL_CACHE_DIR": str(self.cache)}
        else:
            writable, readable = [self.journal], [settings, self.endpoints]
            ours |= {"FLOTILLA_JOURNAL_DIR": str(self.journal), "FLOTILLA_ENDPOINTS_DIR": str(self.endpoints)}
        bundle = self.work / "bundles" / container
        return start(
            container, self.root, bundle, ["python", *command], {**ours, **self.image_env}, writable=writable, readable=readable
        )

    def point_gateway_at_engine(self) -> None:
        found = [{"name": f"{ENGINE}-9", "address": ADDRESS[ENGINE], "ready": True}]
        path = self.endpoints / "serving.engine-small.json"
        path.write_text(json.dumps({"ports": {"http": 8000}, "endpoints": found}))

    def num_closed(self) -> int:
        segments = list_segments(self.journal, SEALED)
        records = [record for path in segments for record in decode_segment(path.read_bytes()).records]
        return sum(isinstance(record, UsageClose) for record in records)


def drained(client: openai.OpenAI, container: Container) -> int:
    """Streams that complete although `container` is told to stop in the middle of all of them."""
    prompt: list[Any] = [{"role": "user", "content": "Count from one to a hundred."}]
    begun = threading.Semaphore(0)

    def stream() -> str | None:
        reason, num_pieces = None, 0
        try:
            for piece in client.chat.completions.create(
                model="small", messages=prompt, max_tokens=STREAM_TOKENS, stream=True, temperature=0
            ):
                num_pieces += 1
                if num_pieces == 2:  # the first names the role, and comes before any token
                    begun.release()
                if piece.choices:
                    reason = piece.choices[0].finish_reason
        finally:
            if num_pieces < 2:
                begun.release()
        return reason

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        futures = [pool.submit(stream) for _ in range(NUM_STREAMS)]
        for _ in futures:
            assert begun.acquire(timeout=60), "a stream did not begin within 60 s"
        container.signal("TERM")
        running = sum(not future.done() for future in futures)
        assert running == NUM_STREAMS, f"only {running} streams were still running: ask for more tokens"
        return sum(future.result(90) in ("length", "stop") for future in futures)


def note_cold_start(log: str) -> None:
    """The supervisor's ledger of the start, and what vLLM tells of its part."""
    ledger = json.loads(next(line for line in log.splitlines() if '"cold_start"' in line))
    for phase in ("fetch_s", "verify_s", "load_s", "warm_up_s", "total_s"):
        note(f"cold_start_{phase}", ledger[phase])
    for name, pattern in (
        ("weights_s", r"Loading weights took ([\d.]+) s"),
        ("init_engine_s", r"warmup model\) took ([\d.]+) s"),
    ):
        found = re.search(pattern, log)
        assert found, f"vLLM's log no longer has {pattern!r}"
        note(f"cold_start_load_{name}", float(found[1]))


def roles(work: Path) -> None:
    """Every role from the image: start, answer, drain."""
    root, layout = work / "rootfs", IMAGES / "cpu/oci"
    unpack(layout, root)
    contents(root, IMAGES / "cpu")
    containers: list[Container] = []
    with region(work) as state:
        pods = Pods(root, layout, work, state)
        try:
            engine = pods.start(ENGINE, "engine")
            containers.append(engine)
            note("engine_ready_s", round(wait_until(f"http://{ADDRESS[ENGINE]}:8001/readyz", engine, 300), 1))
            note_cold_start(engine.log.read_text())
            pods.point_gateway_at_engine()
            gateway = pods.start(GATEWAY, "gateway")
            shipper = pods.start(GATEWAY, "shipper")
            containers += [gateway, shipper]
            note("gateway_ready_s", round(wait_until(f"http://{ADDRESS[GATEWAY]}:8081/readyz", gateway, 60), 1))
            wait_until(f"http://{ADDRESS[GATEWAY]}:8082/readyz", shipper, 60)
            asked = gateway.execute("python", "-c", "import os; print(os.getuid()); open('/opt/flotilla/x', 'w')")
            note("runs_as_user_id", asked.stdout.strip(), asked.stdout.strip() == "10001")
            note("root_is_read_only", "Read-only file system" in asked.stderr, "Read-only file system" in asked.stderr)
            healthy = gateway.execute("python", "-m", "serving.health").returncode
            note("health_command_exit_code", healthy, healthy == 0)
            key = json.loads((state / "access.json").read_text())["api_key"]
            client = openai.OpenAI(base_url=f"http://{ADDRESS[GATEWAY]}:8080/v1", api_key=key, max_retries=0, timeout=120)
            question: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
            answer = client.chat.completions.create(model="small", messages=question, max_tokens=16, temperature=0)
            said = (answer.choices[0].message.content or "").strip()
            note("answer", said[:24], "Paris" in said)
            num_done = drained(client, gateway)
            note("streams_completed_in_drain", num_done, num_done == NUM_STREAMS)
            code = gateway.wait(60)
            note("gateway_exit_code", code, code == 0)
            shipper.signal("TERM")
            code = shipper.wait(60)
            note("shipper_exit_code", code, code == 0)
            closed = pods.num_closed()
            note("requests_recorded", closed, closed == NUM_STREAMS + 1)
            direct = openai.OpenAI(base_url=f"http://{ADDRESS[ENGINE]}:8000/v1", api_key="-", max_retries=0, timeout=120)
            num_done = drained(direct, engine)
            note("engine_streams_completed_in_drain", num_done, num_done == NUM_STREAMS)
            code = engine.wait(60)
            note("engine_exit_code", code, code == 0)
        finally:
            for container in containers:
                container.end()


def write_tables(image: Image) -> None:
    """The measured tables of the document."""
    tables.write("layers", size_table(image))
    phases = ("fetch_s", "verify_s", "load_s", "load_weights_s", "load_init_engine_s", "warm_up_s", "total_s")
    names = ("fetch", "verify", "load", "of it, weights", "of it, memory and warm-up of the engine", "warm_up", "together")
    rows = [[name, f"{figures[f'cold_start_{phase}']:.2f}"] for name, phase in zip(names, phases, strict=True)]
    tables.write("measured cold start", tables.markdown(["phase", "seconds"], rows))


def main(arguments: list[str]) -> int:
    try:
        choose(IMAGES / "storage")
        if shutil.which("runc") is None:
            raise UserError("runc is not here", "install it (`apt-get install runc`): the roles are run with it")
        IMAGES.mkdir(exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="drill-", dir=IMAGES))
        try:
            image = builds(work)
            roles(work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except UserError as error:
        print(f"{error.message}\n  → {error.hint}", file=sys.stderr)
        return 2
    if "--write-docs" in arguments:
        write_tables(image)
    holds = all(checks.values())
    print(json.dumps({**figures, "num_cpus": os.cpu_count(), "machine": platform.machine(), "holds": holds}))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
