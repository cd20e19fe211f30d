"""The admin API over its tables on moto: plans and who is on them, policies, refusals that name all that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import msgspec
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gateway_support import make_settings, make_tenants_table
from moto import mock_aws

from serving.gateway import http_errors
from serving.gateway.admin import TenantChange, build_router
from serving.gateway.admin_access import AdminParts
from serving.gateway.admin_exclusions import drain_router, quarantine_router
from serving.gateway.admin_plans import plan_router
from serving.gateway.admin_policy import policy_router
from serving.gateway.exclusions import ExclusionTable
from serving.gateway.plans import PlanTable
from serving.gateway.tenants import TERMS, Key, KeyRecord, Tenant, TenantTable
from serving.gateway.term_options import OPTIONS

KEY = "admin-key"


class Admin:
    """The admin API's client, and the table behind it."""

    def __init__(self, parts: AdminParts) -> None:
        app = FastAPI()
        http_errors.install(app)
        for build in (build_router, plan_router, policy_router, drain_router, quarantine_router):
            app.include_router(build(make_settings(), lambda: parts))
        self.tenants = parts.tenants
        self._http = TestClient(app, headers={"authorization": f"Bearer {KEY}", "x-flotilla-actor": "ann"})

    def __call__(self, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        answer = self._http.request(method, f"/admin{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def refusal(self, method: str, path: str, body: Any, status: int = 400) -> tuple[str, str | None, str]:
        """Code, param and message."""
        error = self(method, path, body, status=status)["error"]
        return error["code"], error["param"], error["message"]

    def audited(self) -> list[tuple[str, str, str]]:
        entries = self("GET", f"/audit?day={datetime.now(UTC):%Y-%m-%d}")["entries"]
        return [(entry["by"], entry["action"], entry["subject"]) for entry in entries]


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Admin]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with mock_aws():
        client = boto3.client("dynamodb", region_name="us-east-2")
        make_tenants_table(client)
        tenants = TenantTable("tenants", near=client, home=client)
        exclusions = ExclusionTable(client, "tenants", "us-east-2")
        plans = PlanTable("tenants", client)
        yield Admin(AdminParts(KEY.encode(), b"pepper", tenants, plans, client, exclusions, lambda kind: {f"{kind}-0"}))


def served(admin: Admin, tenant: str) -> Tenant:
    """The tenant as a gateway finds it behind a key."""
    key_id = f"{tenant:0<10}"
    if admin.tenants.find_key(key_id) is None:
        admin.tenants.create_key(KeyRecord(Key(key_id, tenant), b"digest"))
    found = admin.tenants.find_key(key_id)
    assert found is not None
    return found[1]


def test_a_change_of_a_plan_reaches_its_tenants_but_for_what_they_set_themselves(admin: Admin) -> None:
    admin("POST", "/plans", {"id": "gold", "requests_per_min": 600, "tokens_per_min": 9000, "band": "interactive"}, status=201)
    admin("POST", "/tenants", {"id": "acme", "plan": "gold", "tokens_per_min": None}, status=201)
    admin("POST", "/tenants", {"id": "zoo", "requests_per_min": 5}, status=201)
    admin("PATCH", "/tenants/zoo", {"plan": "gold"})
    assert served(admin, "zoo").requests_per_min == 600, "what it set before it came to the plan is left behind"
    changed = admin("PATCH", "/plans/gold", {"requests_per_min": 700, "tokens_per_min": 8000})
    assert (changed["num_tenants"], changed["band"]) == (2, "interactive")
    acme, zoo = served(admin, "acme"), served(admin, "zoo")
    assert (acme.requests_per_min, acme.tokens_per_min, acme.band) == (700, None, "interactive")
    assert (zoo.requests_per_min, zoo.tokens_per_min) == (700, 8000)
    assert admin("GET", "/tenants/acme")["overrides"] == ["tokens_per_min"]
    assert [tenant["requests_per_min"] for tenant in admin("GET", "/tenants")["tenants"]] == [700, 700]


def test_an_override_is_given_up_by_inheriting_it(admin: Admin) -> None:
    admin("POST", "/plans", {"id": "gold", "requests_per_min": 600}, status=201)
    admin("POST", "/tenants", {"id": "acme", "plan": "gold"}, status=201)
    assert admin("PATCH", "/tenants/acme", {"requests_per_min": 7, "weight": 3})["overrides"] == ["requests_per_min", "weight"]
    inherited = admin("PATCH", "/tenants/acme", {"inherit": ["requests_per_min"]})
    assert (inherited["requests_per_min"], inherited["weight"], inherited["overrides"]) == (600, 3, ["weight"])
    code, param, _ = admin.refusal("PATCH", "/tenants/acme", {"inherit": ["weight"], "weight": 2})
    assert (code, param) == ("invalid_value", None)


def test_whoever_leaves_a_plan_keeps_what_it_gave(admin: Admin) -> None:
    """Leaving a plan once meant no limits at all in somebody else's gateway: nothing may change by it but the name."""
    admin("POST", "/plans", {"id": "gold", "requests_per_min": 600}, status=201)
    admin("POST", "/tenants", {"id": "acme", "plan": "gold", "weight": 3}, status=201)
    admin("PATCH", "/plans/gold", {"requests_per_min": 500})
    left = admin("PATCH", "/tenants/acme", {"plan": None})
    assert (left["plan"], left["requests_per_min"], left["weight"], left["overrides"]) == (None, 500, 3, [])
    admin("PATCH", "/plans/gold", {"requests_per_min": 1})
    assert served(admin, "acme").requests_per_min == 500
    assert admin.refusal("PATCH", "/tenants/acme", {"inherit": ["weight"]})[:2] == ("invalid_value", "inherit")


def test_a_plan_that_somebody_is_on_cannot_be_deleted(admin: Admin) -> None:
    for plan in ("gold", "lead"):
        admin("POST", "/plans", {"id": plan}, status=201)
    admin("POST", "/tenants", {"id": "acme", "plan": "gold"}, status=201)
    assert admin.refusal("DELETE", "/plans/gold", None, 409)[0] == "plan_in_use"
    admin("PATCH", "/tenants/acme", {"plan": "lead"})
    admin("DELETE", "/plans/gold")
    assert admin.refusal("GET", "/plans/gold", None, 404)[0] == "plan_not_found"
    assert admin.refusal("PATCH", "/tenants/acme", {"plan": "gold"}, 404)[:2] == ("plan_not_found", "plan")
    assert admin.refusal("POST", "/plans", {"id": "lead"}, 409)[0] == "plan_exists"
    assert [(plan["id"], plan["num_tenants"]) for plan in admin("GET", "/plans")["plans"]] == [("lead", 1)]


def test_a_tenant_whose_plan_has_not_come_to_its_region_keeps_the_limits_it_was_written_with(admin: Admin) -> None:
    """A global table's items come in any order: without its plan a tenant must not be unlimited."""
    admin("POST", "/plans", {"id": "gold", "requests_per_min": 600}, status=201)
    admin("POST", "/tenants", {"id": "acme", "plan": "gold"}, status=201)
    assert admin.tenants.get_tenant("acme").on(None).requests_per_min == 600


def test_policies_are_one_document(admin: Admin) -> None:
    admin("POST", "/plans", {"id": "gold", "auto_floor": "medium"}, status=201)
    admin("POST", "/tenants", {"id": "acme", "plan": "gold"}, status=201)
    assert admin("GET", "/tenants/acme/policy") == {
        "auto": {"floor": "medium", "ceiling": None},
        "context": {"strategy": "refuse"},
    }
    wanted = {"auto": {"floor": None, "ceiling": "medium"}, "context": {"strategy": "summarise"}}
    assert admin("PUT", "/tenants/acme/policy", wanted) == wanted
    tenant = served(admin, "acme")
    assert (tenant.auto_floor, tenant.auto_ceiling, tenant.context) == (None, "medium", "summarise")
    assert {"auto_floor", "auto_ceiling"} <= {*tenant.overrides}
    code, param, message = admin.refusal("PUT", "/tenants/acme/policy", {"auto": {"floor": "huge"}, "compaction": 1})
    assert (code, param) == ("invalid_value", "auto.floor")
    assert "`compaction`" in message


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/tenants/acme", {"auto_ceiling": "small"}),
        ("PUT", "/tenants/acme/policy", {"auto": {"floor": "large", "ceiling": "medium"}}),
        ("POST", "/tenants", {"id": "new", "auto_floor": "large", "auto_ceiling": "small"}),
        ("POST", "/plans", {"id": "new", "auto_floor": "large", "auto_ceiling": "small"}),
    ],
)
def test_a_floor_above_the_ceiling_is_refused_wherever_it_is_set(admin: Admin, method: str, path: str, body: Any) -> None:
    """Also where only one of the two is given and the other was there."""
    admin("POST", "/tenants", {"id": "acme", "auto_floor": "medium"}, status=201)
    code, param, message = admin.refusal(method, path, body)
    assert (code, param) == ("invalid_value", "auto_floor")
    assert "auto_ceiling" in message


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        ({"id": "acme", "wieght": 1, "colour": "red"}, "unsupported_parameter", ["wieght", "colour"]),
        ({"weight": 2}, "missing_required_parameter", ["id"]),
        ({"id": "acme", "weight": "heavy", "requests_per_min": 0}, "invalid_value", ["weight", "requests_per_min"]),
        ({"id": "Acme", "wieght": 1, "weight": 0}, "invalid_value", ["id", "wieght", "weight"]),
        ({"id": "acme", "models": ["tiny", "huge"]}, "invalid_value", ["tiny", "huge"]),
    ],
)
def test_a_refusal_names_all_that_is_wrong(admin: Admin, body: Any, code: str, named: list[str]) -> None:
    found, _, message = admin.refusal("POST", "/tenants", body)
    assert found == code
    assert all(f"`{name}`" in message for name in named)


def test_every_change_is_audited_under_the_name_of_who_made_it(admin: Admin) -> None:
    admin("POST", "/plans", {"id": "gold"}, status=201)
    admin("PATCH", "/plans/gold", {"weight": 2})
    admin("POST", "/tenants", {"id": "acme"}, status=201)
    admin("PUT", "/tenants/acme/policy", {})
    admin.refusal("PATCH", "/plans/gold", {"weight": 0})
    admin("DELETE", "/plans/gold")
    assert sorted(admin.audited()) == [
        ("ann", "plan_changed", "plan/gold"),
        ("ann", "plan_created", "plan/gold"),
        ("ann", "plan_deleted", "plan/gold"),
        ("ann", "tenant_changed", "tenant/acme"),
        ("ann", "tenant_created", "tenant/acme"),
    ]


FINGERPRINT = "0123456789abcdef" * 2


def test_what_is_out_of_service_is_listed_until_it_is_ended_or_over(admin: Admin) -> None:
    admin("PUT", "/drains/engine/engine-0", {"note": "new disk"})
    admin("PUT", "/drains/gateway/gateway-0", {})
    admin("PUT", f"/quarantine/request/{FINGERPRINT}", {"for_s": 60})
    (engine, gateway) = admin("GET", "/drains")["drains"]
    assert (engine["name"], engine["by"], engine["note"], engine["until_ms"]) == ("engine-0", "ann", "new disk", None)
    assert gateway["kind"] == "gateway"
    (request,) = admin("GET", "/quarantine")["quarantine"]
    assert (request["name"], request["until_ms"] - request["since_ms"]) == (FINGERPRINT, pytest.approx(60_000, abs=5_000))
    admin("DELETE", "/drains/engine/engine-0")
    assert admin.refusal("DELETE", "/drains/engine/engine-0", None, 404)[0] == "not_excluded"
    assert [each["name"] for each in admin("GET", "/drains")["drains"]] == ["gateway-0"]
    assert ("ann", "drain_ended", "engine/us-east-2/engine-0") in admin.audited()


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/drains/engine/engine-7", {}, 404, "replica_not_found"),
        ("/drains/gateway/gateway-0-0", {}, 404, "replica_not_found"),
        ("/drains/planet/mars", {}, 404, "not_found"),
        ("/quarantine/gateway/gateway-0", {}, 404, "not_found"),
        ("/quarantine/request/beef", {}, 400, "invalid_value"),
        ("/drains/engine/engine-0", {"for": 1, "until": 2}, 400, "unsupported_parameter"),
        ("/drains/engine/engine-0", {"for_s": 0, "note": 7}, 400, "invalid_value"),
    ],
)
def test_what_is_misspelt_is_refused(admin: Admin, path: str, body: Any, status: int, code: str) -> None:
    """A drain of a name that nobody has would change nothing, and nobody would know."""
    assert admin.refusal("PUT", path, body, status)[0] == code
    assert admin("GET", "/drains")["drains"] == []


def test_every_term_can_be_set_over_the_api_and_on_the_command_line() -> None:
    """A term that only some of them know is one that nobody can set."""
    assert {*TERMS} == {*OPTIONS} == {*TenantChange.model_fields} - {"plan", "inherit", "trust_group"}
    assert {*TERMS} | {"id", "plan", "overrides", "trust_group", "created_at_ms", "revision"} == {
        *msgspec.structs.asdict(Tenant("acme"))
    }
