"""Posting the comment: to the pull request of the reviewed commit, once. GitHub's API is a small server on loopback here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.reviews import comment, post
from infra.reviews.post import GitHub

SHA = "a" * 40
BODY = f"{post.MARKER}\n## Preview\n"


class FakeGitHub(ThreadingHTTPServer):
    """The calls that `post` makes, over lists that a test can read."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pulls: list[dict[str, Any]] = []
        self.comments: list[dict[str, Any]] = []
        self.tokens: set[str] = set()


class _Handler(BaseHTTPRequestHandler):
    server: FakeGitHub

    def do_GET(self) -> None:
        if "/pulls" in self.path:
            self._answer(self.server.pulls)
        else:
            page = int(self.path.rpartition("page=")[2])
            self._answer(self.server.comments[(page - 1) * 100 : page * 100])

    def do_POST(self) -> None:
        number = int(self.path.split("/")[-2])
        self.server.comments.append({**self._body(), "id": 900 + number, "user": {"login": post.BOT}, "number": number})
        self._answer({})

    def do_PATCH(self) -> None:
        wanted = int(self.path.rpartition("/")[2])
        next(item for item in self.server.comments if item["id"] == wanted).update(self._body())
        self._answer({})

    def _body(self) -> dict[str, Any]:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[no-any-return]

    def _answer(self, document: Any) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def github() -> Iterator[FakeGitHub]:
    server = FakeGitHub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def client(server: FakeGitHub) -> GitHub:
    return GitHub(f"http://127.0.0.1:{server.server_port}", "acme/flotilla", "t0ken")


def pull(number: int, sha: str = SHA, state: str = "open") -> dict[str, Any]:
    return {"number": number, "state": state, "head": {"sha": sha}}


def test_the_first_run_writes_a_comment_and_the_next_writes_it_over(github: FakeGitHub) -> None:
    github.pulls = [pull(7)]
    assert post.post(client(github), SHA, BODY + "one") == "posted to #7"
    assert post.post(client(github), SHA, BODY + "two") == "posted to #7"
    assert [(item["number"], item["body"]) for item in github.comments] == [(7, BODY + "two")]
    assert github.tokens == {"Bearer t0ken"}


def test_a_comment_of_ours_is_found_behind_a_hundred_others_and_nobody_elses_is_taken(github: FakeGitHub) -> None:
    """Anybody can write our marker."""
    github.pulls = [pull(7)]
    github.comments = [{"id": number, "user": {"login": "eve"}, "body": BODY} for number in range(100)]
    github.comments.append({"id": 100, "user": {"login": post.BOT}, "body": BODY + "old"})
    post.post(client(github), SHA, BODY + "new")
    assert [item["body"] for item in github.comments[-1:]] == [BODY + "new"] and len(github.comments) == 101
    assert all(item["body"] == BODY for item in github.comments[:100])


@pytest.mark.parametrize("pulls", [[], [pull(7, sha="b" * 40)], [pull(7, state="closed")]])
def test_only_an_open_pull_request_with_this_commit_on_top_is_written_to(github: FakeGitHub, pulls: list[Any]) -> None:
    github.pulls = pulls
    assert "nothing posted" in post.post(client(github), SHA, BODY)
    assert github.comments == []


def test_text_that_is_no_preview_is_not_posted(github: FakeGitHub) -> None:
    github.pulls = [pull(7)]
    assert "nothing posted" in post.post(client(github), SHA, "Buy now")
    assert github.comments == []


def test_github_out_of_reach_is_one_line_and_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "comment.md").write_text(BODY)
    for name, value in {"GITHUB_API_URL": "http://127.0.0.1:9", "GITHUB_REPOSITORY": "a/b", "GITHUB_TOKEN": "t"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["post", str(tmp_path / "comment.md"), "--head", SHA])
    assert post.main() == 1
    assert capsys.readouterr().err.startswith("GitHub: ")


def test_both_modules_write_the_same_marker() -> None:
    assert post.MARKER == comment.MARKER
