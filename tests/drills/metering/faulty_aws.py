"""An AWS that throttles, and that times out after it has done what it was asked: between botocore and the network.

What is thrown is what botocore itself would throw or receive, so its retries and ours meet the real thing.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

from botocore.awsrequest import AWSResponse
from botocore.exceptions import ReadTimeoutError


class _Body:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self, **_: Any) -> Any:
        yield self._data


class FaultySession:
    """Stands where a client's HTTP session stood. Faults meet DynamoDB's PutItem alone."""

    def __init__(self, session: Any, rng: random.Random, throttled: float, timed_out: float) -> None:
        self.counts: Counter[str] = Counter()
        self._session, self._rng = session, rng
        self._throttled, self._timed_out = throttled, timed_out

    def send(self, request: Any) -> Any:
        target = request.headers.get("X-Amz-Target", b"")
        if b"PutItem" not in (target if isinstance(target, bytes) else target.encode()):
            return self._session.send(request)
        draw = self._rng.random()
        if draw < self._throttled:
            self.counts["throttled"] += 1
            document = {
                "__type": "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException",
                "message": "slow down",
            }
            headers = {"content-type": "application/x-amz-json-1.0"}
            return AWSResponse(request.url, 400, headers, _Body(json.dumps(document).encode()))
        answer = self._session.send(request)
        if draw < self._throttled + self._timed_out:
            self.counts["timed_out_after_commit"] += 1
            raise ReadTimeoutError(endpoint_url=request.url)
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def make_faulty(client: Any, rng: random.Random, *, throttled: float, timed_out: float) -> FaultySession:
    """From now on this share of the client's puts is throttled, and that share times out after its commit."""
    session = FaultySession(client._endpoint.http_session, rng, throttled, timed_out)
    client._endpoint.http_session = session
    return session
