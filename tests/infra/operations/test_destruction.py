"""Destroying: the wrong account is refused, the order is deployment's backwards, and what is left is found by its tags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from operations_support import MOTO_ACCOUNT, Account

from infra import config
from infra.naming import StackName
from infra.operations.account import require_account
from infra.operations.destruction import check_confirmation, steps_of
from infra.operations.findings import Severity, is_clear
from infra.operations.leftovers import Scope, leftovers
from infra.tags import tags_of
from serving.errors import UserError

Clients = Callable[[str, str], Any]
SCOPE = Scope("staging", ("us-east-2",))


def test_the_order_is_that_of_deployment_backwards_and_names_what_is_protected() -> None:
    steps = steps_of("staging")
    assert [step.stack for step in steps] == [
        "staging.edge",
        "staging.serving.us-east-2",
        "staging.cluster.us-east-2",
        "staging.foundation",
    ]
    foundation = steps[-1]
    assert any(line.startswith("aws:dynamodb/table:Table") for line in foundation.protected)
    assert foundation.commands == (
        "pulumi state unprotect --all --stack staging.foundation",
        "pulumi destroy --stack staging.foundation",
    )
    assert [step.stack for step in steps_of("prod", "us-west-2")] == ["prod.serving.us-west-2", "prod.cluster.us-west-2"]
    with pytest.raises(UserError, match="no region 'eu-west-1'"):
        steps_of("prod", "eu-west-1")


def test_another_account_than_the_one_meant_is_refused(account: Account, clients: Clients) -> None:
    known = config.load_catalog().environments["staging"]
    with pytest.raises(UserError, match=f"is in account {MOTO_ACCOUNT}, and staging is in {known.account_id}"):
        require_account("staging", known, clients)
    own = known.model_copy(update={"account_id": MOTO_ACCOUNT})
    assert require_account("staging", own, clients).severity is Severity.OK
    account.refused = {"GetCallerIdentity"}
    with pytest.raises(UserError, match="not answered"):
        require_account("staging", own, clients)
    with pytest.raises(UserError, match="this machine"):
        require_account("local", own, clients)
    check_confirmation(MOTO_ACCOUNT, MOTO_ACCOUNT)
    with pytest.raises(UserError, match="--account is '1'"):
        check_confirmation(MOTO_ACCOUNT, "1")


def tagged_bucket(clients: Clients, name: str, **changes: str) -> None:
    s3 = clients("s3", "us-east-2")
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "us-east-2"})
    tags = tags_of(StackName("staging", "foundation"), "artifacts") | changes
    s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": [{"Key": key, "Value": value} for key, value in tags.items()]})


def test_what_is_left_is_found_by_its_tags_and_what_is_somebody_elses_is_not(account: Account, clients: Clients) -> None:
    assert is_clear(leftovers(SCOPE, clients))
    tagged_bucket(clients, "ours")
    tagged_bucket(clients, "of-prod", environment="prod")
    tagged_bucket(clients, "of-others", project="weather")
    tagged_bucket(clients, "of-another-stack", stack="staging.cluster.us-east-2")
    left = [finding.message for finding in leftovers(SCOPE, clients) if finding.severity is Severity.BLOCKED]
    assert left == [
        "arn:aws:s3:::of-another-stack (stack staging.cluster.us-east-2)",
        "arn:aws:s3:::ours (stack staging.foundation)",
    ]
    of_stack = Scope("staging", ("us-east-2",), "staging.foundation")
    assert [finding.severity for finding in leftovers(of_stack, clients)] == [Severity.BLOCKED, Severity.OK]


def test_a_region_that_does_not_answer_is_not_called_empty(account: Account, clients: Clients) -> None:
    account.refused = {"GetResources"}
    found = leftovers(SCOPE, clients)
    assert [finding.severity for finding in found] == [Severity.UNSURE, Severity.UNSURE] and not is_clear(found)
