"""`<env>.edge`: one name for all regions, answered by those that are well."""

from __future__ import annotations

from functools import partial

import pulumi

from infra.components.traffic.regional_records import RegionalEndpoint, RegionalRecords, RegionalRecordsArgs
from infra.config import Program
from infra.naming import StackName
from infra.providers import aws_provider
from infra.stack_config import EdgeConfig
from infra.stackref import EdgeOutputs, ServingOutputs, export, read


def build(program: Program[EdgeConfig]) -> None:
    """Declares the stack and exports EdgeOutputs."""
    stack, environment, config = program.stack, program.environment, program.config
    provider = aws_provider("aws", environment.home_region, environment.account_id)
    endpoints = {
        region: read(StackName(stack.environment, "serving", region), ServingOutputs).apply(
            partial(_endpoint, f"{program.catalog.regions[region].code}.{config.domain}")
        )
        for region in environment.regions
    }
    records = RegionalRecords(
        "records", RegionalRecordsArgs(config.domain, endpoints), stack, pulumi.ResourceOptions(provider=provider)
    )
    export(EdgeOutputs, {"api_domain": records.api_domain})


def _endpoint(address: str, outputs: ServingOutputs) -> RegionalEndpoint:
    return RegionalEndpoint(address, outputs.gateway_health_path)
