"""The only way out of a failover: AWS's data planes in surviving regions, and our own gateways there. All else is refused.

A step that asks a control plane works in every drill, and fails on the night when the control plane is down with the region. So
the refusal is made where calls are made, at run time, by name: an operation that is not listed, a client for the lost region, a
request that would be sent to it (S3 redirects to a bucket's region, for one), a web address that is not one of the survivors'.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import boto3
from botocore.awsrequest import AWSPreparedRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from botocore.model import OperationModel

from infra.errors import UserError
from infra.recovery.estate import Estate

ALLOWED: Mapping[str, frozenset[str]] = {
    "dynamodb": frozenset({"GetItem", "Query", "PutItem"}),
    "s3": frozenset({"GetObject", "HeadObject", "ListObjectsV2"}),
}
"""Data planes, by AWS's own division (Fault Isolation Boundaries, appendix A, read November 2026)."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, MAX_ATTEMPTS = 2, 5, 3
"""A call is given up after some 20 s at most; only here is anything retried."""
HTTP_TIMEOUT_S = 10.0
EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidClientTokenId", "UnrecognizedClientException"}
)


class ForbiddenCall(UserError):
    """A step has tried what a failover must not depend on. A defect of that step, named so that it is found in a drill."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"refused: {what}", "a failover may call data planes in surviving regions alone; report this step as a defect"
        )


class CallFailed(UserError):
    """A survivor did not answer, or said no."""


class NoTable(CallFailed):
    """The region answers, and has no such table: its environment has not been deployed."""


@dataclass(frozen=True)
class Answer:
    """What a web address answered."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON, None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Guard:
    """Calls for one failover. `lost` is the region that must not be needed; "" where none is lost any more (failback)."""

    def __init__(self, estate: Estate, lost: str) -> None:
        self._estate = estate
        self._lost = lost
        self._clients: dict[tuple[str, str], Any] = {}

    def client(self, service: str, region: str) -> Any:
        """A boto3 client for `service` in a surviving region.

        Raises:
            ForbiddenCall: the region is the lost one, or the service is not listed.
        """
        if region == self._lost:
            raise ForbiddenCall(f"a client for {service} in {region}, which is lost")
        if service not in ALLOWED:
            raise ForbiddenCall(f"a client for {service}: only {', '.join(ALLOWED)} are data planes that a failover uses")
        if (service, region) not in self._clients:
            self._clients[service, region] = self._make(service, self._estate.region(region).aws_url, region)
        return self._clients[service, region]

    def get(self, url: str, *, key: str = "", body: Any = None) -> Answer:
        """What `url`, one of ours, answers to GET, or to POST with a JSON `body`.

        Raises:
            ForbiddenCall: it is neither the API's address nor a survivor's.
            CallFailed: there is no answer.
        """
        allowed = [self._estate.api_url, *(its.url for name, its in self._estate.regions.items() if name != self._lost)]
        if not any(url == base or url.startswith(f"{base}/") for base in allowed if base):
            raise ForbiddenCall(f"{url}: it is neither the API's address nor a survivor's")
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(url, data=data, headers=headers), timeout=HTTP_TIMEOUT_S) as answer:  # noqa: S310 (ours, checked)
                return Answer(answer.status, answer.read())
        except HTTPError as error:
            return Answer(error.code, error.read())
        except URLError as error:
            raise CallFailed(f"{url} cannot be reached: {error.reason}") from error
        except (OSError, HTTPException, ssl.SSLError) as error:
            raise CallFailed(f"{url}: the answer broke off: {error}") from error

    def _make(self, service: str, aws_url: str, region: str) -> Any:
        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"max_attempts": MAX_ATTEMPTS, "mode": "standard"},
            s3={"addressing_style": "path"} if aws_url else None,
        )
        if aws_url:
            keys = {"aws_access_key_id": "flotilla", "aws_secret_access_key": "flotilla"}  # the emulated AWS takes any
            client = boto3.client(service, region_name=region, config=config, endpoint_url=aws_url, **keys)  # type: ignore[call-overload]
        else:
            client = boto3.client(service, region_name=region, config=config)  # type: ignore[call-overload]
        client.meta.events.register_first("before-parameter-build", self._check_operation)
        client.meta.events.register_first("before-send", self._check_request)
        return client

    def _check_operation(self, model: OperationModel, **_: Any) -> None:
        service = str(model.service_model.service_name)
        if model.name not in ALLOWED.get(service, ()):
            raise ForbiddenCall(f"{service}:{model.name}: not on the list of data-plane calls")

    def _check_request(self, request: AWSPreparedRequest, **_: Any) -> None:
        host = str(request.url).split("/")[2]
        if self._lost and (self._lost in host or host in self._hosts_of_lost()):
            raise ForbiddenCall(f"a request to {host}, in {self._lost}, which is lost")

    def _hosts_of_lost(self) -> Collection[str]:
        url = self._estate.regions[self._lost].aws_url
        shared = {its.aws_url for name, its in self._estate.regions.items() if name != self._lost}
        return {url.split("/")[2]} if url and url not in shared else ()


def explain(error: ClientError | BotoCoreError, what: str) -> UserError:
    """`error` as one line that a person can act on."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return UserError(f"{what}: no AWS credentials", "take the responder's role, for example with AWS_PROFILE")
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        if code in EXPIRED:
            return UserError(f"{what}: the AWS credentials have expired", "sign in again, then run the same command: it goes on")
        if code == "ResourceNotFoundException":
            return NoTable(f"{what}: there is no such table", "deploy the environment's foundation, or name another environment")
        if code == "RequestTimeTooSkewed":
            return UserError(f"{what}: this machine's clock is wrong", "set it (timedatectl set-ntp true), then run it again")
        return CallFailed(
            f"{what}: {code}: {error.response.get('Error', {}).get('Message', '')}",
            "see who you are: aws sts get-caller-identity",
        )
    return CallFailed(
        f"{what}: {error}".replace("\n", " "), "the survivor's AWS does not answer; try again, or name another region with --from"
    )
