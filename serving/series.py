"""Every metric name that something else queries: alerts, dashboards, scaling, reconciliation, tests.

Producers (the gateway, the supervisor, the shipper) build their metrics from these names and labels; consumers (`infra/`,
`policies/`) import them. A test holds the two together. Labels are bounded: model classes, regions, outcomes; never a tenant or
a key.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Series:
    """A metric: its name as scraped, its kind, its labels, and one sentence of help."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


# The gateway.
REQUESTS = Series("flotilla_requests_total", "counter", ("model", "endpoint", "code"), "Requests answered, by status code.")
ERRORS = Series("flotilla_errors_total", "counter", ("model", "error"), "Requests refused or failed, by stable error code.")
TTFT = Series("flotilla_ttft_seconds", "histogram", ("model",), "Last request byte received to first content byte sent.")
TPOT = Series("flotilla_tpot_seconds", "histogram", ("model",), "Mean time per output token after the first, per request.")
REQUEST_SECONDS = Series("flotilla_request_seconds", "histogram", ("model",), "Last request byte received to last byte sent.")
TOKENS = Series(
    "flotilla_tokens_total", "counter", ("model", "kind"), "Tokens received and sent; kind is input, cached_input or output."
)
IN_FLIGHT = Series("flotilla_in_flight_requests", "gauge", ("model",), "Requests between admission and their last byte.")
TTFT_ERROR = Series(
    "flotilla_ttft_prediction_error_ratio", "gauge", ("model",), "Median of |predicted - true| / true of first tokens, of late."
)
QUEUE_WAITING = Series("flotilla_queue_waiting", "gauge", ("model",), "Requests that wait for a slot at an engine.")
QUEUE_WAIT = Series("flotilla_queue_wait_seconds", "histogram", ("model", "band"), "Time in the queue of those that waited.")
QUEUE_REFUSALS = Series(
    "flotilla_queue_refusals_total",
    "counter",
    ("model", "band", "reason"),
    "Requests that the queue refused; reason is deadline, full, pushed_out or expired.",
)
ENGINES_READY = Series("flotilla_engines_ready", "gauge", ("model",), "Engines that this gateway may send requests to.")
DESIRED_REPLICAS = Series(
    "flotilla_desired_replicas",
    "gauge",
    ("model_class", "fleet"),
    "Engines that a fleet should have, by the gateway that leads its region; absent where nobody knows.",
)
SCALING_NEED = Series(
    "flotilla_scaling_need_engines", "gauge", ("model_class", "signal"), "Engines that each signal asks for, by the same."
)
SCALING_DECISION = Series(
    "flotilla_scaling_decision", "gauge", ("model_class", "reason"), "1 for the reason of the number that is desired."
)
RETRIES = Series("flotilla_retries_total", "counter", ("model",), "Requests sent to a second engine before their first byte.")
RESUMES = Series("flotilla_resumes_total", "counter", ("model",), "Broken answers that went on at another engine.")
FAST_TOKENIZER = Series(
    "flotilla_fast_tokenizer",
    "gauge",
    ("model",),
    "1 where the fast tokenizer counts prompts; 0 where the slow one does, or not yet.",
)
HEDGES = Series(
    "flotilla_hedges_total",
    "counter",
    ("model", "first"),
    "Requests asked at a second engine while the first had not begun, by which of them answered first: it is one or two.",
)
USAGE_DISPUTED = Series(
    "flotilla_usage_disputed_total", "counter", ("model",), "Requests whose engine sent no token counts, or impossible ones."
)
LIMITER_FALLBACKS = Series(
    "flotilla_limiter_fallbacks_total", "counter", (), "Admissions decided locally because the cache did not answer."
)
JOURNAL_COMMIT = Series(
    "flotilla_journal_commit_seconds", "histogram", (), "One group commit of the usage journal: write and fdatasync."
)
JOURNAL_HEALTHY = Series(
    "flotilla_journal_healthy",
    "gauge",
    (),
    "1 while usage can be made durable; at 0 nothing is generated and somebody must look.",
)
OPEN_EVENTS = Series("flotilla_usage_open_events", "gauge", (), "Usage events opened and not yet closed.")

# The shipper.
UNSHIPPED_BYTES = Series(
    "flotilla_usage_unshipped_bytes", "gauge", (), "Sealed journal bytes that the archive does not have yet."
)
OLDEST_UNSHIPPED = Series("flotilla_usage_oldest_unshipped_seconds", "gauge", (), "Age of the oldest such segment.")
LEDGER_ROWS = Series(
    "flotilla_ledger_rows_total", "counter", ("result",), "Ledger puts; result is written, present, conflict or failed."
)
UNEXPLAINED_TOKENS = Series(
    "flotilla_usage_unexplained_tokens_total",
    "counter",
    ("kind",),
    "Tokens by which engines' counters and bills differ beyond what is explained; kind is input or output.",
)
SEGMENTS = Series(
    "flotilla_usage_segments_total",
    "counter",
    ("result",),
    "Segments put; result is written, present, conflict, unreadable or failed.",
)

# The engine supervisor.
ENGINE_READY = Series(
    "flotilla_engine_ready", "gauge", ("model",), "1 when the canary prompts gave their known answers and progress is seen."
)
ENGINE_RESTARTS = Series(
    "flotilla_engine_restarts_total",
    "counter",
    ("model", "reason"),
    "Engine starts after the first; reason is exited, stalled, silent or canary.",
)
ENGINE_PHASE_SECONDS = Series(
    "flotilla_engine_start_phase_seconds", "gauge", ("model", "phase"), "Cold-start ledger: fetch, verify, load, warm_up."
)
ENGINE_FETCH_BYTES = Series("flotilla_engine_fetch_bytes", "gauge", ("model",), "Bytes of the release fetched at the last start.")
CANARY_TOKENS = Series(
    "flotilla_engine_canary_tokens_total",
    "counter",
    ("model", "kind"),
    "Tokens spent on canary prompts; kind is input or output.",
)

# vLLM's own. `model_name` is the class, by `--served-model-name`; `fleet` is the pod's label, by the scrape.
VLLM_RUNNING, VLLM_WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
VLLM_KV_RATIO = "vllm:kv_cache_usage_perc"
"""A share of 1, whatever its name says."""
VLLM_TOKENS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")

ALL: tuple[Series, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Series))
