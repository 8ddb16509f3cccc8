"""What a language model is asked: a walk in the graph, the tables of the language, and the form of the reply.

A prompt has a budget. Where the whole walk does not fit, the least telling parts go first (`_LEVELS`): other programs,
doc lines, far ancestors, traits; the task, the parent and the form of the reply always stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoprune.language.operators import OPERATORS as LANGUAGE_OPERATORS
from autoprune.language.program import Option
from autoprune.language.space import MAX_PRODUCTS, Space
from autoprune.language.statistics import FUNCTIONS
from autoprune.search.archive import Edge
from autoprune.search.graph import Graph
from autoprune.search.protocol import OPERATORS
from autoprune.search.reply import ASKED_FOR

CHARACTERS_PER_TOKEN = 2.7
"""About the fewest in English and in programs, by the tokenizers of common models."""

GRAPH, PLAIN = "graph", "plain"

_LONGEST_THOUGHT = 300  # characters of a diagnosis or hypothesis that are shown


@dataclass(frozen=True)
class _Level:
    """How much of each part is shown: how many programs, how many steps that led to the parent, that helped anywhere,
    that were refuted; how many traits; where the parent does harm; what statistics mean; the tables of the language."""

    programs: int
    chain: int
    helped: int
    refuted: int
    effects: int
    harm: bool
    docs: bool
    tables: bool


_LEVELS = (
    _Level(programs=60, chain=8, helped=8, refuted=8, effects=24, harm=True, docs=True, tables=True),
    _Level(programs=40, chain=8, helped=6, refuted=8, effects=20, harm=True, docs=True, tables=True),
    _Level(programs=24, chain=6, helped=5, refuted=6, effects=16, harm=True, docs=True, tables=True),
    _Level(programs=12, chain=5, helped=3, refuted=4, effects=10, harm=True, docs=True, tables=True),
    _Level(programs=6, chain=3, helped=2, refuted=3, effects=8, harm=False, docs=False, tables=True),
    _Level(programs=3, chain=2, helped=1, refuted=1, effects=4, harm=False, docs=False, tables=True),
    _Level(programs=0, chain=0, helped=0, refuted=0, effects=0, harm=False, docs=False, tables=True),
    _Level(programs=0, chain=0, helped=0, refuted=0, effects=0, harm=False, docs=False, tables=False),
)

_WORSE = 1 / 4  # of the programs that are shown are not the best, but spread over the others: they teach as well

# No program stands here as an example: small models copied it, seven times of eight (LOG.md).
_REPLY = f"""Reply in this form and with nothing else:

diagnosis: {ASKED_FOR["diagnosis"]}
hypothesis: {ASKED_FOR["hypothesis"]}
predicted: {ASKED_FOR["predicted"]}
program:
```python
the whole program, one that has not been measured yet
```"""


@dataclass(frozen=True, kw_only=True)
class Prompter:
    """Writes prompts. `about` says in one paragraph what is pruned, how far, and what damage is."""

    about: str
    space: Space
    tokens: int
    kind: str = GRAPH

    def prompt(self, graph: Graph, operator: str, parents: Sequence[str]) -> str:
        """For a step from these parents (digests), the one to be improved first."""
        if self.kind == PLAIN:
            return self._fitting(lambda level: self._plain(graph, level))
        return self._fitting(lambda level: self._walk(graph, operator, parents, level))

    def repair(self, prompt: str, reply: str, refusal: str) -> str:
        """After a reply that was refused: the checker's words as they are."""
        shown = reply[: int(self.tokens * CHARACTERS_PER_TOKEN / 4)]
        return "\n\n".join(
            [prompt, "# Your reply\n" + shown, f"# It was refused\n{refusal}", "Mend it. " + _REPLY.splitlines()[0]]
        )

    @staticmethod
    def known(graph: Graph, digest: str) -> str:
        """What is said of a program that is there already."""
        told = _damage(graph, digest) if graph.rung(digest) else "it could not be measured"
        return f"this program was there before ({told}); write another one"

    def _fitting(self, write: Callable[[_Level], str]) -> str:
        text = ""
        for level in _LEVELS:
            text = write(level)
            if len(text) <= self.tokens * CHARACTERS_PER_TOKEN:
                break
        return text

    def _walk(self, graph: Graph, operator: str, parents: Sequence[str], level: _Level) -> str:
        first = parents[0]
        parts = [_TASK, self.about, *self._language(level)]
        programs = _program_lines(graph, level.programs)
        if programs:
            noise = f"; {graph.noise:.3f} more or less is noise" if graph.noise else ""
            parts.append(f"# Programs so far, in short, by damage (nats per token{noise})\n" + "\n".join(programs))
        effects = _effect_lines(graph, level.effects)
        if effects:
            parts.append("# What adding a trait did, over all steps so far\n" + "\n".join(effects))
            untried = self._untried(graph)
            parts[-1] += f"\nIn no program yet: {', '.join(untried)}" if untried else ""
        chain = graph.chain(first)[-level.chain :] if level.chain else []
        helped = [edge for edge in graph.confirmed() if edge not in chain and edge.parents[:1] != (first,)]
        helped = helped[: level.helped]
        if helped:
            parts.append("# Steps that helped elsewhere\n" + "\n".join(_step(graph, edge) for edge in helped))
        if chain:
            parts.append("# How the parent came about\n" + "\n".join(_step(graph, edge) for edge in chain))
        parts.append(f"# The parent\n{_damage(graph, first)}\n{_fenced(graph.nodes[first].canonical)}")
        if level.harm and (harm := _harm(graph, first)):
            parts.append(f"Its harm to parts of some layers, where Wanda's is 1: {harm}")
        refuted = graph.refuted(first)[: level.refuted]
        if refuted:
            parts.append(
                "# Tried on this parent and refuted: do not try these again\n"
                + "\n".join(_step(graph, edge) for edge in refuted)
            )
        for other in parents[1:]:
            parts.append(f"# The second program\n{_damage(graph, other)}\n{_fenced(graph.nodes[other].canonical)}")
        parts += [f"# Your step: {operator}\n{_capital(OPERATORS[operator])}.", _REPLY]
        return "\n\n".join(parts)

    def _plain(self, graph: Graph, level: _Level) -> str:
        """Only the task and the best program: what the graph is worth is seen against this."""
        best = graph.ranked[0]
        parent = f"# The best program so far\n{_damage(graph, best)}\n{_fenced(graph.nodes[best].canonical)}"
        return "\n\n".join([_TASK, self.about, *self._language(level), parent, "Write a better one.", _REPLY])

    def _language(self, level: _Level) -> list[str]:
        """The tables, as far as programs may use them."""
        if not level.tables:
            return []
        lines = [_RULES]
        for name in self.space.functions:
            function = FUNCTIONS[name]
            rows = [row for row in function.statistics.values() if row.searched]
            lines.append(f"Statistics, as parameters of {name} ({function.doc}; returns {function.result}):")
            lines += [
                f"- {row.name} ({row.type}): {row.doc}" if level.docs else f"- {row.name} ({row.type})" for row in rows
            ]
            for option in self.space.offered:
                if option.function == name:
                    doc = f": {option.doc}" if level.docs else ""
                    lines.append(f"- option {option.name} = {self._allowed(option)}{doc}")
        lines += [f"- {name} is {value!r} and stays so" for name, value in self.space.frozen.items()]
        lines.append("Operators: " + ", ".join(row.signature for row in LANGUAGE_OPERATORS.values()))
        return ["# The language\n" + "\n".join(lines)]

    def _untried(self, graph: Graph) -> list[str]:
        """Statistics that no program has used."""
        used = {name for node in graph.nodes.values() for name in node.traits}
        prefixes = {name: "" if name == "score" else f"{name}: " for name in self.space.functions}
        return [
            f"{prefix}{row.name}"
            for function, prefix in prefixes.items()
            for row in FUNCTIONS[function].statistics.values()
            if row.searched and f"{prefix}{row.name}" not in used
        ]

    def _allowed(self, option: Option) -> str:
        """The values that an option may have in this search."""
        for position, name in enumerate(("refine", "update")):
            if option.name == name:
                return ", ".join(dict.fromkeys(method[position] for method in self.space.methods))
        return option.allowed


_TASK = (
    "You design algorithms that prune a language model without retraining it. An algorithm is a short program that "
    "gives every weight a score; the weights with the lowest scores are set to zero. Your aim is the least damage."
)

_RULES = (
    "A program is a header of options, if any, and functions of assignments and one return. There are no imports, "
    "loops, attributes or subscripts. Types are shapes: scalar, R (one number per output row), C (per input column), "
    'RC (per weight), CC (pairs of columns), L (layers). Reductions name their axis: over="rows", "columns" or "all". '
    'Only the order of scores matters, in each output row (compare = "row", the default) or in the layer ("layer"): '
    "an increasing function of the whole score changes nothing, and where rows are compared no positive R factor does. "
    f"A program has at most {MAX_PRODUCTS} products with a gram (@)."
)


def _fenced(program: str) -> str:
    return f"```python\n{program.rstrip()}\n```"


def _damage(graph: Graph, digest: str) -> str:
    return f"damage {_figure(graph, digest)} nats per token" if graph.rung(digest) else "damage unknown"


def _figure(graph: Graph, digest: str) -> str:
    """Damage of a program that was measured; two digits are all that a lower rung deserves."""
    damage = graph.estimate(digest)
    return f"{damage:.3f}" if graph.rung(digest) == graph.rungs[-1] else f"about {damage:.2f}"


def _step(graph: Graph, edge: Edge) -> str:
    """A step of reasoning, and what it led to, in one line."""
    thought = " ".join(filter(None, [_short(edge.diagnosis), _short(edge.hypothesis)])) or "no reason given"
    predicted = f"predicted {edge.predicted:+.3f}, " if edge.predicted is not None else ""
    observed = f"observed {edge.observed:+.3f} ± {edge.noise:.3f}" if edge.observed is not None else "not measured"
    made = _short(_brief(graph.nodes[edge.child].canonical))
    return f"- {edge.operator}: {thought} → {made} ({predicted}{observed}: {edge.verdict})"


def _program_lines(graph: Graph, count: int) -> list[str]:
    """The best programs, and some of the others, a line each."""
    ranked = graph.ranked
    best = ranked if len(ranked) <= count else ranked[: count - int(_WORSE * count)]
    others, places = ranked[len(best) :], count - len(best)
    spread = [others[(2 * place + 1) * len(others) // (2 * places)] for place in range(places)] if others else []
    return [f"- {_figure(graph, digest)}: {_brief(graph.nodes[digest].canonical)}" for digest in (*best, *spread)]


def _brief(program: str) -> str:
    """A program in one line, without the parameters that its names tell."""
    lines = ["allocate:" if line.startswith("def allocate") else line.strip() for line in program.splitlines()]
    text = "; ".join(line for line in lines if line and not line.startswith("def "))
    return text.replace("allocate:;", "allocate:")


def _harm(graph: Graph, digest: str) -> str:
    """What the first rung says of layers, the worst first, where it says anything."""
    outcome = graph.outcome(digest, graph.rungs[0])
    harm = outcome.figures.get("harm", {}) if outcome else {}
    return ", ".join(f"{name} {ratio:.2f}" for name, ratio in sorted(harm.items(), key=lambda item: -item[1]))


def _effect_lines(graph: Graph, count: int) -> list[str]:
    """The most helpful and the most harmful traits, half of each."""
    effects = graph.effects
    shown = effects if len(effects) <= count else effects[: -(-count // 2)] + effects[len(effects) - count // 2 :]
    return [
        f"- {row.trait}: helped in {row.helped} of {row.steps} steps, {row.median:+.3f} in the median"
        for row in shown[:count]
    ]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_THOUGHT else text[: _LONGEST_THOUGHT - 1] + "…"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
