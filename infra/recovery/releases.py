"""Whether a survivor holds, whole, every release that is served: its manifest and each file that it lists, at its size.

Digests are verified by every engine that fetches; here a listing must do, in seconds, in a bad hour.
"""

from __future__ import annotations

import json

from botocore.exceptions import BotoCoreError, ClientError

from infra.recovery.guard import explain
from infra.recovery.step import Run


def missing_releases(run: Run, region: str) -> list[str]:
    """A sentence for each class of which the survivor `region` lacks a release that any region serves; [] if none.

    Raises:
        UserError: its bucket cannot be read.
    """
    told = run.reports()
    wanted = {
        (name, release) for report in told.values() for name, releases in report.release_ids.items() for release in releases
    }
    bucket = run.estate.region(region).artifact_bucket
    faults = []
    for model_class, release_id in sorted(wanted):
        fault = _fault(run, region, bucket, f"releases/{model_class}/{release_id}/")
        if fault:
            faults.append(f"{region} lacks release {release_id[:12]} of {model_class}: {fault}")
    return faults


def _fault(run: Run, region: str, bucket: str, prefix: str) -> str:
    """What is wrong with the copy at `prefix`; "" if nothing is."""
    s3 = run.guard.client("s3", region)
    try:
        sizes: dict[str, int] = {}
        token: dict[str, str] = {}
        while True:
            page = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, **token)
            sizes.update((item["Key"].removeprefix(prefix), item["Size"]) for item in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                break
            token = {"ContinuationToken": page["NextContinuationToken"]}
        if "manifest.json" not in sizes:
            return "no manifest"
        manifest = json.loads(s3.get_object(Bucket=bucket, Key=f"{prefix}manifest.json")["Body"].read())
    except (ClientError, BotoCoreError) as error:
        raise explain(error, f"{bucket} in {region}") from error
    for listed in manifest["files"]:
        if sizes.get(listed["path"]) != listed["size_bytes"]:
            return f"{listed['path']} is missing or not whole"
    return ""
