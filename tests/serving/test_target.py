"""Which Flotilla a command speaks to, and what it says when that cannot be found."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving.errors import UserError
from serving.http_client import ApiRefusal
from serving.target import load_target

ADMIN_KEY = "the-admin-key"
REGION = {
    "environment": "prod",
    "region": "us-west-2",
    "home_region": "us-east-2",
    "artifact_bucket": "flotilla-prod-usw2-artifacts",
    "tables": {
        "registry": "r",
        "tenants": "t",
        "ledger": "l",
        "failover": "f",
        "idempotency": "i",
        "prompts": "p",
        "conversations": "c",
    },
}


class AdminApi(BaseHTTPRequestHandler):
    """The admin API's one route that a target needs, with the answers of the real one."""

    def do_GET(self) -> None:
        is_allowed = self.headers["authorization"] == f"Bearer {ADMIN_KEY}"
        error = {"error": {"message": "It needs its own key.", "type": "t", "param": None, "code": "invalid_admin_key"}}
        body = json.dumps(REGION if is_allowed and self.path == "/admin/region" else error).encode()
        self.send_response(200 if is_allowed else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An environment whose addresses are set; the admin API's own address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), AdminApi)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("FLOTILLA_URL", "https://api.example.com/v1/")
    monkeypatch.setenv("FLOTILLA_ADMIN_URL", address + "/")
    monkeypatch.setenv("FLOTILLA_ADMIN_KEY", ADMIN_KEY)
    monkeypatch.setenv("FLOTILLA_API_KEY", "fl_live_x")
    yield address
    server.shutdown()
    server.server_close()


def test_a_deployed_target_takes_its_names_from_the_admin_api(deployed: str) -> None:
    target = load_target("prod")
    name, region = target.region("us-west-2")
    assert (target.environment, target.home_region, target.api_key, target.aws_endpoint_url) == (
        "prod",
        "us-east-2",
        "fl_live_x",
        "",
    )
    assert (name, region.base_url, region.admin_url) == ("us-west-2", "https://api.example.com/v1", deployed)
    assert (region.artifact_bucket, region.tables) == (REGION["artifact_bucket"], REGION["tables"])


def test_a_wrong_admin_key_is_called_that_and_not_an_api_that_does_not_answer(
    deployed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOTILLA_ADMIN_KEY", "another")
    with pytest.raises(ApiRefusal, match="its own key") as caught:
        load_target("prod")
    assert caught.value.code == "invalid_admin_key"
    assert "FLOTILLA_ADMIN_KEY" in caught.value.hint


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FLOTILLA_ADMIN_URL", "", "needs FLOTILLA_ADMIN_URL"),
        ("FLOTILLA_ADMIN_URL", "ftp://example.com", "not a web address"),
        ("FLOTILLA_ADMIN_URL", "http://127.0.0.1:1", "cannot be reached"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(
    deployed: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=told) as caught:
        load_target("prod")
    assert "\n" not in caught.value.message


def test_a_local_target_needs_a_region_that_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOTILLA_STATE", str(tmp_path))
    with pytest.raises(UserError, match="no local region is up"):
        load_target()
    (tmp_path / "access.json").write_text("{")
    with pytest.raises(UserError, match=r"access\.json"):
        load_target()
