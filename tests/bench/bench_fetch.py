"""How fast a release comes to an engine, against a bare parallel download of the same objects from the same emulated S3.

    .venv/bin/python tests/bench/bench_fetch.py

Ours resumes, counts, checks lengths and verifies every digest; the bare one is as many threads with ranged GETs into files, and
no more. Both use the same client settings, parts and concurrency, and take turns. The emulated S3 is one Python process, so
this says what our own work costs and nothing about S3's throughput. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from infra.embedded.aws_server import environment
from infra.embedded.ports import free_port
from serving.models.fetch import fetch_release
from serving.models.manifest import MANIFEST_NAME, Manifest, ReleaseFile, release_prefix

NUM_FILES, FILE_MIB = 4, 128
PART_MIB, CONCURRENCY = 16, 16
NUM_ROUNDS = 5
MIN_RATIO = 0.8
BUCKET, MODEL = "artifacts", "small"


def client(port: int) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-2",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(max_pool_connections=CONCURRENCY, connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 2}),
    )


def publish(s3: Any) -> Manifest:
    """A release of incompressible files."""
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-east-2"})
    contents = {f"model-{number}.safetensors": os.urandom(FILE_MIB * 2**20) for number in range(NUM_FILES)}
    files = tuple(ReleaseFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items())
    manifest = Manifest(MODEL, "Bench", "random", 2048, {}, files)
    prefix = release_prefix(MODEL, manifest.release_id)
    for name, content in {**contents, MANIFEST_NAME: manifest.encode()}.items():
        s3.put_object(Bucket=BUCKET, Key=prefix + name, Body=content)
    return manifest


def bare_s(s3: Any, manifest: Manifest, folder: Path) -> float:
    """Seconds that ranged GETs alone take."""
    prefix, part_bytes = release_prefix(MODEL, manifest.release_id), PART_MIB * 2**20

    def get(file: ReleaseFile, offset: int) -> None:
        last = min(offset + part_bytes, file.size_bytes) - 1
        body = s3.get_object(Bucket=BUCKET, Key=prefix + file.path, Range=f"bytes={offset}-{last}")["Body"]
        with (folder / file.path).open("r+b") as target:
            target.seek(offset)
            for chunk in body.iter_chunks(2**20):
                target.write(chunk)

    folder.mkdir()
    for file in manifest.files:
        (folder / file.path).write_bytes(b"")
    began_s = time.monotonic()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        futures = [pool.submit(get, file, offset) for file in manifest.files for offset in range(0, file.size_bytes, part_bytes)]
        for future in futures:
            future.result()
    return time.monotonic() - began_s


def ours(s3: Any, manifest: Manifest, folder: Path) -> tuple[float, float, float]:
    """Seconds in all, of them fetching and verifying."""
    began_s = time.monotonic()
    fetched = fetch_release(s3, BUCKET, MODEL, manifest.release_id, folder, part_bytes=PART_MIB * 2**20, concurrency=CONCURRENCY)
    took_s = time.monotonic() - began_s
    if fetched.verified_bytes != NUM_FILES * FILE_MIB * 2**20:
        raise SystemExit("ours did not verify every byte")
    return took_s, fetched.fetch_s, fetched.verify_s


def measure(port: int, work: Path) -> dict[str, Any]:
    s3 = client(port)
    manifest = publish(s3)
    rounds: list[tuple[float, float, float, float]] = []
    for number in range(NUM_ROUNDS + 1):
        bare = bare_s(s3, manifest, work / f"bare-{number}")
        rounds.append((bare, *ours(s3, manifest, work / f"ours-{number}")))
        for name in ("bare", "ours"):
            shutil.rmtree(work / f"{name}-{number}")
    rounds = rounds[1:]  # the first warms the server's and the kernel's caches
    size_mb = NUM_FILES * FILE_MIB * 2**20 / 1e6
    print(f"{size_mb:.0f} MB in {NUM_FILES} files, parts of {PART_MIB} MiB, {CONCURRENCY} at a time; {platform.platform()}")
    print(f"{'round':>5} {'bare s':>8} {'ours s':>8} {'fetch s':>8} {'verify s':>9} {'ratio':>6}")
    for number, (bare, took, fetch, verify) in enumerate(rounds, start=1):
        print(f"{number:>5} {bare:>8.2f} {took:>8.2f} {fetch:>8.2f} {verify:>9.2f} {bare / took:>6.2f}")
    bare, took, fetch, verify = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(row[0] / row[1] for row in rounds)
    return {
        "fetch_ratio": round(ratio, 3),
        "bare_mb_per_s": round(size_mb / bare, 1),
        "ours_mb_per_s": round(size_mb / took, 1),
        "fetch_s": round(fetch, 3),
        "verify_s": round(verify, 3),
        "num_cpus": os.cpu_count(),
        "holds": ratio >= MIN_RATIO,
    }


def main() -> int:
    work = Path(tempfile.mkdtemp(prefix="bench-fetch-"))
    port = free_port("127.0.0.1", 4566)
    server = subprocess.Popen(
        [sys.executable, "-m", "infra.embedded.aws_server"],
        env={**os.environ, **environment("127.0.0.1", port, work / "aws")},
    )
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_ministack/ready", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        figures = measure(port, work)
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(figures))
    return 0 if figures["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
