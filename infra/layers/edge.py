"""`<env>.edge`: one name for all regions, answered by those that are well and not evacuated."""

from __future__ import annotations

import pulumi

from infra.components.traffic.accelerator import Accelerator
from infra.components.traffic.certificates import Certificates
from infra.components.traffic.firewall import Firewall
from infra.components.traffic.https_listener import HttpsListener
from infra.components.traffic.region_switch import RegionSwitch, RegionSwitchArgs
from infra.components.traffic.regional_records import RegionalRecords, RegionalRecordsArgs
from infra.config import Program
from infra.naming import StackName
from infra.providers import aws_provider
from infra.stack_config import EdgeConfig
from infra.stackref import EdgeOutputs, FoundationOutputs, ServingOutputs, export, read


def build(program: Program[EdgeConfig]) -> None:
    """Declares the stack and exports EdgeOutputs."""
    stack, environment, config = program.stack, program.environment, program.config
    codes = {region: program.catalog.regions[region].code for region in environment.regions}
    providers = {region: aws_provider(f"aws-{region}", region, environment.account_id) for region in environment.regions}
    at_home = pulumi.ResourceOptions(provider=providers[environment.home_region])
    serving = {region: read(StackName(stack.environment, "serving", region), ServingOutputs) for region in environment.regions}

    switch = config.region_switch
    further_checks = switch.health_check_ids if switch != "none" else {}
    records = RegionalRecords("records", RegionalRecordsArgs(config.domain, codes, serving, further_checks), stack, at_home)
    certificates = Certificates("certificates", records.zone, config.domain, environment.home_region, stack, providers, at_home)
    for region in environment.regions:
        there = pulumi.ResourceOptions(provider=providers[region])
        HttpsListener(f"listener-{region}", serving[region], certificates.arns[region], stack, there)
        if config.firewall != "none":
            Firewall(
                f"firewall-{region}",
                program.names.regionally(codes[region], "edge"),
                config.firewall,
                serving[region].apply(lambda known: known.load_balancer_arn),
                stack,
                there,
            )
    if switch != "none":
        foundation = read(StackName(stack.environment, "foundation"), FoundationOutputs)
        args = RegionSwitchArgs(
            plan=program.names.globally("region-switch"),
            regions=environment.regions,
            record=records.api_domain,
            rto_minutes=switch.rto_minutes,
            zone=records.zone,
            boundary_arn=foundation.apply(lambda known: known.permissions_boundary_arn),
        )
        RegionSwitch("region-switch", args, stack, at_home)
    further = []
    if config.accelerator == "beside":
        accelerator = Accelerator(
            "accelerator", program.names.globally("edge"), config.domain, records.zone, serving, stack, at_home
        )
        further.append(accelerator.domain)
    export(
        EdgeOutputs,
        {"api_domain": records.api_domain, "further_domains": further, "regional_domains": records.regional_domains},
    )
