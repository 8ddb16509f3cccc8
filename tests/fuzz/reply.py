"""Target: what a language model sent → fields and program."""

from __future__ import annotations

import json
from random import Random

from autoprune.search.reply import parse_reply
from fuzz import program, texts
from fuzz.outcome import REFUSED
from test_hostile_replies import REPLIES, fenced

_PIECES = (
    *("```python\n", "```\n", "~~~", "```json\n", "<think>", "</think>", "**", ">", "#", "-", "{", "}", "[", "]", '"'),
    *("Diagnosis:", "Hypothesis:", "Predicted:", "Program:", "prediction:", '{"program":', '"diagnosis":', "null"),
    *("\\n", "\\ud800", "\\u0000", "1e999", "-0.05", "−0.1", "+1e-3", "NaN", "def", "\r", "\r\n", "\x00"),
)


def seeds() -> list[bytes]:
    """Hostile replies, and programs in fences and in JSON."""
    honest = [fenced(text) for text in texts.library()]
    honest += [json.dumps({"diagnosis": "x", "predicted": -0.1, "program": text}) for text in texts.library()[:3]]
    return [texts.encoded(text[:20_000]) for text in (*REPLIES.values(), *honest)]


def mutated(data: bytes, rng: Random) -> bytes:
    """A program changes within its fence or its JSON, or what is around it does."""
    text = texts.decoded(data)
    match rng.randrange(3):
        case 0:
            made = texts.decoded(program.mutated(texts.encoded(program.drawn(rng)), rng))
            text = rng.choice((fenced(made), made, json.dumps({"program": made, "predicted": rng.uniform(-1, 1)})))
            if rng.random() < 0.5:
                return texts.encoded(text)
        case 1:
            return texts.encoded(texts.mutated(text, rng))
    for _ in range(rng.choice((1, 2, 5))):
        at = rng.randrange(len(text) + 1)
        piece = rng.choice(_PIECES) * rng.choice((1, 1, 1, 50))
        text = text[:at] + piece + text[at + rng.choice((0, 0, 0, 1, 10)) :]
    return texts.encoded(text[: texts.LONGEST])


def check(data: bytes) -> str:
    reply = parse_reply(texts.decoded(data))
    for text in (reply.program, reply.diagnosis, reply.hypothesis):
        text.encode()
        assert "\x00" not in text
    for text in (reply.diagnosis, reply.hypothesis):
        assert len(text) <= 2_000
        assert text.isprintable()
    assert reply.predicted is None or abs(reply.predicted) < 1e3
    read = program.read(reply.program)
    if read is None:
        return REFUSED
    assert parse_reply(fenced(read.canonical)).program == read.canonical
    return program.check(texts.encoded(reply.program))
