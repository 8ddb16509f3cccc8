"""Changes of texts: characters, words, lines, and what has broken readers of Python before."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from random import Random

from autoprune import algorithms
from autoprune.language.operators import OPERATORS
from autoprune.language.program import OPTIONS
from autoprune.language.statistics import LAYER_STATISTICS, STATISTICS

_WORD = re.compile(r"[A-Za-z_]\w*|\d[\w.]*|\"[^\"\n]*\"|\*\*|[<>=!]=|\n[ ]*|\s|.", re.S)

LONGEST = 24_000
"""Characters of a text that is made here: just beyond what a program may have."""

_KEYWORDS = str.split(
    "def return lambda if else and or not is in for while with as import from class async await yield global nonlocal "
    "del assert raise try except finally pass break continue match case type None True False print _"
)

_SIGNS = str.split(
    "( ) [ ] { } , : ; . ... = == != < > <= >= + - * / // % ** @ & | ^ ~ << >> := -> += @= ' \" ''' \"\"\" # \\ $ ? ! `"
)

_NUMBERS = str.split(
    "0 1 -1 0.0 -0.0 1e6 -1e6 1e-45 1e-400 1e999 -1e999 1000000.1 0x10 0b1 0o7 1_000 1__0 1j 1e5j .5 5. 1e 0777 "
    "9**9**9 10**10000 0.1e-300 3.4028236e38 1e38 16777217 ٣ 1e+1e 0xfffffffffffffffffffffffff"
)

_TRICKS = [
    "9" * 5_000,
    "0x" + "f" * 6_000,
    "(" * 150,
    "-" * 900,
    "abs(" * 70,
    "lambda: " * 80,
    "not " * 90,
    "[0]" * 90,
    "f'{" * 20,
    'f"{weight!r:>{10**9}}"',
    "# type: ignore",
    "# -*- coding: utf-7 -*-\n",
    "\ufeff",
    "\x00",
    "\x0c",
    "\t",
    "\r",
    "\x1a",
    "\x1b[2J",
    "\u2028",
    "\u00a0",
    "\u202e",
    "\ud800",
    "ｗｅｉｇｈｔ",
    "ﬁ",
    "é",
    "e\u0301",
    "ª",
    "𝐚bs",
    "·",
    "\\N{BULLET}",
    "\\\n",
    "\\x",
    "b'x'",
    "rb''",
    "u'x'",
    "'rows'",
    '"columns"',
    '"all"',
    'over="rows"',
    "over=",
    "**{'over': 'rows'}",
    "*weight",
    "weight.data",
    "weight[0]",
    "(weight := 1)",
    "[x for x in weight]",
    "(yield)",
    "await weight",
    "__import__('os')",
    "__builtins__",
    "__debug__",
    "@abs\n",
    "def score(weight, /): return weight\n",
    "def score(*, weight): return weight\n",
    "def score(weight: int = 1) -> int: return weight\n",
    "async def score(weight): return weight\n",
    "class A: pass\n",
    "global weight\n",
    "if 1: pass\n",
    "match weight:\n    case _: pass\n",
    "with weight as w: pass\n",
    "x: int = 1\n",
    "x = y = 1\n",
    "x, y = 1, 2\n",
    "strength = -True\n",
    "strength = +1\n",
    "strength = - -1\n",
    "max_swaps = 1e4\n",
    'compare = "layer"\n',
    '"""\x1b]0;owned\x07"""\n',
    "    t = weight * weight\n" * 60,
    "    t = t @ gram\n" * 30,
    "weight + " * 100,
]


@cache
def words() -> list[str]:
    """All words that mean something, and many that should not."""
    own = [*STATISTICS, *LAYER_STATISTICS, *OPERATORS, *OPTIONS, *(c for row in OPTIONS.values() for c in row.choices)]
    return [*own, *own, *_KEYWORDS, *_SIGNS, *_SIGNS, *_NUMBERS, *_TRICKS, "score", "allocate", "t", "x"]


@cache
def library() -> tuple[str, ...]:
    """The texts of the library."""
    return tuple(algorithms.load(name).text for name in algorithms.names())


def _at(parts: list[str], rng: Random) -> int:
    return rng.randrange(len(parts) + 1)


def _replace(parts: list[str], rng: Random) -> None:
    if parts:
        parts[rng.randrange(len(parts))] = rng.choice(words())


def _insert(parts: list[str], rng: Random) -> None:
    parts.insert(_at(parts, rng), rng.choice(words()))


def _delete(parts: list[str], rng: Random) -> None:
    start = _at(parts, rng)
    del parts[start : start + rng.choice((1, 1, 1, 2, 8))]


def _repeat(parts: list[str], rng: Random) -> None:
    start = _at(parts, rng)
    piece = parts[start : start + rng.choice((1, 2, 4, 8, 32))]
    parts[start:start] = piece * rng.choice((1, 1, 2, 10, 100))


def _swap(parts: list[str], rng: Random) -> None:
    if parts:
        first, second = rng.randrange(len(parts)), rng.randrange(len(parts))
        parts[first], parts[second] = parts[second], parts[first]


def _rename(parts: list[str], rng: Random) -> None:
    """One word everywhere: the program stays well-formed, and a statistic becomes another."""
    names = [part for part in parts if part.isidentifier()]
    if names:
        old, new = rng.choice(names), rng.choice(words())
        parts[:] = [new if part == old else part for part in parts]


def _splice(parts: list[str], rng: Random) -> None:
    """A few words of another program."""
    other = _WORD.findall(rng.choice(library()))
    start = rng.randrange(len(other))
    place = _at(parts, rng)
    parts[place : place + rng.choice((0, 3, 10))] = other[start : start + rng.choice((1, 3, 10, 40))]


def _wrap(parts: list[str], rng: Random) -> None:
    """A word becomes the argument of an operator."""
    if parts:
        at = rng.randrange(len(parts))
        parts[at] = rng.choice((f"{rng.choice(list(OPERATORS))}({parts[at]})", f"({parts[at]})", f"-{parts[at]}"))


def _number(parts: list[str], rng: Random) -> None:
    """A number becomes another."""
    places = [index for index, part in enumerate(parts) if part[:1].isdigit()]
    if places:
        parts[rng.choice(places)] = rng.choice((rng.choice(_NUMBERS), repr(rng.uniform(-1e6, 1e6))))


_CHANGES: tuple[Callable[[list[str], Random], None], ...] = (
    *(_replace, _insert, _delete, _repeat, _swap, _rename, _splice, _wrap, _number),
)


def of_words(text: str, rng: Random) -> str:
    """A text after a few changes of its words."""
    parts = _WORD.findall(text[:LONGEST])
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(_CHANGES)(parts, rng)
    return "".join(parts)[:LONGEST]


def of_characters(text: str, rng: Random) -> str:
    """A text after a few changes of its characters."""
    characters = list(text[:LONGEST])
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = _at(characters, rng)
        match rng.randrange(4):
            case 0:
                characters.insert(at, chr(rng.choice((rng.randrange(128), rng.randrange(0x110000)))))
            case 1:
                del characters[at : at + 1]
            case 2:
                characters[at : at + 1] = [chr(rng.randrange(32, 127))]
            case _:
                characters[at:at] = characters[rng.randrange(len(characters) + 1) :][: rng.choice((2, 20))]
    return "".join(characters)[:LONGEST]


def mutated(text: str, rng: Random) -> str:
    """Mostly words, sometimes characters."""
    return of_words(text, rng) if rng.random() < 0.75 else of_characters(text, rng)


def decoded(data: bytes) -> str:
    """Any bytes as a text, halves of surrogates included."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape")


def encoded(text: str) -> bytes:
    """The bytes of a text, halves of surrogates included."""
    return text.encode("utf-8", "surrogatepass")
