"""Finds what must never be in an image: keys, credentials, repositories, configuration of people's machines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

MAX_READ_BYTES = 1024 * 1024
"""Larger files are data; keys are small, and so is what holds them."""
NAMES = re.compile(
    r"(^|/)(\.env(\..+)?|\.git|\.aws|\.ssh|\.netrc|\.pypirc|\.docker|\.kube|kubeconfig|id_(rsa|ed25519|ecdsa)|.+\.(pfx|p12|jks))$"
)
CONTENTS: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("a private key", re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s*[A-Za-z0-9+/=]{40}")),
    ("an AWS access key", re.compile(rb"\b(?:AKIA|ASIA)(?![A-Z0-9]{9}EXAMPLE)[A-Z0-9]{16}\b")),
    ("a Flotilla API key", re.compile(rb"\bfl_live_[A-Za-z0-9]{20,}")),
    ("a GitHub token", re.compile(rb"\bgh[pousr]_[A-Za-z0-9]{36}\b")),
    ("a Hugging Face token", re.compile(rb"\bhf_[A-Za-z]{34}\b")),
)


def find_secrets(root: Path) -> Iterator[str]:
    """One line for each finding below `root`: the path and what it is. Documented examples of AWS are none."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if NAMES.search(name):
            yield f"{name}: a file that belongs to a person or a machine"
        elif path.is_file() and not path.is_symlink() and path.stat().st_size <= MAX_READ_BYTES:
            content = path.read_bytes()
            yield from (f"{name}: {what}" for what, pattern in CONTENTS if pattern.search(content))
