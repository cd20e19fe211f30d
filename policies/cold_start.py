"""How long a new engine takes until it serves, by phase: a model of A100 nodes, until one has been measured.

The phases are those of the supervisor's ledger (`flotilla_engine_phase_seconds`), with the node's pull before them and `load`
taken apart. Each rate says whether somebody measured it or we assume it. What it takes to get the node is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

GB_PER_GIB = 2**30 / 1e9
IMAGE_GB = 10.76
"""vLLM's image as it is pulled; see `Rates.pull_gb_per_s`."""
NUM_WEIGHT_FILES = 8
HASHED_AT_ONCE = 8
"""Files that the supervisor verifies at a time."""


@dataclass(frozen=True)
class Rates:
    """What an A100 node (p4d, p4de: 96 vCPU, 400 Gbit/s, NVMe) and vLLM do a second."""

    pull_gb_per_s: float = 0.078
    """Measured by others: vLLM's image of 10.76 GB by the default pull in 138 s (aws-samples/karpenter-blueprints#32)."""
    connection_gb_per_s: float = 0.085
    """One S3 request; AWS advises one request at a time for each 85 to 90 MB/s ("Performance design patterns for Amazon S3")."""
    num_connections: int = 16
    """`fetch_concurrency` of the engine's settings."""
    hash_gb_per_s: float = 0.5
    """SHA-256 on one core. Assumed: Cascade Lake has AVX2 and no SHA extensions."""
    load_gb_per_s: float = 4.0
    """Weights from page cache to one GPU. Measured by others: 3.42 GiB in 0.90 s (vllm-project/vllm#20264)."""
    start_s: float = 25.0
    """Interpreter, imports, worker processes, CUDA contexts. Assumed; the same issue has 30 s that no log accounts for."""
    compile_s: float = 45.0
    """torch.compile with an empty cache. Assumed."""
    compile_cached_s: float = 7.5
    """The same with the cache that the model cache keeps over restarts. Measured by others, in the same issue."""
    capture_s: float = 17.0
    """CUDA graphs. Measured by others, in the same issue."""
    warm_up_s: float = 2.0
    """Canary prompts. Assumed."""


@dataclass(frozen=True)
class ColdStart:
    """Seconds of each phase."""

    pull_s: float
    fetch_s: float
    verify_s: float
    load_s: float
    """Start of the engine's processes, and weights into GPUs."""
    compile_s: float
    """torch.compile and CUDA graphs; vLLM does both before it calls itself healthy, so the ledger has them in `load`."""
    warm_up_s: float

    @property
    def total_s(self) -> float:
        """All phases; none overlaps another."""
        return self.pull_s + self.fetch_s + self.verify_s + self.load_s + self.compile_s + self.warm_up_s


def model_cold_start(
    image_gb: float, weights_gib: float, num_files: int, num_gpus: int, rates: Rates | None = None, *, is_compiled: bool = False
) -> ColdStart:
    """Seconds of an engine's start on a node that has neither image nor weights.

    `image_gb` is the image as pulled, 0 where the node has it; `is_compiled` says that the model cache holds compiled kernels.
    Files are hashed whole, one a core; each GPU loads its share.
    """
    rates = rates or Rates()
    weights_gb = weights_gib * GB_PER_GIB
    return ColdStart(
        pull_s=image_gb / rates.pull_gb_per_s,
        fetch_s=weights_gb / (rates.connection_gb_per_s * rates.num_connections),
        verify_s=weights_gb / (rates.hash_gb_per_s * min(HASHED_AT_ONCE, max(1, num_files))),
        load_s=rates.start_s + weights_gb / (rates.load_gb_per_s * max(1, num_gpus)),
        compile_s=rates.capture_s + (rates.compile_cached_s if is_compiled else rates.compile_s),
        warm_up_s=rates.warm_up_s,
    )
