"""Posts a review's comment to its pull request, or writes over the one that is there.

Runs with a token that may write, from the default branch; the text comes from a pull request's own run and is posted as it is.
Which pull request it is follows from the commit that was reviewed, not from anything in the artifact: a fork could write another
number there. Uses the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

MARKER = "<!-- flotilla: preview -->"
"""As `infra.reviews.comment` writes it; that module needs the whole project, this one nothing."""
BOT = "github-actions[bot]"
TIMEOUT_S = 20.0
PAGE = 100
MAX_PAGES = 20


class GitHub:
    """The few calls that this needs."""

    def __init__(self, api: str, repository: str, token: str) -> None:
        self._base = f"{api}/repos/{repository}"
        self._token = token

    def pull_requests(self, head_sha: str) -> list[int]:
        """Open pull requests whose newest commit is `head_sha`."""
        found = self._call("GET", f"/commits/{head_sha}/pulls?per_page={PAGE}")
        return [item["number"] for item in found if item["state"] == "open" and item["head"]["sha"] == head_sha]

    def comment_of_ours(self, number: int) -> int | None:
        """The comment that an earlier run posted; None for the first run."""
        for page in range(1, MAX_PAGES + 1):
            comments = self._call("GET", f"/issues/{number}/comments?per_page={PAGE}&page={page}")
            for item in comments:
                if item["user"]["login"] == BOT and item["body"].startswith(MARKER):
                    return int(item["id"])
            if len(comments) < PAGE:
                break
        return None

    def write(self, number: int, comment_id: int | None, body: str) -> None:
        """A new comment, or `comment_id` anew."""
        if comment_id is None:
            self._call("POST", f"/issues/{number}/comments", {"body": body})
        else:
            self._call("PATCH", f"/issues/comments/{comment_id}", {"body": body})

    def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> Any:
        request = urllib.request.Request(  # noqa: S310 (GitHub's API, or what GITHUB_API_URL says)
            self._base + path,
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={
                "Authorization": f"Bearer {self._token}",
                "Accept": "application/vnd.github+json",
                "Content-Type": "application/json",
                "X-GitHub-Api-Version": "2022-11-28",
            },
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")


def post(github: GitHub, head_sha: str, body: str) -> str:
    """Posts `body` to the open pull request of `head_sha`; says in a sentence what was done."""
    if not body.startswith(MARKER):
        return "the text is not a preview's: nothing posted"
    numbers = github.pull_requests(head_sha)
    if not numbers:
        return "no open pull request has this commit as its newest: nothing posted"
    for number in numbers:
        earlier = github.comment_of_ours(number)
        github.write(number, earlier, body)
    return f"posted to {', '.join(f'#{number}' for number in numbers)}"


def main() -> int:
    """The command. Exits 1 where GitHub refuses."""
    options = argparse.ArgumentParser(prog="python -m infra.reviews.post", description=__doc__)
    options.add_argument("file", type=Path)
    options.add_argument("--head", required=True, help="the commit that was reviewed")
    given = options.parse_args()
    github = GitHub(
        os.environ.get("GITHUB_API_URL", "https://api.github.com"), os.environ["GITHUB_REPOSITORY"], os.environ["GITHUB_TOKEN"]
    )
    try:
        print(post(github, given.head, given.file.read_text(encoding="utf-8")))  # noqa: T201 (a script's output)
    except (urllib.error.URLError, OSError) as error:
        print(f"GitHub: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
