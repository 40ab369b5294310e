"""Structured answers on the testbed: how many are valid, and what the grammar costs.

    python tests/benchmarks/bench_structured.py [--n 200] [--json docs/structured.json]

Asked under schemas of five kinds about held-out scenes, bare and behind each defence that steers
words; a refusal is counted as one. The cost is the time of a token under the grammar over the time
of a token of a free answer as long, from pairs of answers in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final, Literal

import jsonschema
import torch
from pydantic import BaseModel, Field
from rich.progress import track

from sightrail.guardrails import LocalLVLM
from sightrail.guardrails.evaluation.stacks import (
    Blind,
    Supplies,
    artifacts_for,
    calibration_for,
    guarded,
)
from sightrail.testbed.source import as_messages, draw_requests

STACKS: Final = ("bare", "prefix", "prefix+calibration", "casa", "moras", "davsp")
MOST: Final = 160


class Seen(BaseModel):
    """What a picture shows."""

    kind: Literal["animal", "food", "tool"]
    count: int = Field(ge=0, le=9)


class Part(BaseModel):
    """A thing and its parts, one in the other."""

    word: str = Field(max_length=12)
    parts: list[Seen] = Field(max_length=2)


SCHEMAS: Final[tuple[dict[str, Any], ...]] = (
    Seen.model_json_schema(),
    Part.model_json_schema(),
    {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]},
    {
        "type": "object",
        "properties": {"words": {"type": "array", "maxItems": 3, "items": {"enum": ["a", "b"]}}},
        "required": ["words"],
    },
    {
        "type": "object",
        "properties": {"to": {"anyOf": [{"type": "null"}, {"type": "integer", "maximum": 9}]}},
        "required": ["to"],
        "additionalProperties": False,
    },
)


def form(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as OpenAI's response_format."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def outcome(text: str, schema: dict[str, Any]) -> str:
    """Whether an answer is what its schema asks for."""
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return "invalid"
    return "valid"


def asked(n: int) -> list[list[dict[str, Any]]]:
    """Benign and harmful requests about held-out scenes, and in text alone."""
    groups = ("benign", "lookalike", "object", "typographic", "text")
    each = -(-n // len(groups))
    talks = [talk for group in groups for talk in draw_requests(group, each, "test", 3)]
    return [as_messages(talk) for talk in talks][:n]


def validity(lvlm: LocalLVLM, name: str, n: int) -> dict[str, int]:
    """Valid, invalid, refused."""
    found: Counter[str] = Counter()
    for index, messages in enumerate(track(asked(n), name)):
        schema = SCHEMAS[index % len(SCHEMAS)]
        answer = lvlm.chat(messages, response_format=form(schema), max_new_tokens=MOST)
        found["refused" if answer.refused else outcome(answer.text, schema)] += 1
    return dict(found)


def cost(lvlm: LocalLVLM, n: int) -> float:
    """The median ratio of the time of a token: under the grammar over free."""
    ratios = []
    for index, messages in enumerate(track(asked(n), "cost")):
        schema = SCHEMAS[index % 2]
        began = time.perf_counter()
        held = lvlm.chat(messages, response_format=form(schema), max_new_tokens=MOST)
        between = time.perf_counter()
        tokens = held.usage.output_tokens
        free = lvlm.chat(messages, min_new_tokens=tokens, max_new_tokens=tokens)
        after = time.perf_counter()
        each = (between - began) / tokens, (after - between) / free.usage.output_tokens
        ratios.append(each[0] / each[1])
    return statistics.median(ratios)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    bare = LocalLVLM.from_pretrained("testbed")
    supplies = Supplies(Blind(), artifacts_for("testbed"), calibration_for("testbed"), "testbed")
    stacks = {name: guarded(name, bare, supplies) for name in STACKS}
    report: dict[str, Any] = {
        "n": chosen.n,
        "answers": {name: validity(lvlm, name, chosen.n) for name, lvlm in stacks.items()},
        "time of a token, grammar over free": round(cost(bare, min(chosen.n, 60)), 3),
    }
    print(json.dumps(report, indent=2))
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
