"""Whether the credentials at hand are those of the environment's account: asked before anything else is."""

from __future__ import annotations

from infra.catalog import Environment
from infra.naming import LOCAL
from infra.operations.findings import Clients, Finding, Severity, asked
from serving.errors import UserError

CHECK = "account"


def account_finding(name: str, environment: Environment, clients: Clients) -> Finding:
    """Says OK where the caller's account is the environment's, and BLOCKED where it is another.

    Raises:
        UserError: there are no credentials.
    """

    def question() -> list[Finding]:
        caller = clients("sts", environment.home_region).get_caller_identity()
        if caller["Account"] == environment.account_id:
            return [Finding(CHECK, name, Severity.OK, f"{caller['Arn']} is in account {environment.account_id}")]
        message = f"{caller['Arn']} is in account {caller['Account']}, and {name} is in {environment.account_id}"
        remedy = f"take credentials of that account, or correct `environments.{name}.account_id` of stacks/catalog.yaml"
        return [Finding(CHECK, name, Severity.BLOCKED, message, remedy)]

    (finding,) = asked(CHECK, name, question)
    return finding


def refuse_local(name: str) -> None:
    """Raises UserError for `local`, which has no account."""
    if name == LOCAL:
        raise UserError(f"{LOCAL} is this machine: there is no AWS to ask", "name another environment, such as staging")


def require_account(name: str, environment: Environment, clients: Clients) -> Finding:
    """The finding, where it is OK.

    Raises:
        UserError: the caller's account is another, or not known; or the environment is this machine.
    """
    refuse_local(name)
    finding = account_finding(name, environment, clients)
    if finding.severity is not Severity.OK:
        raise UserError(finding.message, finding.remedy)
    return finding
