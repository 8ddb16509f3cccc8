"""What a language model sent → diagnosis, hypothesis, predicted effect and program, as far as they can be found.

Models wrap what they were asked for in prose and code fences, send JSON instead, or leave fields out. Nothing of that
is an error here: only a reply without a program is, and that is for the repair round to say. Replies are data: no part
of one is ever run, and time is linear in its length.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

MAX_CHARACTERS = 200_000
"""Of a reply that are read; a program has 20,000 at most."""

_MAX_FIELD = 2_000

_FIELDS = {
    "diagnosis": "diagnosis",
    "hypothesis": "hypothesis",
    "predicted": "predicted",
    "predicted effect": "predicted",
    "predicted_effect": "predicted",
    "prediction": "predicted",
    "program": "program",
}
_LABEL = re.compile(r"^[ \t>#*_-]{0,8}([A-Za-z][A-Za-z_ ]{2,18}?)[ \t*_]{0,4}:[ \t*_]{0,4}(.*)$")
_FENCE = re.compile(r"^[ \t]{0,3}(```|~~~)")
_NUMBER = re.compile(r"[-+−–]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_CODE = re.compile(r"^(?:def [A-Za-z_]\w*\s*\(|[a-z_]+ *= *[^=]|\"\"\"|''')")


@dataclass(frozen=True)
class Reply:
    """`program` is "" where none was found; `predicted` is in nats a token, negative for better, None where no number
    was given."""

    program: str = ""
    diagnosis: str = ""
    hypothesis: str = ""
    predicted: float | None = None


def parse_reply(text: str) -> Reply:
    """Of several programs the last one counts: models correct themselves."""
    text = text[:MAX_CHARACTERS].replace("\r\n", "\n").replace("\x00", "")
    fields = _labelled(text)
    if found := _json(text):
        fields = {**fields, **found}
    program = _dedented(_program(text, fields.get("program", "")))
    return Reply(
        program=program,
        diagnosis=_shortened(fields.get("diagnosis", "")),
        hypothesis=_shortened(fields.get("hypothesis", "")),
        predicted=_number(fields.get("predicted", "")),
    )


def _labelled(text: str) -> dict[str, str]:
    """Texts after `Label:` up to the next label or code fence."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.split("\n"):
        match = _LABEL.match(line[:200])
        name = _FIELDS.get(match[1].strip().lower()) if match else None
        if name:
            current = found[name] = [line.split(":", 1)[1].strip(" \t*_")]
        elif _FENCE.match(line):
            current = None if "program" not in found or current is not found["program"] else current
        elif current is not None:
            current.append(line)
    return {name: "\n".join(lines).strip("\n") for name, lines in found.items()}


def _json(text: str) -> dict[str, str]:
    """The fields of the first JSON object that has any of them."""
    decoder, start, tries = json.JSONDecoder(), text.find("{"), 0
    while start >= 0 and tries < 20:
        tries += 1
        try:
            value, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found = {
                _FIELDS[name.lower()]: value[name] if isinstance(value[name], str) else json.dumps(value[name])
                for name in value
                if name.lower() in _FIELDS
            }
            if found:
                return found
        start = text.find("{", start + 1)
    return {}


def _program(text: str, labelled: str) -> str:
    blocks = [block for block in _fenced(text) if "def " in block]
    if blocks:
        return blocks[-1]
    if "def " in labelled:
        return _code(labelled) or labelled
    return _code(text)


def _fenced(text: str) -> list[str]:
    """Contents of code fences; one that is not closed ends with the text."""
    blocks: list[str] = []
    current: list[str] | None = None
    for line in text.split("\n"):
        if _FENCE.match(line):
            if current is None:
                current = []
            else:
                blocks.append("\n".join(current))
                current = None
        elif current is not None:
            current.append(line)
    return [*blocks, "\n".join(current)] if current else blocks


def _code(text: str) -> str:
    """Lines from the first that looks like a program's to the last indented one of its last function."""
    lines = text.split("\n")
    first = next((index for index, line in enumerate(lines) if line.startswith("def ")), None)
    if first is None:
        return ""
    last = first
    for index in range(first + 1, len(lines)):
        line = lines[index]
        if line.startswith((" ", "\t", "def ")):
            last = index
        elif line.strip() and not _CODE.match(line):
            break
    while first and (_CODE.match(lines[first - 1]) or not lines[first - 1].strip()):
        first -= 1
    return "\n".join(lines[first : last + 1])


def _dedented(program: str) -> str:
    lines = program.strip("\n").split("\n")
    indents = [len(line) - len(line.lstrip(" ")) for line in lines if line.strip()]
    margin = min(indents, default=0)
    kept = [line[margin:].rstrip() for line in lines]
    return "\n".join(kept).strip("\n") + "\n" if any(kept) else ""


def _shortened(text: str) -> str:
    return " ".join(text[: 2 * _MAX_FIELD].split())[:_MAX_FIELD]


def _number(text: str) -> float | None:
    """The first number in a text; nats a token are never many."""
    match = _NUMBER.search(text[:200])
    if not match:
        return None
    value = float(match[0].replace("−", "-").replace("–", "-"))
    return value if math.isfinite(value) and abs(value) < 1e3 else None
