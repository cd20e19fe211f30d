"""Plans in the tenants' table: terms that many tenants share, changed in one place.

A tenant keeps its plan's name and what it sets itself; its other terms are read from the plan with the tenant, by every gateway
within `key_cache_s`. A plan counts its tenants in an item of its own, changed in the transaction that changes a tenant: so a plan
that somebody is on cannot be deleted, whatever happens at the same time. Writes go home; calls block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from botocore.exceptions import ClientError

from serving.gateway.audited import UNKNOWN, AuditedTable, encode, is_conditional, now_ms
from serving.gateway.tenants import Plan, PlanMissing, members_key, plan_key

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


class PlanExists(Exception):
    """A plan of this id is there already."""


class PlanChanged(Exception):
    """The plan was changed by someone else in the meantime."""


class PlanInUse(Exception):
    """Tenants are on it."""


class Members(msgspec.Struct, frozen=True):
    """How many tenants are on a plan."""

    num_tenants: int


class PlanTable:
    """The plans of an environment."""

    def __init__(self, table: str, home: DynamoDBClient) -> None:
        self._home = AuditedTable(home, table)

    def list_plans(self) -> list[tuple[Plan, int]]:
        """All plans, by id, and how many tenants are on each."""
        plans = sorted(self._home.scan(Plan, "plan"), key=lambda plan: plan.id)
        return [(plan, self.num_tenants(plan.id)) for plan in plans]

    def get_plan(self, plan_id: str) -> Plan:
        """The plan.

        Raises:
            PlanMissing: as it says.
        """
        plan = self._home.get(plan_key(plan_id), Plan)
        if plan is None:
            raise PlanMissing(plan_id)
        return plan

    def num_tenants(self, plan_id: str) -> int:
        """How many tenants are on it; 0 where there is no such plan."""
        members = self._home.get(members_key(plan_id), Members)
        return 0 if members is None else members.num_tenants

    def create_plan(self, plan: Plan, *, by: str = UNKNOWN) -> Plan:
        """Write a new plan.

        Raises:
            PlanExists: as it says.
        """
        created = msgspec.structs.replace(plan, created_at_ms=now_ms(), revision=1)
        new = self._home.put_new({**plan_key(plan.id), **encode(created)})
        nobody = self._home.put_new({**members_key(plan.id), **encode(Members(0))})
        try:
            self._home.write(by, "plan_created", f"plan/{plan.id}", created, new, nobody)
        except ClientError as error:
            if is_conditional(error):
                raise PlanExists(plan.id) from error
            raise
        return created

    def replace_plan(self, plan: Plan, *, by: str = UNKNOWN) -> Plan:
        """Write `plan` over the revision that it was read at.

        Raises:
            PlanChanged: another change came first, or it is gone.
        """
        changed = msgspec.structs.replace(plan, revision=plan.revision + 1)
        put = self._home.put_over({**plan_key(plan.id), **encode(changed)}, plan.revision)
        try:
            self._home.write(by, "plan_changed", f"plan/{plan.id}", changed, put)
        except ClientError as error:
            if is_conditional(error):
                raise PlanChanged(plan.id) from error
            raise
        return changed

    def delete_plan(self, plan_id: str, *, by: str = UNKNOWN) -> Plan:
        """Delete a plan that nobody is on.

        Raises:
            PlanMissing, PlanInUse: as they say.
        """
        plan = self.get_plan(plan_id)
        gone = {"Delete": {"TableName": self._home.name, "Key": plan_key(plan_id), "ConditionExpression": "attribute_exists(pk)"}}
        empty = {
            "Delete": {
                "TableName": self._home.name,
                "Key": members_key(plan_id),
                "ConditionExpression": "num_tenants = :none",
                "ExpressionAttributeValues": {":none": {"N": "0"}},
            }
        }
        try:
            self._home.write(by, "plan_deleted", f"plan/{plan_id}", plan, gone, empty)
        except ClientError as error:
            if is_conditional(error):
                raise PlanInUse(plan_id) from error
            raise
        return plan
