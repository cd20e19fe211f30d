"""What can be deployed where: regions, models, model classes, environments. `stacks/catalog.yaml` as types.

A *model* is weights and how an engine runs them; a *class* (small, medium, large) is what clients ask for and what fleets are
sized by; an *environment* maps classes to models and says which regions exist. Rules that span keys are checked here, once.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from enum import StrEnum
from itertools import combinations
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from infra.instances import GPU_MEMORY_GIB, INSTANCE_SHAPES, MAX_GPUS_PER_NODE, GpuKind
from infra.naming import Names
from policies.autoscaling.policy import PolicyValues
from serving.settings import RELEASE_FOLDER, EngineKind, ModelClass

GIB = 2**30

EngineArgument = bool | int | float | str


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Precision(StrEnum):
    """Number format of the weights."""

    BFLOAT16 = "bfloat16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"


WEIGHT_BYTES: Mapping[Precision, float] = {Precision.BFLOAT16: 2.0, Precision.FP8: 1.0, Precision.INT8: 1.0, Precision.INT4: 0.5}


class Gpus(_Frozen):
    """The GPUs of one engine."""

    kind: GpuKind
    count: Annotated[int, Field(ge=1, le=MAX_GPUS_PER_NODE)]


class LoraSlots(_Frozen):
    """Room for customers' adapters in one engine."""

    slots: Annotated[int, Field(ge=1, le=256)]
    """vLLM's `--max-loras`: adapters in one batch; memory for each is taken at start."""
    max_rank: Literal[8, 16, 32, 64, 128, 256]


class Architecture(_Frozen):
    """The numbers of a transformer that decide its memory."""

    num_params: Annotated[int, Field(ge=1_000_000)]
    num_layers: Annotated[int, Field(ge=1, le=512)]
    num_kv_heads: Annotated[int, Field(ge=1, le=512)]
    """Key/value heads, not attention heads: grouped-query attention shares them, and the KV cache shrinks with them."""
    head_size: Annotated[int, Field(ge=16, le=512)]

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one token in 16 bits."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * 2


class Draft(_Frozen):
    """A small model of the same vocabulary; a release carries its files in `draft/`."""

    model_name: Annotated[str, Field(min_length=1, max_length=96)]
    architecture: Architecture


class Speculation(_Frozen):
    """Speculative decoding: tokens are proposed cheaply and the model verifies them in one pass, so the text stays its own.

    A lone stream gets faster; a full batch has no idle compute to verify with and gets slower. So models ask for it, classes
    do not by default.
    """

    num_tokens: Annotated[int, Field(ge=1, le=16)]
    """Proposed at a time."""
    draft: Draft | None = None
    """Proposes them; None looks them up in the prompt (n-grams), which costs no memory and helps where answers quote."""

    def engine_argument(self) -> str:
        """vLLM's `--speculative-config`; the supervisor puts the release's folder for `{release}`."""
        if self.draft:
            how: dict[str, EngineArgument] = {"method": "draft_model", "model": f"{RELEASE_FOLDER}/draft"}
        else:
            how = {"method": "ngram", "prompt_lookup_max": self.num_tokens}
        return json.dumps({**how, "num_speculative_tokens": self.num_tokens}, sort_keys=True, separators=(",", ":"))


KV_EVENTS_PORT, KV_REPLAY_PORT = 5557, 5558
"""Where an engine publishes what its cache holds, and where it replays that: vLLM's own defaults."""

RESERVED_ARGUMENTS: Mapping[str, str] = {
    "max_model_len": "it follows from `context_window_tokens`",
    "tensor_parallel_size": "it is a key of the model itself",
    "enable_lora": "it follows from `lora`",
    "max_loras": "it follows from `lora.slots`",
    "max_lora_rank": "it follows from `lora.max_rank`",
    "kv_events_config": "engines with an address of their own publish what their caches hold",
    "speculative_config": "it follows from `speculation`",
    "quantization": "it belongs to the release's manifest",
    "dtype": "it belongs to the release's manifest",
    "model": "the supervisor gives the verified release",
    "served_model_name": "the supervisor gives the class's name",
    "host": "the supervisor gives the pod's address",
    "port": "the supervisor gives the Service's port",
    "trust_remote_code": "releases carry weights, never code",
}


class Model(_Frozen):
    """Weights, and how one engine runs them."""

    model_name: Annotated[str, Field(min_length=1, max_length=96)]
    """The model's own name; clients may ask for it too."""
    source: Annotated[str, Field(min_length=1, max_length=200)]
    """Where `flotilla release publish` takes the weights from."""
    architecture: Architecture
    precision: Precision = Precision.BFLOAT16
    context_window_tokens: Annotated[int, Field(ge=256, le=1_048_576)]
    gpus: Gpus | None = None
    """None runs on CPUs."""
    lora: LoraSlots | None = None
    """Adapters that one engine keeps ready at once; None serves none."""
    speculation: Speculation | None = None
    engine: EngineKind = "vllm"
    """`twin` answers like vLLM and holds no model; `engine_args` are its own then (`python -m serving.twin --help`)."""
    tensor_parallel_size: Annotated[int, Field(ge=1, le=MAX_GPUS_PER_NODE)] = 1
    engine_args: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], EngineArgument] = {}
    """vLLM's own argument names with `_` for `-`; true and false are its `--x` and `--no-x`."""
    engine_env: dict[str, str] = {}
    max_in_flight_per_engine: Annotated[int, Field(ge=1, le=4096)] = 64
    """Requests one gateway keeps at one engine."""

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one token: keys and values, of each layer and KV head, in 16 bits. 28/4/128 gives 57,344 (56 KiB)."""
        return self.architecture.kv_bytes_per_token

    @property
    def weights_gib(self) -> float:
        """Size of the weights at this precision."""
        return self.architecture.num_params * WEIGHT_BYTES[self.precision] / GIB

    @property
    def publishes_cache_events(self) -> bool:
        """Gateways learn from it what its cache holds. A real vLLM binds the events' ports on every address, so several on one
        machine, which is where engines without GPUs run, would be in each other's way."""
        return self.gpus is not None or self.engine == "twin"

    @property
    def _draft(self) -> Architecture | None:
        return self.speculation.draft.architecture if self.speculation and self.speculation.draft else None

    def engine_arguments(self) -> tuple[str, ...]:
        """The command line of the engine, sorted: `("--enforce-eager", "--max-model-len", "8192", …)`."""
        derived: dict[str, EngineArgument] = {"max_model_len": self.context_window_tokens}
        if self.gpus:
            derived["tensor_parallel_size"] = self.tensor_parallel_size
        if self.lora:
            derived |= {"enable_lora": True, "max_loras": self.lora.slots, "max_lora_rank": self.lora.max_rank}
        if self.publishes_cache_events:
            derived["kv_events_config"] = json.dumps(
                {
                    "enable_kv_cache_events": True,
                    "publisher": "zmq",
                    "endpoint": f"tcp://*:{KV_EVENTS_PORT}",
                    "replay_endpoint": f"tcp://*:{KV_REPLAY_PORT}",
                }
            )
        if self.speculation:
            derived["speculative_config"] = self.speculation.engine_argument()
        line: list[str] = []
        for name, value in sorted({**self.engine_args, **derived}.items()):
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                line.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                line += [f"--{flag}", str(value)]
        return tuple(line)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in sorted(RESERVED_ARGUMENTS.keys() & self.engine_args.keys()):
            raise ValueError(f"`engine_args.{name}` is not yours to set: {RESERVED_ARGUMENTS[name]}. Remove it.")
        num_gpus = self.gpus.count if self.gpus else 1
        if self.tensor_parallel_size != num_gpus:
            raise ValueError(
                f"`tensor_parallel_size` is {self.tensor_parallel_size}, must equal `gpus.count` ({num_gpus}): an engine's GPUs "
                "are one group."
            )
        if self.gpus:
            self._check_memory(self.gpus)
        return self

    def _check_memory(self, gpus: Gpus) -> None:
        """One prompt of the whole context window must fit beside the weights, or the engine refuses to start."""
        utilization = float(self.engine_args.get("gpu_memory_utilization", 0.92))
        usable_gib = gpus.count * GPU_MEMORY_GIB[gpus.kind] * utilization
        draft = self._draft
        weights_gib = self.weights_gib + (draft.num_params * WEIGHT_BYTES[Precision.BFLOAT16] / GIB if draft else 0)
        kv_bytes_per_token = self.kv_bytes_per_token + (draft.kv_bytes_per_token if draft else 0)
        kv_gib = kv_bytes_per_token * self.context_window_tokens / GIB
        if weights_gib + kv_gib > usable_gib:
            need_gib = weights_gib + kv_gib
            raise ValueError(
                f"weights ({weights_gib:.1f} GiB) and KV of one full context ({kv_gib:.1f} GiB) need {need_gib:.1f} GiB;"
                f" {gpus.count} × {gpus.kind} at {utilization:g}: {usable_gib:.1f}. Add GPUs or shorten `context_window_tokens`."
            )


class ClassFleet(_Frozen):
    """How large the fleet of a model class is, over all regions. The peak is no number here: the capacity policy derives it."""

    launch_replicas: Annotated[int, Field(ge=1, le=10_000)]
    """Engines on the first day."""
    committed_req_per_min: Annotated[int, Field(ge=0, le=10_000_000)]
    """What the floors must carry with one region lost."""
    scaling: PolicyValues = {}
    """What of its scaling does not follow from its model; a stack file may say otherwise for its region."""


InstanceType = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*\.[a-z0-9]+$")]
_SORTED = AfterValidator(lambda names: tuple(sorted(names)))
"""Of lists whose order in the file says nothing."""


class Region(_Frozen):
    """A region of AWS."""

    code: Annotated[str, Field(pattern=r"^[a-z0-9]{3,6}$")]
    """Short form for names."""
    availability_zones: Annotated[tuple[str, ...], Field(min_length=3, max_length=3), _SORTED]
    """Sorted, since a zone's place gives it its addresses: another order in the file must not move subnets."""
    vpc_cidr: Annotated[ipaddress.IPv4Network, Field(description="/16, apart from every other region's")]
    gpu_zones: dict[InstanceType, Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    """Where AWS offers each GPU instance type. It differs by account too: `flotilla preflight` asks AWS."""


class Environment(_Frozen):
    """One deployment of everything."""

    account_id: Annotated[str, Field(pattern=r"^\d{12}$")]
    """Every provider refuses any other account."""
    home_region: str
    """Where registry and tenant writes go."""
    regions: Annotated[tuple[str, ...], Field(min_length=1), _SORTED]
    models: Annotated[dict[ModelClass, str], Field(min_length=1)]
    """Which model each class serves."""
    twins: dict[ModelClass, str] = {}
    """What a class serves where its serving stack says `twins: true`; a class that is not here stays as it is."""


class Catalog(_Frozen):
    """The whole of `stacks/catalog.yaml`."""

    name_prefix: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,15}$")]
    """Begins every physical name. S3 names are the world's: take your own."""
    regions: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")], Region], Field(min_length=1)]
    models: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")], Model], Field(min_length=1)]
    classes: dict[ModelClass, ClassFleet]
    environments: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{1,11}$")], Environment], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        faults = [*self._environment_faults(), *self._region_faults()]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _environment_faults(self) -> list[str]:
        faults: list[str] = []
        for name, environment in self.environments.items():
            key = f"environments.{name}"
            faults += [
                f"`{key}.regions` names {region!r}, must be one of {', '.join(self.regions)}. Add it to `regions`."
                for region in environment.regions
                if region not in self.regions
            ]
            if len(set(environment.regions)) < len(environment.regions):
                faults.append(f"`{key}.regions` names a region twice. Remove one.")
            if environment.home_region not in environment.regions:
                faults.append(f"`{key}.home_region` is {environment.home_region!r}, must be one of its regions.")
            for model_class, model in environment.models.items():
                if model not in self.models:
                    faults.append(f"`{key}.models.{model_class}` is {model!r}, must be one of {', '.join(self.models)}.")
                if model_class not in self.classes:
                    faults.append(
                        f"`classes.{model_class}` is missing; {name} serves it. Add its launch replicas and committed load."
                    )
            faults += [
                f"`{key}.twins.{model_class}` is {model!r}, must be a model with `engine: twin`."
                for model_class, model in environment.twins.items()
                if model not in self.models or self.models[model].engine != "twin"
            ]
        return faults

    def _region_faults(self) -> list[str]:
        faults = [
            f"`regions.{name}.vpc_cidr` is {region.vpc_cidr}, must be a /16."
            for name, region in self.regions.items()
            if region.vpc_cidr.prefixlen != 16
        ]
        for (one, first), (other, second) in combinations(self.regions.items(), 2):
            if first.vpc_cidr.overlaps(second.vpc_cidr):
                faults.append(
                    f"`regions.{other}.vpc_cidr` is {second.vpc_cidr}, overlaps {first.vpc_cidr} of {one}. Give it another."
                )
            if first.code == second.code:
                faults.append(f"`regions.{other}.code` is {second.code!r}, which {one} has. Give it another.")
        for name, region in self.regions.items():
            faults += [
                f"`regions.{name}.availability_zones` names {zone!r}, must lie in {name}."
                for zone in region.availability_zones
                if not zone.startswith(name)
            ]
            for instance_type, zones in region.gpu_zones.items():
                key = f"regions.{name}.gpu_zones.{instance_type}"
                if instance_type not in INSTANCE_SHAPES:
                    faults.append(f"`{key}`: not a known GPU instance type; known are {', '.join(INSTANCE_SHAPES)}.")
                faults += [
                    f"`{key}` names {zone!r}, must be one of {', '.join(region.availability_zones)}."
                    for zone in zones
                    if zone not in region.availability_zones
                ]
        return faults

    def names(self, environment: str) -> Names:
        """The maker of physical names in `environment`."""
        return Names(self.name_prefix, environment)
