"""Clients that ask moto, and a copy of the stack files that is in its account."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from moto import mock_aws

from infra.config import STACKS_DIR

sys.path.insert(0, str(Path(__file__).parent))  # for operations_support, which importlib mode would not find

from operations_support import MOTO_ACCOUNT, Account


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """Every boto3 client asks it."""
    account = Account()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        ask = BaseClient._make_api_call

        def answered(client: BaseClient, operation: str, parameters: Mapping[str, Any]) -> Any:
            given = account.answer(operation, parameters)
            return ask(client, operation, parameters) if given is None else given

        monkeypatch.setattr(BaseClient, "_make_api_call", answered)
        yield account


@pytest.fixture
def clients() -> Callable[[str, str], Any]:
    """Makes clients as the commands do."""
    return lambda service, region: boto3.client(service, region_name=region)


@pytest.fixture
def stacks_dir(tmp_path: Path) -> Path:
    """The repository's stack files, with production in moto's account and an image pinned."""
    folder = Path(shutil.copytree(STACKS_DIR, tmp_path / "stacks"))
    for path in folder.glob("*.yaml"):
        text = path.read_text().replace("222222222222", MOTO_ACCOUNT)
        path.write_text(text.replace(f"sha256:{64 * '0'}", f"sha256:{64 * '1'}"))
    return folder
