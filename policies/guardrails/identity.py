"""Who may do what: roles, their policies, and who may take them on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from policies.guardrails.estate import Estate, statements
from policies.guardrails.rule import Rulebook
from policies.resources import Declared, at, listed

ROLE = "aws:iam/role:Role"
POLICIES = ("aws:iam/policy:Policy", "aws:iam/rolePolicy:RolePolicy")
READS = ("Describe", "List", "Get")
"""Verbs of actions that change nothing; many of them cannot be narrowed to a resource."""
UNNARROWABLE = frozenset({"ecr:GetAuthorizationToken", "sts:GetCallerIdentity", "pricing:GetProducts", "eks:DescribeCluster"})
TOO_WIDE = ("AdministratorAccess", "PowerUserAccess", "IAMFullAccess")

book = Rulebook()


@book.rule("policy-names-actions", *POLICIES, remedy="list the actions that are used")
def policy_names_actions(policy: Declared, _estate: Estate) -> Iterator[str]:
    """A policy that is granted to a workload names its actions one by one.

    A star takes in what AWS invents tomorrow. A permissions boundary may use stars, since it grants nothing.
    """
    if _is_boundary(policy, _estate):
        return
    for statement in _allowed(policy):
        wide = [action for action in listed(statement.get("Action")) if action == "*" or str(action).endswith(":*")]
        if wide:
            yield f"allows {', '.join(map(str, wide))}"
        if "NotAction" in statement:
            yield "allows all but some actions"


@book.rule("policy-names-resources", *POLICIES, remedy="name the resources, or add a condition that does")
def policy_names_resources(policy: Declared, _estate: Estate) -> Iterator[str]:
    """A policy that lets something be changed says what, by resource or by condition."""
    if _is_boundary(policy, _estate):
        return
    for statement in _allowed(policy):
        if "*" not in listed(statement.get("Resource")) or statement.get("Condition"):
            continue
        changing = [action for action in map(str, listed(statement.get("Action"))) if not _only_reads(action)]
        if changing:
            yield f"allows {', '.join(changing)} on everything"


@book.rule("no-passing-of-any-role", *POLICIES, remedy="name the role that may be passed")
def no_passing_of_any_role(policy: Declared, _estate: Estate) -> Iterator[str]:
    """Nobody may pass any role to a service.

    Whoever can gives itself every right that some role has.
    """
    if _is_boundary(policy, _estate):
        return
    for statement in _allowed(policy):
        actions = {str(action).lower() for action in listed(statement.get("Action"))}
        if actions & {"iam:passrole", "iam:*", "*"} and "*" in listed(statement.get("Resource")):
            yield "may pass any role"


@book.rule(
    "no-broad-managed-policy", "aws:iam/rolePolicyAttachment:RolePolicyAttachment", ROLE, remedy="write a policy of its own"
)
def no_broad_managed_policy(attachment: Declared, _estate: Estate) -> Iterator[str]:
    """No role is given one of AWS's all-embracing policies."""
    for arn in [attachment.at("policyArn"), *listed(attachment.at("managedPolicyArns"))]:
        name = str(arn or "").rpartition("/")[2]
        if name in TOO_WIDE or name.endswith("FullAccess"):
            yield f"is given {name}"


@book.rule("role-bounded", ROLE, remedy="set permissionsBoundary to the foundation's")
def role_bounded(role: Declared, estate: Estate) -> Iterator[str]:
    """Every role has a permissions boundary: whoever may write its policies still cannot exceed it."""
    if not role.at("permissionsBoundary"):
        yield "has no permissions boundary"


@book.rule("role-trusts-by-name", ROLE, remedy="name the service or the role that may take it on")
def role_trusts_by_name(role: Declared, _estate: Estate) -> Iterator[str]:
    """A role can be taken on by named principals only."""
    for statement in statements(role.at("assumeRolePolicy")):
        principal = statement.get("Principal")
        if statement.get("Effect") == "Allow" and (principal == "*" or "*" in listed(at(principal, "AWS"))):
            yield "anybody may take it on"


@book.rule("no-lasting-keys", "aws:iam/accessKey:AccessKey", "aws:iam/user:User", remedy="use a role")
def no_lasting_keys(user: Declared, _estate: Estate) -> Iterator[str]:
    """Nobody has credentials that last: no users, no access keys."""
    yield "is a credential that lasts until somebody remembers it"


@book.rule("admins-are-few", "aws:eks/accessPolicyAssociation:AccessPolicyAssociation", remedy="grant a narrower access policy")
def admins_are_few(association: Declared, _estate: Estate) -> Iterator[str]:
    """An administrator of a cluster is named in the stack file, by a role's own ARN."""
    is_admin = str(association.at("policyArn") or "").endswith("ClusterAdminPolicy")
    if is_admin and not str(association.at("principalArn") or "").startswith("arn:aws:iam::"):
        yield f"{association.at('principalArn')} administers the cluster"


def _allowed(policy: Declared) -> Iterator[Any]:
    return (statement for statement in statements(policy.at("policy")) if statement.get("Effect") == "Allow")


def _is_boundary(policy: Declared, estate: Estate) -> bool:
    """Used as a boundary and granted to nobody; what says so is in this stack or is exported to others."""
    if "boundary" in policy.name:
        granted = estate.companions(policy, "aws:iam/rolePolicyAttachment:RolePolicyAttachment", "policyArn")
        return not granted
    return False


def _only_reads(action: str) -> bool:
    return action in UNNARROWABLE or action.partition(":")[2].startswith(READS)
