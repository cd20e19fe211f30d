"""What holds of every resource: who it belongs to, where it lies, and what stands between it and its end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from policies.guardrails.estate import KUBERNETES_TYPES, PROVIDER_TYPES, Estate
from policies.guardrails.rule import Rulebook
from policies.resources import Declared, at, listed, texts

TAGS = ("project", "environment", "stack", "component")
IRREPLACEABLE = (
    "aws:s3/bucket:Bucket",
    "aws:kms/key:Key",
    "aws:kms/replicaKey:ReplicaKey",
    "aws:dynamodb/table:Table",
    "aws:secretsmanager/secret:Secret",
    "aws:eks/cluster:Cluster",
    "aws:ecr/repository:Repository",
    "aws:route53/zone:Zone",
    "kubernetes:core/v1:Namespace",
)
"""What holds data, or takes everything in it along."""
AWS_PROVIDER = f"{PROVIDER_TYPES}aws"
EXPERIMENT = "aws:fis/experimentTemplate:ExperimentTemplate"
PRODUCTION, MEANT_TAG = "prod", "drills-in-production"
LONGEST_EXPERIMENT_MIN = 30
_MINUTES = re.compile(r"PT(\d+)M")
_REGION = re.compile(
    r"\b(?:us|eu|ap|ca|sa|me|af|il|mx)-(?:gov-)?(?:north|south|east|west|central|northeast|southeast|northwest|southwest)-\d\b"
)
_SECRET = re.compile(r"(AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY-----|fl_live_[0-9A-Za-z]{20,}|ghp_[0-9A-Za-z]{30,})")

book = Rulebook()


@book.rule("tagged", remedy="pass the component's tags")
def tagged(resource: Declared, _estate: Estate) -> Iterator[str]:
    """What can carry tags says whose it is and where it belongs: bills and orphans go by them."""
    tags = resource.at("tags")
    if tags is None:
        return
    missing = [tag for tag in TAGS if not at(tags, tag)]
    if missing:
        yield f"lacks the tags {', '.join(missing)}"
    elif at(tags, "stack") != resource.stack:
        yield f"says that it belongs to {at(tags, 'stack')}"


@book.rule("state-tagged", *(kind for kind in IRREPLACEABLE if kind.startswith("aws:")), remedy="pass the component's tags")
def state_tagged(resource: Declared, _estate: Estate) -> Iterator[str]:
    """What holds data has tags at all."""
    if resource.at("tags") is None:
        yield "has no tags"


@book.rule("labelled", remedy="pass the labels of pods.labels")
def labelled(resource: Declared, _estate: Estate) -> Iterator[str]:
    """A Kubernetes object of ours says so."""
    if not resource.type.startswith(KUBERNETES_TYPES) or resource.type.startswith("kubernetes:helm.sh"):
        return
    if resource.at("metadata", "labels", "app.kubernetes.io/part-of") != "flotilla":
        yield "is not labelled as part of flotilla"


@book.rule("state-protected", *IRREPLACEABLE, remedy="set protect=True")
def state_protected(resource: Declared, _estate: Estate) -> Iterator[str]:
    """What holds data is protected: Pulumi refuses to delete or replace it until somebody says so in the program."""
    if not resource.is_protected:
        yield "may be deleted by a change of the program"


@book.rule("provider-stated", remedy="pass the layer's provider")
def provider_stated(resource: Declared, _estate: Estate) -> Iterator[str]:
    """Every resource names its provider: a default one follows the shell's region and account."""
    if not resource.provider and not resource.type.startswith(("pulumi:", PROVIDER_TYPES)):
        yield "has no provider of its own"


@book.rule("account-guarded", AWS_PROVIDER, remedy="set allowedAccountIds")
def account_guarded(provider: Declared, _estate: Estate) -> Iterator[str]:
    """A provider refuses every account but its environment's: the wrong profile in a shell changes nothing."""
    accounts = provider.at("allowedAccountIds")
    accounts = json.loads(accounts) if isinstance(accounts, str) and accounts.startswith("[") else accounts
    if not isinstance(accounts, list) or len(accounts) != 1:
        yield "takes any account"


@book.rule("region-allowed", AWS_PROVIDER, remedy="add the region to the environment's regions, or correct it")
def region_allowed(provider: Declared, estate: Estate) -> Iterator[str]:
    """Resources lie in the regions of their environment, and in us-east-1 only what AWS offers nowhere else."""
    region = provider.at("region")
    if region in estate.scope.regions or (region == "us-east-1" and not provider.region):
        return
    yield f"works in {region}, and {provider.environment} has {', '.join(estate.scope.regions)}"


@book.rule("regions-apart", remedy="take what the region needs from foundation's outputs")
def regions_apart(resource: Declared, estate: Estate) -> Iterator[str]:
    """A regional stack takes nothing from another region: what it takes would be lost with that region.

    The home region is an exception: conditional writes have one place. An experiment names the region that it cuts off.
    """
    if not resource.region:
        return
    others = set(estate.scope.regions) - {resource.region}
    named = {match for text in texts(resource.inputs) for match in _REGION.findall(text)} & others
    named -= set(estate.scope.regions[:1])
    if resource.type == EXPERIMENT:
        return
    if named and resource.type.startswith("aws:"):
        yield f"names {', '.join(sorted(named))}"


@book.rule("no-secret-in-plain", remedy="take it out, revoke it, and use Secrets Manager")
def no_secret_in_plain(resource: Declared, _estate: Estate) -> Iterator[str]:
    """No credential stands in the program."""
    if any(_SECRET.search(text) for text in texts(resource.inputs)):
        yield "holds a credential in plain text"


@book.rule(
    "health-checks-quick",
    "aws:route53/healthCheck:HealthCheck",
    remedy="set requestInterval to 10 and failureThreshold to 3 or less",
)
def health_checks_quick(check: Declared, _estate: Estate) -> Iterator[str]:
    """A lost region is noticed in about half a minute."""
    if check.at("type") in ("CALCULATED", "CLOUDWATCH_METRIC", "RECOVERY_CONTROL"):
        return
    interval_s, failures = check.at("requestInterval"), check.at("failureThreshold")
    if interval_s != 10 or not isinstance(failures, int) or failures > 3:
        yield f"asks each {interval_s} s and waits for {failures} failures"


@book.rule(
    "experiments-stop",
    EXPERIMENT,
    remedy="give it an alarm as stop condition, a log, and actions of at most PT30M",
)
def experiments_stop(template: Declared, _estate: Estate) -> Iterator[str]:
    """An experiment that breaks things ends by an alarm, after half an hour at the latest, and leaves a log."""
    conditions = listed(template.at("stopConditions"))
    if not any(at(condition, "source") == "aws:cloudwatch:alarm" and at(condition, "value") for condition in conditions):
        yield "stops at no alarm"
    if not template.at("logConfiguration"):
        yield "leaves no log"
    for action in listed(template.at("actions")):
        durations = [at(given, "value") for given in listed(at(action, "parameters")) if at(given, "key") == "duration"]
        minutes = _MINUTES.fullmatch(str(durations[0])) if durations else None
        if minutes is None or int(minutes[1]) > LONGEST_EXPERIMENT_MIN:
            yield f"does {at(action, 'actionId')} for {durations[0] if durations else 'as long as it likes'}"


@book.rule(
    "experiments-meant",
    EXPERIMENT,
    remedy="say `in_production: true` below `flotilla:drills` in the stack's file, or take the template out",
)
def experiments_meant(template: Declared, estate: Estate) -> Iterator[str]:
    """Production keeps no template that breaks it unless its file says that this is meant."""
    if estate.stack.partition(".")[0] == PRODUCTION and at(template.at("tags"), MEANT_TAG) != "true":
        yield "could be started in production, and nothing says that it is meant to be there"
