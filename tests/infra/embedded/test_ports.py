"""Ports are tried before anything starts, and the refusal says who has one."""

from __future__ import annotations

import os
import socket

import pytest

from infra.embedded.ports import check_host_ports, check_pod_ports, free_port, is_free
from serving.errors import UserError


def test_a_taken_port_is_named_with_its_purpose_and_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(UserError) as raised:
            check_host_ports({port: "Service serving/gateway"})
    for part in (str(port), "Service serving/gateway", f"(pid {os.getpid()})"):
        assert part in raised.value.message
    assert "--port-offset" in raised.value.hint
    check_host_ports({port: "it is free again"})


def test_a_listener_on_every_address_is_in_the_way_of_pods_and_one_on_another_address_is_not() -> None:
    with socket.create_server(("0.0.0.0", 0)) as holder, pytest.raises(UserError, match=str(holder.getsockname()[1])):
        check_pod_ports("127.77.77.77", [holder.getsockname()[1]])
    with socket.create_server(("127.0.0.1", 0)) as holder:
        check_pod_ports("127.77.77.77", [holder.getsockname()[1]])


def test_the_preferred_port_is_kept_unless_it_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        other = free_port("127.0.0.1", taken)
    assert other != taken
    assert is_free("127.0.0.1", other)
    assert free_port("127.0.0.1", other) == other
