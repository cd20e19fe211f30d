"""What a check found: whether it stands in the way, and what to do about it.

A question that AWS did not answer is no good news: it is `UNSURE`, names the reason, and a command that has one does not end
with 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from serving.errors import UserError

Clients = Callable[[str, str], Any]
"""A boto3 client for a service in a region."""


class Severity(StrEnum):
    """What a finding means for who asked."""

    OK = "ok"
    WARNING = "warning"
    """It goes through today, and may not for long."""
    BLOCKED = "blocked"
    """A deployment would fail, or stay half done."""
    UNSURE = "unsure"
    """Nobody answered."""


@dataclass(frozen=True)
class Finding:
    """One line of a report."""

    check: str
    """What was asked, such as `quota`."""
    subject: str
    severity: Severity
    message: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """For machines."""
        return asdict(self)


def asked(check: str, subject: str, question: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of `question`, or one that says why AWS did not answer it.

    Raises:
        UserError: there are no credentials at all, so no question would be answered.
    """
    try:
        return list(question())
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise UserError(f"AWS was not asked: {error}", "log in, for example with `aws sso login`, or set AWS_PROFILE") from error
    except ClientError as error:
        details = error.response.get("Error", {})
        reason = f"{error.operation_name}: {details.get('Code', '?')}: {details.get('Message', '')}".rstrip(": ")
    except BotoCoreError as error:
        reason = str(error)
    except KeyError as error:
        reason = f"the answer lacks {error}"
    message = f"not answered: {' '.join(reason.split())}"
    return [Finding(check, subject, Severity.UNSURE, message, "give the caller that permission, or look it up by hand")]


def is_clear(findings: Iterable[Finding]) -> bool:
    """Whether nothing stands in the way and every question was answered."""
    return not any(finding.severity in (Severity.BLOCKED, Severity.UNSURE) for finding in findings)
