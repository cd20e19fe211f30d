"""Releases read from registry and bucket (moto), and prompts counted with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import boto3
import msgspec
import pytest
from gateway_support import CHAT_TEMPLATE, TOKENIZER_CONFIG
from moto import mock_aws
from tokenizers import Tokenizer

from serving.gateway.messages import Tool
from serving.gateway.metrics import Metrics
from serving.gateway.prompts import ChatTemplate, RefusedConversation, UnusableTemplate, prompt_counter
from serving.gateway.releases import ReleaseBook, ReleaseReader
from serving.models.manifest import Manifest, ReleaseFile, release_prefix
from serving.models.registry import WeightedRelease, set_alias

BUCKET, REGISTRY = "artifacts", "registry"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """S3 and DynamoDB clients."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with mock_aws():
        s3, dynamodb = (boto3.client(name, region_name="us-east-1") for name in ("s3", "dynamodb"))
        s3.create_bucket(Bucket=BUCKET)
        dynamodb.create_table(
            TableName=REGISTRY,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
            BillingMode="PAY_PER_REQUEST",
        )
        yield s3, dynamodb


def publish(s3: Any, tokenizer_json: bytes, *, window: int = 128, drop: str = "") -> str:
    files = {
        "tokenizer.json": tokenizer_json,
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
        "model.safetensors": b"never fetched here",
    }
    files.pop(drop, None)
    listed = tuple(ReleaseFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items())
    manifest = Manifest("small", "Tiny", "test", window, {}, listed)
    prefix = release_prefix("small", manifest.release_id)
    for name, content in {**files, "manifest.json": manifest.encode()}.items():
        if name != "model.safetensors":
            s3.put_object(Bucket=BUCKET, Key=prefix + name, Body=content)
    return manifest.release_id


def point_at(dynamodb: Any, *weighted: tuple[str, int], revision: int | None = None) -> None:
    releases = tuple(WeightedRelease(release_id, weight) for release_id, weight in weighted)
    set_alias(dynamodb, REGISTRY, "small", releases, expected_revision=revision, now_ms=1)


def book_of(aws: tuple[Any, Any]) -> ReleaseBook:
    s3, dynamodb = aws
    return ReleaseBook(
        ReleaseReader(dynamodb=dynamodb, registry_table=REGISTRY, s3=s3, bucket=BUCKET), ["small"], Metrics(["small"])
    )


async def test_the_heaviest_release_is_read_and_followed(aws: tuple[Any, Any], tokenizer_json: bytes) -> None:
    book = book_of(aws)
    await book.refresh()
    assert book.get("small") is None, "nothing is published yet"
    first, second = publish(aws[0], tokenizer_json), publish(aws[0], tokenizer_json, window=64)
    point_at(aws[1], (first, 90), (second, 10))
    await book.refresh()
    assert book.get("small").release_id == first
    assert book.get("small").context_window_tokens == 128
    point_at(aws[1], (first, 10), (second, 90), revision=1)
    await book.refresh()
    assert book.get("small").release_id == second
    assert book.get("small").context_window_tokens == 64


@pytest.mark.parametrize(
    "harm", ["a changed tokenizer", "a changed manifest", "a lost file", "no tokenizer", "no registry", "no bucket"]
)
async def test_a_release_that_is_not_what_it_says_leaves_the_last_one(
    aws: tuple[Any, Any], tokenizer_json: bytes, harm: str
) -> None:
    s3, dynamodb = aws
    book = book_of(aws)
    good, bad = (
        publish(s3, tokenizer_json),
        publish(s3, tokenizer_json, window=64, drop="tokenizer.json" if harm == "no tokenizer" else ""),
    )
    point_at(dynamodb, (good, 100))
    await book.refresh()
    point_at(dynamodb, (bad, 100), revision=1)
    prefix = release_prefix("small", bad)
    match harm:
        case "a changed tokenizer":
            s3.put_object(Bucket=BUCKET, Key=prefix + "tokenizer.json", Body=tokenizer_json + b" ")
        case "a changed manifest":
            s3.put_object(Bucket=BUCKET, Key=prefix + "manifest.json", Body=b"{}")
        case "a lost file":
            s3.delete_object(Bucket=BUCKET, Key=prefix + "tokenizer_config.json")
        case "no registry":
            dynamodb.delete_table(TableName=REGISTRY)
        case "no bucket":
            book._reader._bucket = "another"
    await book.refresh()
    assert book.get("small").release_id == good


def test_a_chat_is_counted_with_its_template_and_without_added_tokens(tokenizer_json: bytes) -> None:
    counter = prompt_counter(tokenizer_json, TOKENIZER_CONFIG, CHAT_TEMPLATE.encode())
    oracle = Tokenizer.from_str(tokenizer_json.decode())
    rendered = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert counter.chat_ids([{"role": "user", "content": "Hello"}]) == oracle.encode(rendered, add_special_tokens=False).ids
    assert counter.text_ids("Hello <|im_end|>") == oracle.encode("Hello <|im_end|>").ids


def test_a_template_may_stand_in_the_tokenizers_configuration(tokenizer_json: bytes) -> None:
    plain = {"chat_template": CHAT_TEMPLATE, "eos_token": {"content": "<|im_end|>"}}
    named = {"chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": CHAT_TEMPLATE}]}
    counts = [
        prompt_counter(tokenizer_json, json.dumps(config).encode(), None).chat_ids([{"role": "user", "content": "Hi"}])
        for config in (plain, named)
    ]
    assert counts[0] == counts[1]


DEVELOPERS: list[tuple[str, str]] = [
    # roles of a conversation whose contents are a, b, c; what a template without developers is given
    ("du", "s:a u:b"),
    ("ud", "s:b u:a"),
    ("sdu", "s:a\n\nb u:c"),
    ("uds", "s:b\n\nc u:a"),
    ("us", "u:a s:b"),
]


@pytest.mark.parametrize(("roles", "expected"), DEVELOPERS)
def test_developer_messages_are_counted_as_the_engine_renders_them(roles: str, expected: str) -> None:
    """vLLM makes system messages of them, and joins those at the front; measured against vLLM 0.32."""
    names = {"d": "developer", "s": "system", "u": "user"}
    conversation = [{"role": names[role], "content": content} for role, content in zip(roles, "abc", strict=False)]
    source = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"
    assert ChatTemplate(source, {}).render(conversation) == expected
    knowing = ChatTemplate(source + "{# 'developer' #}", {}).render(conversation)
    assert knowing == " ".join(f"{role}:{content}" for role, content in zip(roles, "abc", strict=False))


def test_a_template_that_takes_parts_gets_parts() -> None:
    template = ChatTemplate("{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}|{% endfor %}{% endfor %}", {})
    assert template.render([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]) == "a|b|"


def test_blocks_are_trimmed_and_json_is_written_as_the_engine_does() -> None:
    source = "{% for m in messages %}\n{{ bos_token }}{{ m | tojson }}\n{% if loop.first %}{% break %}{% endif %}\n{% endfor %}"
    assert (
        ChatTemplate(source, {"bos_token": "<s>"}).render([{"role": "u", "content": "é<"}])
        == '<s>{"role": "u", "content": "é<"}\n'
    )


def test_a_template_for_tools_is_used_for_conversations_with_tools_alone(tokenizer_json: bytes) -> None:
    named = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "tool_use", "template": CHAT_TEMPLATE + "tools!"}]
    counter = prompt_counter(tokenizer_json, json.dumps({"chat_template": named}).encode(), None)
    plain, with_tools = (counter.chat_ids([{"role": "user", "content": "Hi"}], tools) for tools in (None, [{"type": "function"}]))
    assert plain == with_tools[: len(plain)] != with_tools


TOOLS_TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}|{% endfor %}"
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{{ c['function']['name'] }}{{ c['function']['arguments'] | tojson }}{% endfor %}"
    "|{% endfor %}"
)
CALLS: list[tuple[str, str]] = [
    # arguments as a model wrote them; as vLLM gives them to a template
    ('{"b": 1, "a": "\u00e9"}', '{"b": 1, "a": "é"}'),
    ("", "{}"),
    ('{"cut', "{}"),
    ("[1]", "{}"),
    ('"Paris"', "{}"),
]


@pytest.mark.parametrize(("arguments", "rendered"), CALLS)
def test_tool_calls_are_rendered_as_the_engine_renders_them(arguments: str, rendered: str) -> None:
    """A conversation whose calls are counted otherwise than the engine counts them has a wrong bill from its second turn on."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "x", "tool_call_id": "c"},
    ]
    assert ChatTemplate(TOOLS_TEMPLATE, {}).render(messages) == f"assistant:f{rendered}|tool:x|"


def test_tools_reach_the_template_with_their_fields_in_vllms_order() -> None:
    body = b'{"type":"function","function":{"strict":true,"parameters":{"z":1,"a":1.0},"name":"f"}}'
    plain = b'{"function":{"name":"g"},"type":"function"}'
    tools = [msgspec.json.decode(document, type=Tool).plain() for document in (body, plain)]
    assert ChatTemplate(TOOLS_TEMPLATE, {}).render([{"role": "user", "content": "x"}], tools) == (
        '{"type": "function", "function": {"name": "f", "description": null, "parameters": {"z": 1, "a": 1.0}, "strict": true}}|'
        '{"type": "function", "function": {"name": "g", "description": null, "parameters": null}}|'
        "user:x|"
    )


def test_a_template_that_refuses_says_so_in_its_own_words() -> None:
    source = "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0]['content'] }}"
    with pytest.raises(RefusedConversation, match="one at a time"):
        ChatTemplate(source, {}).render([{"role": "user", "content": "a"}] * 2)


@pytest.mark.parametrize(
    "source",
    ["{% for %}", "{{ ''.__class__.__mro__ }}", "no content", "{{ raise_exception('never') }}"],
    ids=["syntax", "breaks out of the sandbox", "drops what was said", "refuses everything"],
)
def test_a_template_that_cannot_be_used_is_found_at_once(source: str) -> None:
    with pytest.raises(UnusableTemplate):
        ChatTemplate(source, {})


async def test_a_metric_says_whether_prompts_are_counted_fast(aws: tuple[Any, Any], tokenizer_json: bytes) -> None:
    s3, dynamodb = aws
    point_at(dynamodb, (publish(s3, tokenizer_json), 100))
    metrics = Metrics(["small"])
    await ReleaseBook(
        ReleaseReader(dynamodb=dynamodb, registry_table=REGISTRY, s3=s3, bucket=BUCKET), ["small"], metrics
    ).refresh()
    assert b'flotilla_fast_tokenizer{model="small"} 1.0' in metrics.render()
