"""Tasks of multiple choice: what the user names → questions, and how good a model is at them.

A task is a name that lm-eval knows, or "file:PATH", one JSON object a line:

    {"question": "Which planet is the largest?", "choices": ["Mars", "Jupiter"], "answer": 1}

The answer counts from 0. The choice that is likeliest in the model's eyes is its answer, as ARC and WinoGrande are
scored: where the question has one blank, a lone `_` with something behind it, each choice is filled in and what is
behind it is judged; else the choice itself is, after "Question: …" and "Answer:".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from autoprune.bootstrap import bootstrap_interval
from autoprune.data import check_encodes, json_lines, local_path
from autoprune.errors import AutopruneError

SEVEN = "seven"
FIELDS_SEVEN = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""What the pruning literature measures, by their names in lm-eval."""

_FILE = "file:"
_BLANK = re.compile(r"(?<!\w)_(?!\w)")
_FORM = 'as in {"question": "...", "choices": ["...", "..."], "answer": 0}'


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question; `answer` is the place of the right choice."""

    question: str
    choices: tuple[str, ...]
    answer: int

    @property
    def has_blank(self) -> bool:
        _, *behind = _BLANK.split(self.question)
        return len(behind) == 1 and bool(behind[0].strip())

    @property
    def prompts(self) -> list[tuple[str, str]]:
        """For each choice a context and the continuation whose likelihood judges it."""
        if not self.has_blank:
            return [(f"Question: {self.question}\nAnswer:", f" {choice}") for choice in self.choices]
        before, behind = _BLANK.split(self.question)
        return [(before + choice, f" {behind.strip()}") for choice in self.choices]

    @property
    def solved(self) -> str:
        return "".join(self.prompts[self.answer])


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """The questions of a file, and the beginning of their SHA-256."""

    name: str
    questions: tuple[Question, ...]
    version: str


@dataclass(frozen=True, kw_only=True)
class TaskComparison:
    """A model's accuracy minus a reference's on the same questions; a paired bootstrap over questions (95 %),
    None for a single one."""

    reference: float
    difference: float
    difference_low: float | None
    difference_high: float | None


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """How good a model is at a task.

    `acc` is the share of questions whose likeliest choice is right, `acc_norm` the same where likelihoods are divided
    by the length of the choice, in characters; None where the task has no such figure. `stderr` is the standard error,
    None for a single question. `version` is lm-eval's, or the beginning of a file's hash. `correct` has the accuracy of
    each question, in order.
    """

    task: str
    version: str
    shots: int
    questions: int
    acc: float
    acc_stderr: float | None
    acc_norm: float | None
    acc_norm_stderr: float | None
    correct: tuple[float, ...] = field(repr=False)
    against: TaskComparison | None = None

    def compared_with(self, reference: TaskResult) -> TaskResult:
        """The same result, with its difference to another model's."""
        difference_N = np.subtract(self.correct, reference.correct)
        low, high = bootstrap_interval(difference_N) if len(difference_N) > 1 else (None, None)
        comparison = TaskComparison(
            reference=reference.acc,
            difference=float(difference_N.mean()),
            difference_low=low,
            difference_high=high,
        )
        return replace(self, against=comparison)


def task_names(given: str | Sequence[str]) -> list[str]:
    """The tasks that are meant, each once: names in a list, or with commas between them."""
    names = [name.strip() for name in (given.split(",") if isinstance(given, str) else given)]
    if not all(names):
        raise AutopruneError("a task without a name", where="--tasks", remedy="give names with commas between them")
    return list(dict.fromkeys(one for name in names for one in (FIELDS_SEVEN if name == SEVEN else (name,))))


def check_sizes(shots: int, limit: int | None, batch: int | str | None) -> None:
    """Refuse amounts that make no sense."""
    if shots < 0:
        raise AutopruneError(f"--shots {shots} is less than 0", remedy="ask for 0 or more")
    if limit is not None and limit < 1:
        raise AutopruneError(f"--limit {limit} is less than 1", remedy="ask for at least one question")
    if batch is not None and batch != "auto" and not (str(batch).isdecimal() and int(batch) > 0):
        raise AutopruneError(f"--batch {batch} is not a size", remedy="give a number from 1, or auto")


def is_local(name: str) -> bool:
    return name.startswith(_FILE)


def read_task(name: str) -> LocalTask:
    """The questions of "file:PATH"; the first malformed line is an error that names it."""
    path = local_path(name.removeprefix(_FILE))
    questions = tuple(_question(record, where) for record, where in json_lines(path))
    if not questions:
        raise AutopruneError("the file has no questions", where=str(path), remedy=_FORM)
    version = hashlib.sha256(repr(questions).encode()).hexdigest()[:12]
    return LocalTask(name=name, questions=questions, version=version)


def _question(record: Any, where: str) -> Question:
    record = record if isinstance(record, dict) else {}
    question, choices, answer = (record.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(question, str) or not question.strip():
        raise AutopruneError("no text in the field 'question'", where=where, remedy=_FORM)
    if not isinstance(choices, list) or len(choices) < 2:
        raise AutopruneError("no list of two or more in the field 'choices'", where=where, remedy=_FORM)
    for number, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice.strip():
            raise AutopruneError(f"choice {number} is not a text, or is empty", where=where, remedy=_FORM)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise AutopruneError(
            f"the field 'answer' is not a number from 0 to {len(choices) - 1}", where=where, remedy=_FORM
        )
    for text in (question, *choices):
        check_encodes(text, where)
    return Question(question=question, choices=tuple(choices), answer=answer)
