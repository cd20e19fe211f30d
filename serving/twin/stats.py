"""What a twin counts of its work, and /metrics made of it: vLLM 0.32's names, labels and buckets (`v1/metrics/loggers.py`).

Counting is a few integer additions a step; the exposition is built when somebody scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

_SECONDS = "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"
LATENCY = tuple(map(float, _SECONDS.split()))
_SECONDS = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560"
FIRST_TOKEN = tuple(map(float, _SECONDS.split()))
_SECONDS = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80"
INTER_TOKEN = tuple(map(float, _SECONDS.split()))
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICES = (1, 2, 5, 10, 20)
PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")
_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
_TIERS = ("device", "host", "p2p", "disk", "external_unspecified")


class Histogram:
    """Counts by bucket."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Note `value`, as if it had come `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound."""
        found, so_far = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            so_far += count
            found.append((f"{float(bound)}" if bound != float("inf") else "+Inf", float(so_far)))
        return found


@dataclass(frozen=True)
class Gauges:
    """What is so at the moment of a scrape."""

    num_running: int
    num_capacity_waiting: int
    num_deferred_waiting: int
    kv_usage_ratio: float
    running_adapters: Sequence[str]
    waiting_adapters: Sequence[str]
    max_loras: int
    """0 where the engine takes no adapters."""
    now_s: float
    """Unix time."""
    cache_config: Mapping[str, str]


class Stats:
    """The counters of one twin."""

    def __init__(self, max_model_len: int) -> None:
        tokens = _one_two_five(max_model_len)
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = 0
        self.cache_queries = self.cache_hits = 0
        self.num_preemptions = self.num_lora_loads = 0
        self.success = dict.fromkeys(FINISH_REASONS, 0)
        self.inter_token = Histogram(INTER_TOKEN)
        self._first_token = Histogram(FIRST_TOKEN)
        self._step_tokens = Histogram(STEP_TOKENS)
        self._per_token = Histogram(INTER_TOKEN)
        self._latency = {name: Histogram(LATENCY) for name in ("e2e", "queue", "inference", "prefill", "decode")}
        self._prompt, self._generation, self._computed = Histogram(tokens), Histogram(tokens), Histogram(tokens)
        self._max_generation, self._max_tokens = Histogram(tokens), Histogram(tokens)
        self._choices, self._preemptions = Histogram(CHOICES), Histogram(PREEMPTIONS)

    def step(self, num_tokens: int) -> None:
        """A step ended that computed `num_tokens`."""
        self._step_tokens.observe(num_tokens)

    def looked_up(self, num_tokens: int, num_cached: int) -> None:
        """A new prompt was looked up in the prefix cache."""
        self.cache_queries += num_tokens
        self.cache_hits += num_cached

    def first_token(self, prompt_tokens: int, cached_tokens: int, waited_s: float) -> None:
        """A prompt is computed whole and has its first token, `waited_s` after it arrived."""
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        self._first_token.observe(waited_s)

    def finished(self, ended: Ended) -> None:
        """A generation ended by itself or by its client."""
        self.success[ended.reason] += 1
        first_s = ended.first_token_s or ended.now_s
        self._latency["e2e"].observe(ended.now_s - ended.arrived_s)
        self._latency["queue"].observe(ended.scheduled_s - ended.arrived_s)
        self._latency["inference"].observe(ended.now_s - ended.scheduled_s)
        self._latency["prefill"].observe(first_s - ended.scheduled_s)
        self._latency["decode"].observe(ended.now_s - first_s)
        self._prompt.observe(ended.prompt_tokens)
        self._generation.observe(ended.output_tokens)
        self._max_generation.observe(ended.output_tokens)
        self._computed.observe(ended.prompt_tokens - ended.cached_tokens)
        self._max_tokens.observe(ended.max_tokens)
        self._per_token.observe((ended.now_s - first_s) / (ended.output_tokens - 1) if ended.output_tokens > 1 else 0.0)
        self._choices.observe(ended.num_choices)
        self._preemptions.observe(ended.num_preemptions)

    def render(self, model: str, gauges: Gauges) -> bytes:
        """Prometheus text."""
        return generate_latest(_Collected(self._families(model, gauges)))

    def _families(self, model: str, gauges: Gauges) -> Iterator[Metric]:
        labels = {"engine": "0", "model_name": model}
        num_waiting = gauges.num_capacity_waiting + gauges.num_deferred_waiting
        yield _gauge("num_requests_running", labels, gauges.num_running)
        yield _gauge("num_requests_waiting", labels, num_waiting)
        by_reason = {"capacity": gauges.num_capacity_waiting, "deferred": gauges.num_deferred_waiting}
        yield _gauge("num_requests_waiting_by_reason", labels, by_reason, "reason")
        yield _gauge("engine_sleep_state", labels, {"awake": 1, "weights_offloaded": 0, "discard_all": 0}, "sleep_state")
        yield _gauge("kv_cache_usage_perc", labels, gauges.kv_usage_ratio)
        yield _counter("prefix_cache_queries", labels, self.cache_queries)
        yield _counter("prefix_cache_hits", labels, self.cache_hits)
        for name in ("external_prefix_cache_queries", "external_prefix_cache_hits", "mm_cache_queries", "mm_cache_hits"):
            yield _counter(name, labels, 0)
        yield _counter("num_preemptions", labels, self.num_preemptions)
        yield _counter("prompt_tokens", labels, self.prompt_tokens)
        by_source = dict(zip(_SOURCES, (self.prompt_tokens - self.cached_tokens, self.cached_tokens, 0), strict=True))
        yield _counter("prompt_tokens_by_source", labels, by_source, "source")
        yield _counter("prompt_tokens_cached", labels, self.cached_tokens)
        by_tier = {**dict.fromkeys(_TIERS, 0), "device": self.cache_hits}
        yield _counter("prompt_tokens_cached_by_source", labels, by_tier, "source")
        yield _counter("generation_tokens", labels, self.generation_tokens)
        yield _counter("request_success", labels, self.success, "finished_reason")
        rejected = {"max_num_queued_reqs": 0, "max_num_queued_tokens": 0}
        yield _counter("admission_rejections", {"model_name": model}, rejected, "reason")
        yield from (_histogram(name, labels, histogram) for name, histogram in self._histograms())
        if gauges.max_loras:
            info = {
                "max_lora": str(gauges.max_loras),
                "running_lora_adapters": ",".join(gauges.running_adapters),
                "waiting_lora_adapters": ",".join(gauges.waiting_adapters),
            }
            yield _gauge("lora_requests_info", info, gauges.now_s)
        yield _gauge("cache_config_info", {**gauges.cache_config, "engine": "0"}, 1)

    def _histograms(self) -> Iterator[tuple[str, Histogram]]:
        yield "request_prompt_tokens", self._prompt
        yield "request_generation_tokens", self._generation
        yield "iteration_tokens_total", self._step_tokens
        yield "request_max_num_generation_tokens", self._max_generation
        yield "request_params_n", self._choices
        yield "request_params_max_tokens", self._max_tokens
        yield "time_to_first_token_seconds", self._first_token
        yield "inter_token_latency_seconds", self.inter_token
        yield "request_time_per_output_token_seconds", self._per_token
        yield "e2e_request_latency_seconds", self._latency["e2e"]
        for name in ("queue", "inference", "prefill", "decode"):
            yield f"request_{name}_time_seconds", self._latency[name]
        yield "request_num_preemptions", self._preemptions
        yield "request_prefill_kv_computed_tokens", self._computed


@dataclass(frozen=True)
class Ended:
    """A generation's figures at its end; times are on the event loop's clock."""

    reason: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    max_tokens: int
    num_choices: int
    num_preemptions: int
    arrived_s: float
    scheduled_s: float
    first_token_s: float | None
    now_s: float


@dataclass(frozen=True)
class _Collected:
    """What `generate_latest` asks of a registry."""

    families: Iterator[Metric]

    def collect(self) -> Iterator[Metric]:
        return self.families


def _one_two_five(largest: int) -> tuple[int, ...]:
    """`(1, 2, 5, 10, 20, 50, 100)` for 100."""
    series = (digit * 10**power for power in range(10) for digit in (1, 2, 5))
    return tuple(value for value in series if value <= largest)


def _gauge(name: str, labels: Mapping[str, str], value: float | Mapping[str, float], by: str = "") -> Metric:
    family = GaugeMetricFamily(f"vllm:{name}", f"As vLLM's {name}.", labels=[*labels, *([by] if by else [])])
    for label, number in _by_label(value):
        family.add_metric([*labels.values(), *label], number)
    return family


def _counter(name: str, labels: Mapping[str, str], value: float | Mapping[str, float], by: str = "") -> Metric:
    family = CounterMetricFamily(f"vllm:{name}", f"As vLLM's {name}.", labels=[*labels, *([by] if by else [])])
    for label, number in _by_label(value):
        family.add_metric([*labels.values(), *label], number)
    return family


def _by_label(value: float | Mapping[str, float]) -> list[tuple[list[str], float]]:
    return [([label], number) for label, number in value.items()] if isinstance(value, Mapping) else [([], value)]


def _histogram(name: str, labels: Mapping[str, str], histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(f"vllm:{name}", f"As vLLM's {name}.", labels=list(labels))
    family.add_metric(list(labels.values()), histogram.buckets(), histogram.total)
    return family
