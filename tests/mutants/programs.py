"""Programs by chance, most of them wrong, with what the real gates say of them."""

from __future__ import annotations

import re
from random import Random

from mutants.verdicts import Case, Verdict, verdict
from unsafe_programs import ACCEPTED

_TOKEN = re.compile(r'\n {4}|\w+(?:\.\w+)?|\*\*|[<>=!]=|"[^"]*"|[ ]+|.', re.S)
_OTHERS = (
    *"+-*/@<>%~^&|()[]{},.:;=!1",
    *("**", "//", "<<", ":=", "==", " and ", " or ", " not ", "not ", " is ", " in ", " if 1 else ", "lambda: ", "*"),
    *("True", "None", "...", "2j", "b'x'", "'x'", "1000001", "1e999", "-1", "0.5", "f'x'", "[0]", ".T", "()", "(1)"),
    *(
        'over="rows"',
        'over="columns"',
        'over="all"',
        "over=0",
        ', over="rows"',
        "\n",
        "\n    ",
        "#",
        "yield ",
        "*weight",
    ),
    *(
        "import os\n",
        "def f():",
        "return ",
        "exec",
        "print",
        "__class__",
        "t",
        "size",
        "\n    t = weight",
        "del weight",
    ),
)
FREEZES = (
    "",
    "allocate=uniform",
    "compare=layer",
    "update=none,refine=none",
    "strength=0.2",
    "refine=swaps,protect=0.5",
)


def drawn(seed: int, count: int) -> list[tuple[Case, Verdict]]:
    """`count` programs for the language, with a token or a few changed, and a tenth as many for each other gate."""
    from autoprune import algorithms
    from autoprune.language.draw import random_tree
    from autoprune.language.operators import OPERATORS
    from autoprune.language.program import OPTIONS
    from autoprune.language.sample import random_program
    from autoprune.language.space import Space
    from autoprune.language.statistics import FUNCTIONS
    from autoprune.language.trees import shown

    rng = Random(seed)
    words = [*_OTHERS, *OPERATORS, *OPTIONS]
    words += [choice for option in OPTIONS.values() for choice in map(repr, option.choices)]
    words += [name for function in FUNCTIONS.values() for name in function.statistics]
    sound = [random_program(Random(rng.random()), Space()) for _ in range(40)]
    sound += [algorithms.load(name).text for name in algorithms.names()]
    sound += [text for text in ACCEPTED.values() if len(text) < 400]
    cases = [Case("language", text) for text in sound]
    cases += [Case("language", _broken(rng.choice(sound), words, rng)) for _ in range(count)]
    cases += [Case("freeze", _freeze(rng)) for _ in range(count // 10)]
    for _ in range(count // 10):
        option = rng.choice(FREEZES), rng.random() < 0.5
        cases.append(Case("space", rng.choice(sound), option))
    for _ in range(count // 40):
        function = rng.choice(list(FUNCTIONS))
        tree = random_tree(function, rng.choice((1, 2)), rng)
        names = ", ".join(sorted(tree.statistics))
        text = shown(tree, function)
        if "where t1" not in text and "..." not in text:
            cases.append(Case("flaws", f"def {function}({names}):\n    return {text}\n", rng.choice(("row", "layer"))))
    return [(case, verdict(case)) for case in dict.fromkeys(cases)]


def _broken(text: str, words: list[str], rng: Random) -> str:
    tokens = _TOKEN.findall(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.randrange(len(tokens))
        match rng.choice(("drop", "insert", "insert", "replace", "replace", "replace", "double", "swap")):
            case "drop" if len(tokens) > 1:
                del tokens[place]
            case "insert":
                tokens.insert(place, rng.choice(words))
            case "replace":
                tokens[place] = rng.choice(words)
            case "double":
                tokens.insert(place, tokens[place])
            case _:
                other = rng.randrange(len(tokens))
                tokens[place], tokens[other] = tokens[other], tokens[place]
    return "".join(tokens)


def _freeze(rng: Random) -> str:
    """Something like a text of --freeze."""
    from autoprune.language.program import OPTIONS

    def part() -> str:
        name = rng.choice([*OPTIONS, "allocate", "speed", ""])
        choices = OPTIONS[name].choices if name in OPTIONS else ("uniform",)
        value = rng.choice([*choices, "0", "1", "0.5", "-1", "11", "nan", "none", ""])
        return rng.choice((f"{name}={value}",) * 5 + (name, value))

    return ",".join(part() for _ in range(rng.choice((1, 1, 2, 3))))
