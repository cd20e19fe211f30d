"""A twin's release: made without an engine's environment, the same bytes each time, and what a gateway can count with."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.gateway.prompts import prompt_counter
from serving.models.conversions import converted
from serving.models.files import describe_folder
from serving.twin import release
from tests.serving.twin.conftest import own_vocabulary


def test_it_is_made_once_and_the_same_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOTILLA_ENGINE_PYTHON", str(tmp_path / "none"))
    folders = []
    for name in ("one", "other"):
        monkeypatch.setenv("FLOTILLA_CACHE", str(tmp_path / name))
        folders.append(converted(release.SOURCE, lambda _: None))
        assert converted(release.SOURCE, lambda _: None) == folders[-1]
        assert list(folders[-1].parent.iterdir()) == [folders[-1]], "nothing half made is left"
    assert describe_folder(folders[0]) == describe_folder(folders[1])
    assert folders[0].name == folders[1].name


def test_a_gateway_counts_with_it_as_the_twin_does(tmp_path: Path) -> None:
    files = release.make(tmp_path) / "files"
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    counter = prompt_counter(*((files / name).read_bytes() for name in names))
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "größe 東京 <|im_end|> of the people"}]
    words = own_vocabulary()
    rendered = words.template.render(messages)
    assert counter.chat_ids(messages) == words.encode(rendered, add_special_tokens=False)
    assert counter.text_ids("the people") == words.encode("the people", add_special_tokens=True)
