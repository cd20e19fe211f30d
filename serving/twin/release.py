"""A release for twins: their own tokenizer, and canary prompts with what a twin answers. Made in a moment, the same each time."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import msgspec

from serving.models.convert import CANARIES_NAME, CONVERSION_NAME, FILES_NAME, Conversion
from serving.models.manifest import REFERENCE_CANARIES, Canaries, Canary
from serving.twin import vocabulary
from serving.twin.text import TextSource

SOURCE = "twin"
"""What `flotilla release publish --source` and the catalog call it."""
CONTEXT_WINDOW_TOKENS = 131_072
"""A twin has no limit of its own; the catalog's window is what counts."""
_PROMPTS = ("The capital of France is", "Monday, Tuesday, Wednesday, Thursday,")
_CANARY_TOKENS = 8


def make(out: Path) -> Path:
    """A folder in `out` like the converter's: the files, their canaries, and what they are."""
    files = vocabulary.own_files()
    documents = {CANARIES_NAME: _json(_canaries()), CONVERSION_NAME: _json(Conversion("Twin", SOURCE, CONTEXT_WINDOW_TOKENS, {}))}
    digest = hashlib.sha256(b"".join((*files.values(), *documents.values()))).hexdigest()
    folder = out / f"{SOURCE}-{digest[:16]}"
    if folder.is_dir():
        return folder
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as made:
        (Path(made) / FILES_NAME).mkdir()
        for name, content in (*((f"{FILES_NAME}/{name}", content) for name, content in files.items()), *documents.items()):
            (Path(made) / name).write_bytes(content)
        Path(made).chmod(0o755)
        Path(made).rename(folder)
        Path(made).mkdir()  # for TemporaryDirectory to remove
    return folder


def _canaries() -> Canaries:
    words = vocabulary.make(vocabulary.own_files())
    text = TextSource(words, seed=0, mean_answer_tokens=0)
    prompts = []
    for prompt in _PROMPTS:
        state = text.start(words.encode(prompt, add_special_tokens=True), "", None)
        expected = ""
        for _ in range(_CANARY_TOKENS):
            token_id, state = text.next(state, may_end=False)
            expected += words.token(token_id)
        prompts.append(Canary(prompt, expected, _CANARY_TOKENS))
    return Canaries(REFERENCE_CANARIES, "a twin of seed 0", tuple(prompts))


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2)
