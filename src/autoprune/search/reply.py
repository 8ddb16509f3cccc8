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
from typing import Any

from autoprune.errors import one_line

MAX_CHARACTERS = 200_000
"""Of a reply that are read; a program has 20,000 at most."""

_MAX_FIELD = 2_000
_A_FEW = 10  # characters that a thought may share with the prompt

ASKED_FOR = {
    "diagnosis": "what limits the parent, in one sentence",
    "hypothesis": "what your change does about it, and why it should help, in one sentence",
    "predicted": "the change of the damage you expect, in nats per token, as -0.05",
}
"""What a prompt says of each field. Small models copy it: then it is no thought of theirs."""

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
    """Of several programs the last one counts: models correct themselves. What a model thought aloud does not count."""
    text = text.rpartition("</think>")[2][:MAX_CHARACTERS].replace("\x00", "")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    labelled, said = _labelled(text), _json(text)
    fields = {**labelled, **said}
    given = said.get("program", "")
    program = _dedented((_block(given) or given) if "def " in given else _program(text, labelled.get("program", "")))
    return Reply(
        program=sound(program).replace("\x00", ""),  # JSON can bring in what the text did not have
        diagnosis=_thought(fields, "diagnosis"),
        hypothesis=_thought(fields, "hypothesis"),
        predicted=_number(_thought(fields, "predicted")),
    )


def _thought(fields: dict[str, str], name: str) -> str:
    """A field in one line; "" where the words of the prompt came back."""
    text = beginning(fields.get(name, ""), _MAX_FIELD)
    copied = text.rstrip(". ").lower()
    return "" if len(copied) > _A_FEW and ASKED_FOR[name].startswith(copied) else text


def sound(text: str) -> str:
    """The text with halves of surrogate pairs replaced: neither a file nor a database takes them."""
    return text.encode(errors="replace").decode()


def beginning(text: str, most: int) -> str:
    """The first characters of a text in one line, however long it is."""
    return one_line(text[: 2 * most])[:most]


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
            if found := _json_fields(decoder.raw_decode(text, start)[0]):
                return found
        except (ValueError, RecursionError):
            pass
        start = text.find("{", start + 1)
    return {}


def _json_fields(value: Any) -> dict[str, str]:
    named = {_FIELDS.get(name.lower(), ""): value[name] for name in value} if isinstance(value, dict) else {}
    return {name: each if isinstance(each, str) else json.dumps(each) for name, each in named.items() if name}


def _program(text: str, labelled: str) -> str:
    if block := _block(text):
        return block
    if "def " in labelled:
        return _code(labelled) or labelled
    return _code(text)


def _block(text: str) -> str:
    """The last code block with a function."""
    return next((block for block in reversed(_fenced(text)) if "def " in block), "")


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


def _number(text: str) -> float | None:
    """The first number in a text; nats a token are never many."""
    match = _NUMBER.search(text[:200])
    if not match:
        return None
    value = float(match[0].replace("−", "-").replace("–", "-"))
    return value if math.isfinite(value) and abs(value) < 1e3 else None
