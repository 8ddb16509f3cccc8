"""What a language model is asked: a walk in the graph, the tables of the language, and the form of the reply.

A prompt has a budget. Where the whole walk does not fit, the least telling parts go first (`_LEVELS`): examples, doc
lines of operators, far ancestors, traits; the task, the parent and the form of the reply always stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autoprune.language.operators import OPERATORS as LANGUAGE_OPERATORS
from autoprune.language.program import OPTIONS, Option
from autoprune.language.space import Space
from autoprune.language.statistics import FUNCTIONS
from autoprune.search.archive import Edge
from autoprune.search.graph import Graph
from autoprune.search.protocol import OPERATORS

CHARACTERS_PER_TOKEN = 2.7
"""About the fewest in English and in programs, by the tokenizers of common models."""

GRAPH, PLAIN = "graph", "plain"

_LONGEST_THOUGHT = 300  # characters of a diagnosis or hypothesis that are shown


@dataclass(frozen=True)
class _Level:
    """How much of each part is shown."""

    best: int
    chain: int
    refuted: int
    effects: int
    docs: bool
    tables: bool


_LEVELS = (
    _Level(best=3, chain=8, refuted=6, effects=16, docs=True, tables=True),
    _Level(best=2, chain=5, refuted=4, effects=10, docs=True, tables=True),
    _Level(best=1, chain=3, refuted=3, effects=8, docs=False, tables=True),
    _Level(best=1, chain=2, refuted=1, effects=4, docs=False, tables=True),
    _Level(best=0, chain=0, refuted=0, effects=0, docs=False, tables=True),
    _Level(best=0, chain=0, refuted=0, effects=0, docs=False, tables=False),
)

_REPLY = """Reply in this form and with nothing else:

diagnosis: what limits the parent, in one sentence
hypothesis: what your change does about it, and why it should help, in one sentence
predicted: the change of the damage you expect, in nats per token, as -0.05
program:
```python
def score(weight, input_norm):
    return abs(weight) * input_norm
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
        if level.best:
            shown = [digest for digest in graph.ranked if digest not in parents][: level.best]
            programs = [f"{_damage(graph, digest)}\n{_fenced(graph.nodes[digest].canonical)}" for digest in shown]
            parts += ["# Other good programs\n" + "\n".join(programs)] if shown else []
        effects = _effect_lines(graph, level.effects)
        if effects:
            parts.append("# What adding a trait did, over all steps so far (nats per token)\n" + "\n".join(effects))
        chain = graph.chain(first)[-level.chain :] if level.chain else []
        if chain:
            parts.append("# How the parent came about\n" + "\n".join(_step(edge) for edge in chain))
        parts.append(f"# The parent\n{_damage(graph, first)}\n{_fenced(graph.nodes[first].canonical)}")
        refuted = graph.refuted(first)[: level.refuted]
        if refuted:
            parts.append(
                "# Tried on this parent and refuted: do not try these again\n" + "\n".join(map(_step, refuted))
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
            for option in OPTIONS.values():
                if option.function == name and option.name not in self.space.frozen:
                    doc = f": {option.doc}" if level.docs else ""
                    lines.append(f"- option {option.name} = {self._allowed(option)}{doc}")
        lines += [f"- {name} is {value!r} and stays so" for name, value in self.space.frozen.items()]
        lines.append("Operators: " + ", ".join(row.signature for row in LANGUAGE_OPERATORS.values()))
        return ["# The language\n" + "\n".join(lines)]

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
    'RC (per weight), CC (pairs of columns), L (layers). Reductions name their axis: over="rows", "columns" or "all".'
)


def _fenced(program: str) -> str:
    return f"```python\n{program.rstrip()}\n```"


def _damage(graph: Graph, digest: str) -> str:
    rung = graph.rung(digest)
    if rung is None:
        return "damage unknown"
    real = rung == graph.rungs[-1]
    return (
        f"damage {graph.estimate(digest):.3f} nats per token" if real else f"damage about {graph.estimate(digest):.2f}"
    )


def _step(edge: Edge) -> str:
    """A step of reasoning in one line."""
    thought = " ".join(filter(None, [_short(edge.diagnosis), _short(edge.hypothesis)])) or "no reason given"
    predicted = f"predicted {edge.predicted:+.3f}, " if edge.predicted is not None else ""
    observed = f"observed {edge.observed:+.3f} ± {edge.noise:.3f}" if edge.observed is not None else "not measured"
    return f"- {edge.operator}: {thought} ({predicted}{observed}: {edge.verdict})"


def _effect_lines(graph: Graph, count: int) -> list[str]:
    """The most helpful and the most harmful traits, half of each."""
    effects = graph.effects()
    shown = effects if len(effects) <= count else effects[: -(-count // 2)] + effects[len(effects) - count // 2 :]
    return [f"- {row.trait}: {row.mean:+.3f} ± {row.error:.3f} ({row.steps} steps)" for row in shown[:count]]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_THOUGHT else text[: _LONGEST_THOUGHT - 1] + "…"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
