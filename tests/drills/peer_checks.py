"""Asks parliament, cloudsplaining and kubernetes-validate, in an environment of their own without our code.

Reads `{"policies": […], "manifests": [object, …]}`, prints `{"findings": [[issue, resource], …], "num_valid",
"custom_kinds"}`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

KUBERNETES = "1.36"
"""The newest schemas that kubernetes-validate has and our clusters do not pass."""
RISKS = (
    "allows_privilege_escalation",
    "allows_data_exfiltration_actions",
    "credentials_exposure",
    "permissions_management_without_constraints",
    "service_wildcard",
    "write_actions_without_constraints",
)
"""What cloudsplaining looks for in a policy, by its own names."""


def main() -> None:
    import kubernetes_validate  # type: ignore[import-not-found]
    from cloudsplaining.scan.policy_document import PolicyDocument  # type: ignore[import-not-found]
    from parliament import analyze_policy_string  # type: ignore[import-not-found]

    given = json.load(sys.stdin)
    findings = [
        [str(finding.issue), resource] for resource, text in given["policies"] for finding in analyze_policy_string(text).findings
    ]
    for resource, text in given["policies"]:
        policy = PolicyDocument(json.loads(text))
        findings += [[risk, resource] for risk in RISKS if getattr(policy, risk)]
    num_valid, custom = 0, set()
    for manifest in given["manifests"]:
        try:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
            num_valid += 1
        except kubernetes_validate.SchemaNotFoundError:
            custom.add(manifest["kind"])
        except kubernetes_validate.ValidationError as error:
            findings.append([f"INVALID: {first_line(error)}", f"{manifest['kind']} {manifest['metadata']['name']}"])
    print(json.dumps({"findings": findings, "num_valid": num_valid, "custom_kinds": sorted(custom)}))


def first_line(error: Any) -> str:
    return str(error).partition("\n")[0]


if __name__ == "__main__":
    main()
