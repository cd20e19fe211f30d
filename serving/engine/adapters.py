"""What the supervisor needs to know of an engine, and how vLLM answers it.

An engine is a stock server with an OpenAI-compatible port: the supervisor starts it by its command line, watches it through
its own metrics and asks it canary prompts. TensorRT-LLM's and TGI's servers fit the same interface.
"""

from __future__ import annotations

import ipaddress
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from serving.series import VLLM_KV_RATIO, VLLM_RUNNING, VLLM_TOKENS, VLLM_WAITING
from serving.settings import RELEASE_FOLDER

ENGINE_PORT = 8000


class EngineArgsError(Exception):
    """The arguments of pod and release do not fit together; the message names the argument."""


@dataclass(frozen=True)
class Launch:
    """All that a command line is made of."""

    model_folder: Path
    served_name: str
    """The model class: the name that requests carry."""
    host: str
    port: int
    release_args: Mapping[str, str]
    """From the manifest: what belongs to the model."""
    pod_args: Sequence[str]
    """From the pod's command line: what belongs to its shape."""
    cache_folder: Path
    """Where the engine may keep what it compiles."""


@dataclass(frozen=True)
class EngineStats:
    """What the engine says about its work."""

    num_running: int
    num_waiting: int
    progress: tuple[float, ...]
    """Numbers of which one or more change with every step."""


class EngineAdapter(Protocol):
    """One kind of engine."""

    @property
    def health_path(self) -> str:
        """200 when it can serve, 5xx when it never will again."""

    @property
    def metrics_path(self) -> str:
        """Prometheus text."""

    @property
    def version_path(self) -> str:
        """Its version."""

    @property
    def completions_path(self) -> str:
        """OpenAI completions."""

    def command(self, launch: Launch) -> tuple[str, ...]:
        """The command line. Raises EngineArgsError."""

    def environment(self, inherited: Mapping[str, str], launch: Launch) -> dict[str, str]:
        """The whole environment of the engine's process."""

    def stats(self, metrics: str) -> EngineStats:
        """What its metrics, in Prometheus text, say."""

    def version(self, document: bytes) -> str:
        """The version in the answer from `version_path`."""

    def canary_body(self, served_name: str, prompt: str, max_tokens: int, salt: str) -> dict[str, object]:
        """A greedy completion that no earlier answer can serve: `salt` keeps it out of the prefix cache."""

    def tensor_parallel(self, pod_args: Sequence[str]) -> int:
        """Over how many accelerators a layer is cut."""


VLLM_RELEASE_ARGS = frozenset(
    {
        "chat-template-content-format",
        "dtype",
        "enable-auto-tool-choice",
        "generation-config",
        "hf-overrides",
        "kv-cache-dtype",
        "quantization",
        "reasoning-parser",
        "tokenizer-mode",
        "tool-call-parser",
    }
)
"""What a manifest may set. Whoever publishes weights does not get to run code (`--trust-remote-code`) or open ports."""
_OWN_KEYS = frozenset({"model", "served-model-name", "host", "port", "uds"})
_SHORT_KEYS = {"-tp": "tensor-parallel-size", "-pp": "pipeline-parallel-size", "-dp": "data-parallel-size", "-q": "quantization"}

_PROGRESS = (
    *VLLM_TOKENS,
    "vllm:iteration_tokens_total_sum",
    # A prefill in chunks shows in none of the above before its last chunk; each chunk takes KV cache.
    VLLM_KV_RATIO,
    "vllm:prefix_cache_queries_total",
)
_NAMES = (VLLM_RUNNING, VLLM_WAITING, *_PROGRESS)


@dataclass(frozen=True)
class VllmAdapter:
    """Stock vLLM (0.32) behind `vllm.entrypoints.openai.api_server`."""

    entry: tuple[str, ...] = ("-m", "vllm.entrypoints.openai.api_server")
    """What the interpreter runs."""
    health_path: str = "/health"
    metrics_path: str = "/metrics"
    version_path: str = "/version"
    completions_path: str = "/v1/completions"

    def command(self, launch: Launch) -> tuple[str, ...]:
        """The interpreter of this environment, vLLM's server, the supervisor's arguments, the release's, then the pod's.

        Raises:
            EngineArgsError: an argument is given twice, is not the giver's to give, or the address is not the pod's own.
        """
        pod_keys = self.check(launch)
        release_args: list[str] = []
        for key, value in sorted(launch.release_args.items()):
            release_args += [f"--{key}", value] if value else [f"--{key}"]
        own_args = ["--model", str(launch.model_folder), "--served-model-name", launch.served_name]
        own_args += ["--host", launch.host, "--port", str(launch.port)]
        fixed_args = [
            f"--{key}"
            for key in ("enable-prompt-tokens-details", "disable-uvicorn-access-log", "disable-fastapi-docs")
            if key not in pod_keys
        ]
        pod_args = [arg.replace(RELEASE_FOLDER, str(launch.model_folder)) for arg in launch.pod_args]
        return (sys.executable, *self.entry, *own_args, *fixed_args, *release_args, *pod_args)

    def check(self, launch: Launch) -> set[str]:
        """Names of the pod's arguments, once all is as it may be.

        Raises:
            EngineArgsError: as of `command`.
        """
        if ipaddress.ip_address(launch.host).is_unspecified:
            raise EngineArgsError(f"the engine would listen on every address ({launch.host}); it must be the pod's own")
        pod_keys = _keys(launch.pod_args)
        _check_keys(set(launch.release_args), pod_keys)
        return pod_keys

    def environment(self, inherited: Mapping[str, str], launch: Launch) -> dict[str, str]:
        """`inherited` without AWS credentials, which an engine has no use for, and with nothing that calls out or writes home.

        vLLM's processes speak to each other on the pod's address. Under `--enforce-eager` its samplers would still compile
        themselves at the first request that wants log probabilities: 17 s, or the end of the engine where there is no compiler.
        """
        kept = {name: value for name, value in inherited.items() if not name.startswith("AWS_")}
        unless_set = {"VLLM_CACHE_ROOT": str(launch.cache_folder / "vllm"), "PYTHONUNBUFFERED": "1"}
        if "enforce-eager" in _keys(launch.pod_args):
            unless_set["TORCHDYNAMO_DISABLE"] = "1"
        fixed = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        fixed["VLLM_HOST_IP"] = launch.host
        if ipaddress.ip_address(launch.host).is_loopback:
            fixed["GLOO_SOCKET_IFNAME"] = "lo"
        return {**unless_set, **kept, **fixed}

    def stats(self, metrics: str) -> EngineStats:
        """Sums over the engine's ranks; a number that is not there is 0."""
        totals = dict.fromkeys(_NAMES, 0.0)
        for line in metrics.splitlines():
            name = line.partition("{")[0]
            if name in totals:
                totals[name] += float(line.rpartition(" ")[2])
        return EngineStats(
            num_running=int(totals[VLLM_RUNNING]),
            num_waiting=int(totals[VLLM_WAITING]),
            progress=tuple(totals[name] for name in _PROGRESS),
        )

    def version(self, document: bytes) -> str:
        """`0.32.0` from `{"version": "0.32.0"}`."""
        return str(msgspec.json.decode(document, type=dict[str, str])["version"])

    def canary_body(self, served_name: str, prompt: str, max_tokens: int, salt: str) -> dict[str, object]:
        """A body for `/v1/completions`."""
        return {"model": served_name, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "cache_salt": salt}

    def tensor_parallel(self, pod_args: Sequence[str]) -> int:
        """1 unless the pod's arguments say otherwise."""
        args = [part for arg in pod_args for part in arg.split("=", 1)]
        values = [value for key, value in itertools.pairwise(args) if _key(key) == "tensor-parallel-size"]
        return int(values[-1]) if values else 1


def canary_key(engine: str, version: str, hardware: str, tensor_parallel: int) -> str:
    """Key of the canaries that are exact for this engine on this hardware: `vllm-0.32.0-cpu-tp1`."""
    return f"{engine}-{version}-{hardware}-tp{tensor_parallel}"


def hardware_name(gpus: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """`a100-sxm4-40gb` on such a machine, as the NVIDIA driver names its first GPU; `cpu` where there is none."""
    for information in sorted(gpus.glob("*/information")):
        for line in information.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                return "-".join(value.lower().replace("nvidia", "").split())
    return "cpu"


def _check_keys(release_keys: set[str], pod_keys: set[str]) -> None:
    for key in sorted(release_keys - VLLM_RELEASE_ARGS):
        raise EngineArgsError(
            f"the release sets --{key}, which a release may not; allowed: {', '.join(sorted(VLLM_RELEASE_ARGS))}"
        )
    for key in sorted(release_keys & pod_keys):
        raise EngineArgsError(f"--{key} is set by the release and by the pod; leave it out of the catalog's engine arguments")
    for key in sorted(pod_keys & _OWN_KEYS):
        raise EngineArgsError(f"--{key} is the supervisor's to set; leave it out of the catalog's engine arguments")


def _keys(args: Sequence[str]) -> set[str]:
    """The names in their plain form: `--max_num_seqs 8 --no-enable-prefix-caching` gives max-num-seqs and enable-prefix-caching.

    Raises:
        EngineArgsError: one is there twice.
    """
    found = [key for arg in args if (key := _key(arg))]
    for key in found:
        if found.count(key) > 1:
            raise EngineArgsError(f"--{key} is there twice in the pod's arguments")
    return set(found)


def _key(arg: str) -> str:
    """The argument's name in its plain form; empty for a value."""
    name = arg.split("=", 1)[0]
    if name in _SHORT_KEYS:
        return _SHORT_KEYS[name]
    return name[2:].replace("_", "-").removeprefix("no-") if name.startswith("--") else ""
