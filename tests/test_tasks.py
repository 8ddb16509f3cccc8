"""Tasks: what files may hold, and lm-eval's accuracy against log-likelihoods computed apart from it."""

from __future__ import annotations

import copy
import gc
import json
import random
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from autoprune import evaluate
from autoprune.errors import AutopruneError
from autoprune.evaluate_each import evaluate_each
from autoprune.models import OpenModel
from autoprune.progress import Silent
from autoprune.tasks import FIELDS_SEVEN, Question, TaskResult, read_task, task_names
from command import Run
from independent import ARC_EASY, arc_easy, assert_as_computed_independently, independently, log_likelihood

pytest.importorskip("lm_eval")

BLANKS = [
    {"question": "The ball broke the table because _ was made of steel.", "choices": ["it", "he"], "answer": 0},
    {"question": "_ is a responsible cat owner, said größe.", "choices": ["Sarah", "Maria"], "answer": 1},
    {
        "question": "He never mentioned the canoe, since he rarely used the _ .",
        "choices": ["raft", "canoe"],
        "answer": 1,
    },
]


def write(path: Path, records: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return f"file:{path}"


@pytest.fixture
def blanks(tmp_path: Path) -> str:
    return write(tmp_path / "blanks.jsonl", BLANKS)


@pytest.fixture
def arc() -> str:
    return f"file:{ARC_EASY}"


# ---------------------------------------------------------------- against an independent computation


def tiny_model(architecture: str = "llama", **options: Any) -> Any:
    return tiny.model(architecture, **{"max_position_embeddings": 1024} | options)


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_200_questions_are_answered_as_an_independent_computation_does(kind: str, arc: str):
    assert_as_computed_independently(tiny_model(), tiny.tokenizer(kind), 200)


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "bloom", "mixtral", "mamba"])
def test_other_architectures_too(architecture: str, arc: str):
    options = {"n_positions": 1024, "max_position_embeddings": 1024}
    model = tiny.model(architecture, **(options if architecture == "gpt2" else options | {"n_positions": None}))
    records = arc_easy(8)
    (found,) = evaluate(model, tokenizer=tiny.tokenizer(), tasks=arc, limit=8).tasks
    _, chosen = independently(model, tiny.tokenizer(), records)
    assert found.correct == tuple(float(own == one["answer"]) for own, one in zip(chosen, records, strict=True))


def test_blanks_are_filled_in_and_what_is_behind_them_is_judged(blanks: str):
    model, tokenizer = tiny_model(), tiny.tokenizer()
    (found,) = evaluate(model, tokenizer=tokenizer, tasks=blanks).tasks
    for record, correct in zip(BLANKS, found.correct, strict=True):
        before, behind = record["question"].split("_")
        judged = [
            log_likelihood(model, tokenizer, before + choice, " " + behind.strip()) for choice in record["choices"]
        ]
        assert correct == float(judged.index(max(judged)) == record["answer"])
    assert found.acc_norm is None


@pytest.mark.parametrize("batch", [1, 3, 64, "auto"])
def test_the_batch_changes_nothing(batch: int | str, arc: str):
    model, tokenizer = tiny_model(), tiny.tokenizer()
    found = evaluate(model, tokenizer=tokenizer, tasks=arc, limit=12, batch=batch).tasks
    assert found == evaluate(model, tokenizer=tokenizer, tasks=arc, limit=12, batch=8).tasks


# ---------------------------------------------------------------- lm-eval's own tasks


def hub(monkeypatch: pytest.MonkeyPatch, **rows: list[dict[str, Any]]) -> None:
    """A hub that holds these rows, by split."""
    import datasets

    made = datasets.DatasetDict({split: datasets.Dataset.from_list(own) for split, own in rows.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: made)


def test_a_local_file_of_arc_is_lm_evals_arc_easy(arc: str, monkeypatch: pytest.MonkeyPatch):
    records = arc_easy(30)
    rows = [
        {
            "question": one["question"],
            "choices": {"text": one["choices"], "label": list("ABCDE")[: len(one["choices"])]},
            "answerKey": "ABCDE"[one["answer"]],
        }
        for one in records
    ]
    hub(monkeypatch, test=rows, validation=rows, train=rows)
    own, lm_evals = evaluate(tiny_model(), tokenizer=tiny.tokenizer(), tasks=[arc, "arc_easy"], limit=30).tasks
    assert (lm_evals.task, lm_evals.version, lm_evals.shots, lm_evals.questions) == ("arc_easy", "1.0", 0, 30)
    assert figures(own) == figures(lm_evals)
    assert 0 < own.acc < 1


def test_a_local_file_with_blanks_is_lm_evals_winogrande(blanks: str, monkeypatch: pytest.MonkeyPatch):
    rows = [
        {
            "sentence": one["question"],
            "option1": one["choices"][0],
            "option2": one["choices"][1],
            "answer": str(one["answer"] + 1),
        }
        for one in BLANKS
    ]
    hub(monkeypatch, validation=rows, train=rows)
    own, lm_evals = evaluate(tiny_model(), tokenizer=tiny.tokenizer(), tasks=f"{blanks},winogrande").tasks
    assert figures(own) == figures(lm_evals)


def figures(result: TaskResult) -> tuple[object, ...]:
    return result.acc, result.acc_stderr, result.acc_norm, result.acc_norm_stderr, result.correct


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def unreachable(**_: Any) -> None:
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(AutopruneError, match=r"cannot load the questions .*; check the network, or give local"):
        evaluate(tiny_model(), tokenizer=tiny.tokenizer(), tasks="arc_easy,winogrande")


class FewTasks:
    """Stands in for the manager that looks through all of lm-eval, which takes many seconds."""

    task_index = all_tasks = ("arc_easy", "gsm8k", "lambada_openai")


@pytest.mark.parametrize(("name", "remedy"), [("arc_eazy", "did you mean 'arc_easy'?"), ("zzz", "`lm-eval ls tasks`")])
def test_an_unknown_task_is_one_line(name: str, remedy: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", FewTasks)
    with pytest.raises(AutopruneError, match=f"--tasks: lm-eval has no task '{name}'; ") as caught:
        evaluate(tiny_model(), tokenizer=tiny.tokenizer(), tasks=name)
    assert remedy in str(caught.value)


def test_the_fields_seven_are_where_they_are_looked_for():
    import lm_eval.tasks

    from autoprune.harness import FOLDERS

    assert tuple(FOLDERS) == FIELDS_SEVEN
    root = Path(lm_eval.tasks.__file__).parent
    manager = lm_eval.tasks.TaskManager(include_path=[root / one for one in FOLDERS.values()], include_defaults=False)
    assert set(FIELDS_SEVEN) <= set(manager.all_tasks)


# ---------------------------------------------------------------- what is asked for


def test_names_are_split_and_each_is_meant_once():
    assert task_names("arc_easy, file:a b.jsonl,arc_easy") == ["arc_easy", "file:a b.jsonl"]
    assert task_names("seven,rte") == list(FIELDS_SEVEN)
    with pytest.raises(AutopruneError, match="a task without a name"):
        task_names("arc_easy,")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": -1}, "--shots -1 is less than 0"),
        ({"limit": 0}, "--limit 0 is less than 1"),
        ({"batch": 0}, "--batch 0 is not a size"),
        ({"batch": "many"}, "--batch many is not a size"),
        ({"shots": 3}, "3 questions are too few for 3 shots"),
    ],
)
def test_amounts_without_sense_are_refused(options: dict[str, Any], message: str, blanks: str):
    with pytest.raises(AutopruneError, match=message):
        evaluate(tiny_model(), tokenizer=tiny.tokenizer(), tasks=blanks, **options)


GOOD = {"question": "How many?", "choices": ["one", "two"], "answer": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "not JSON"),
        ("[1, 2]", "no text in the field 'question'"),
        (json.dumps(GOOD | {"question": "  "}), "no text in the field 'question'"),
        (json.dumps(GOOD | {"choices": ["one"]}), "no list of two or more in the field 'choices'"),
        (json.dumps(GOOD | {"choices": "ab"}), "no list of two or more in the field 'choices'"),
        (json.dumps(GOOD | {"choices": ["one", ""]}), "choice 1 is not a text, or is empty"),
        (json.dumps(GOOD | {"choices": [1, 2]}), "choice 0 is not a text, or is empty"),
        (json.dumps(GOOD | {"answer": 2}), "the field 'answer' is not a number from 0 to 1"),
        (json.dumps(GOOD | {"answer": -1}), "the field 'answer' is not a number from 0 to 1"),
        (json.dumps(GOOD | {"answer": "B"}), "the field 'answer' is not a number from 0 to 1"),
        (json.dumps(GOOD | {"answer": True}), "the field 'answer' is not a number from 0 to 1"),
        ('{"question": "\\ud800?", "choices": ["a", "b"], "answer": 0}', "half a surrogate pair"),
    ],
)
def test_a_malformed_line_is_named(line: str, message: str, tmp_path: Path):
    path = tmp_path / "task.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n", "utf-8")
    with pytest.raises(AutopruneError, match=message) as caught:
        read_task(f"file:{path}")
    assert caught.value.where == f"{path}, line 3"


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"])
def test_a_file_without_questions_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "task.jsonl").write_bytes(content)
    with pytest.raises(AutopruneError, match="the file has no questions"):
        read_task(f"file:{tmp_path / 'task.jsonl'}")


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(AutopruneError, match=r"nowhere\.jsonl: cannot read"):
        read_task("file:nowhere.jsonl")


def test_marks_and_line_ends_of_editors_change_nothing(tmp_path: Path):
    plain = write(tmp_path / "plain.jsonl", BLANKS)
    lines = "\r\n".join(json.dumps(one) for one in BLANKS)
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    windows = read_task(f"file:{tmp_path / 'windows.jsonl'}")
    assert windows.questions == read_task(plain).questions
    assert windows.version == read_task(plain).version


def question(text: str) -> Question:
    return Question(question=text, choices=("x", "y"), answer=1)


@pytest.mark.parametrize(
    "text",
    ["Where?", "Call snake_case or __init__.", "It is ____.", "A _ and a _ met.", "The end is _", "_private name"],
)
def test_only_one_lone_underscore_with_something_behind_it_is_a_blank(text: str):
    assert question(text).prompts == [(f"Question: {text}\nAnswer:", " x"), (f"Question: {text}\nAnswer:", " y")]


def test_prompts_with_a_blank():
    assert question("She gave _ the prize.").prompts == [("She gave x", " the prize."), ("She gave y", " the prize.")]
    assert question("She gave _ the prize.").solved == "She gave y the prize."


# ---------------------------------------------------------------- shots, limits, figures


def test_shots_are_other_questions_with_their_answers(arc: str):
    from autoprune.harness import load

    (task,) = load([arc], shots=2, progress=Silent()).values()
    task.set_fewshot_seed(1)
    task.build_all_requests(limit=200)
    contexts = {instance.doc: instance.args[0] for instance in task.instances}
    solved = {one.solved for one in task.eval_docs}
    for doc, context in contexts.items():
        *shots, last = context.split("\n\nQuestion: ")
        assert f"Question: {last}" == doc.prompts[0][0]
        assert len(shots) == 2
        assert {f"Question: {shot.removeprefix('Question: ')}" for shot in shots} <= solved - {doc.solved}


def test_shots_are_the_same_for_every_model(arc: str):
    options: dict[str, Any] = {"tokenizer": tiny.tokenizer(), "tasks": arc, "shots": 1, "limit": 10}
    first, second = evaluate_each([tiny_model(), tiny_model()], **options)
    assert first.tasks[0].correct == second.tasks[0].correct
    assert (first.tasks[0].shots, first.tasks[0].questions) == (1, 10)


def test_one_question_has_no_standard_error(tmp_path: Path):
    task = write(tmp_path / "one.jsonl", [GOOD])
    (found,) = evaluate(tiny_model(), tokenizer=tiny.tokenizer(), tasks=task).tasks
    assert (found.questions, found.acc_stderr, found.acc_norm_stderr) == (1, None, None)
    assert found.acc in (0, 1)


def result(*correct: float) -> TaskResult:
    return TaskResult(
        task="t",
        version="1",
        shots=0,
        questions=len(correct),
        acc=float(np.mean(correct)),
        acc_stderr=None,
        acc_norm=None,
        acc_norm_stderr=None,
        correct=correct,
    )


def test_a_comparison_is_paired():
    found = result(1, 0, 1, 1).compared_with(result(1, 1, 1, 1)).against
    assert found is not None
    assert (found.reference, found.difference) == (1.0, -0.25)
    assert found.difference_low <= -0.25 <= found.difference_high <= 0
    same = result(1, 0, 1, 0).compared_with(result(1, 0, 1, 0)).against
    assert same is not None
    assert (same.difference, same.difference_low, same.difference_high) == (0, 0, 0)


# ---------------------------------------------------------------- models and tokenizers as they come


class Told(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[tuple[str, float]] = []
        self.advanced = 0.0

    def stage(self, name: str, total: float) -> None:
        self.stages.append((name, total))

    def advance(self, amount: float) -> None:
        self.advanced += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_progress_is_told_of_every_prompt(arc: str):
    told = Told()
    evaluate(tiny_model(), tokenizer=tiny.tokenizer(), tasks=arc, limit=5, progress=told)
    assert [total for name, total in told.stages if "arc_easy" in name] == [20]
    assert told.advanced == 20


def test_a_question_longer_than_the_context_loses_its_beginning(tmp_path: Path):
    model, tokenizer, told = tiny.model(), tiny.tokenizer(), Told()
    long = {"question": tiny.text(1000), "choices": ["weight", "layer"], "answer": 0}
    (found,) = evaluate(model, tokenizer=tokenizer, tasks=write(tmp_path / "long.jsonl", [long]), progress=told).tasks
    _, (chosen,) = independently(model, tokenizer, [long])
    assert found.correct == (float(chosen == 0),)
    assert "2 prompts are longer than 128 tokens; their beginning is cut" in " ".join(told.notes)


def test_a_choice_longer_than_the_context_is_refused(tmp_path: Path):
    task = write(tmp_path / "long.jsonl", [GOOD | {"choices": [tiny.text(1000), "two"]}])
    with pytest.raises(AutopruneError, match="the model can judge 1 to 128") as caught:
        evaluate(tiny.model(), tokenizer=tiny.tokenizer(), tasks=task)
    assert len(str(caught.value)) < 400


def test_a_tokenizer_without_special_tokens_serves_and_stays_as_it_is(blanks: str):
    tokenizer = tiny.tokenizer("no_bos")
    tokenizer.eos_token = None
    (found,) = evaluate(tiny_model(), tokenizer=tokenizer, tasks=blanks).tasks
    assert found.questions == 3
    assert tokenizer.pad_token is None
    assert "<|pad|>" not in tokenizer.get_vocab()


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(blanks: str):
    with pytest.raises(AutopruneError, match="the model has 100"):
        evaluate(tiny_model(vocab_size=100), tokenizer=tiny.tokenizer(), tasks=blanks)


def test_a_live_model_without_tokenizer_is_refused(blanks: str):
    with pytest.raises(AutopruneError, match="tokenizer"):
        evaluate(tiny_model(), tasks=blanks)


def test_likelihoods_that_are_not_numbers_are_refused(blanks: str):
    model = tiny_model()
    hidden = model.model.norm.register_forward_hook(lambda *_: torch.full((1, 1, 32), torch.nan).expand(_[2].shape))
    with pytest.raises(AutopruneError, match="a likelihood is not a number"):
        evaluate(model, tokenizer=tiny.tokenizer(), tasks=blanks)
    hidden.remove()


def test_a_live_model_is_left_as_it_was(blanks: str):
    model = tiny_model("gpt2", n_positions=256).train()
    before, dice, drawn = copy.deepcopy(model.state_dict()), random.getstate(), torch.random.get_rng_state()
    evaluate(model, tokenizer=tiny.tokenizer(), tasks=blanks, shots=1)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert random.getstate() == dice
    assert torch.equal(torch.random.get_rng_state(), drawn)


# ---------------------------------------------------------------- several models


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [tiny.save(tmp_path / f"m{seed}", seed=seed, max_position_embeddings=1024) for seed in range(3)]


def test_each_model_is_compared_with_the_first(folders: list[Path], arc: str, text: Path):
    options: dict[str, Any] = {"tasks": arc, "limit": 10, "data": f"file:{text}", "length": 16, "sequences": 3}
    first, second, third = evaluate_each(folders, **options)
    assert first.against is None
    assert first.tasks[0].against is None
    for own, folder in ((second, folders[1]), (third, folders[2])):
        assert own == evaluate(folder, against=folders[0], **options)
        assert own.against is not None
        assert own.tasks[0].against is not None
        assert own.tasks[0].against.reference == first.tasks[0].acc
        assert own.tasks[0].against.difference == pytest.approx(own.tasks[0].acc - first.tasks[0].acc)


@pytest.mark.parametrize("with_text", [False, True])
def test_no_more_models_are_open_than_are_needed(
    with_text: bool, folders: list[Path], blanks: str, text: Path, monkeypatch: pytest.MonkeyPatch
):
    import autoprune.inputs

    seen: list[weakref.ref[Any]] = []
    open_model, most = autoprune.inputs.open_model, 0

    def watched(*arguments: Any, **options: Any) -> OpenModel:
        nonlocal most
        opened = open_model(*arguments, **options)
        seen.append(weakref.ref(opened.model))
        most = max(most, sum(one() is not None for one in seen))
        return opened

    monkeypatch.setattr(autoprune.inputs, "open_model", watched)
    gc.disable()  # what is only freed by it is not freed in time
    try:
        data = {"data": f"file:{text}", "length": 16, "sequences": 2} if with_text else {}
        assert len(list(evaluate_each(folders, tasks=blanks, **data))) == 3
    finally:
        gc.enable()
    assert most == (2 if with_text else 1)


# ---------------------------------------------------------------- the command line


def test_one_model_in_words(run: Run, folders: list[Path], arc: str, blanks: str):
    ran = run("eval", folders[0], "--tasks", f"{arc},{blanks}", "--limit", "3", "--against", folders[1])
    assert ran.code == 0, ran.err
    assert f"{arc}: acc " in ran.out
    assert "3 questions, 0 shots, version " in ran.out
    assert "95 % interval by paired bootstrap" in ran.out
    assert "mean accuracy" in ran.out
    assert "perplexity" not in ran.out


def test_several_models_in_a_table(run: Run, folders: list[Path], arc: str, text: Path):
    data = ["--data", f"file:{text}", "--length", "16", "--sequences", "2"]
    ran = run("eval", *folders, *data, "--tasks", arc, "--limit", "3")
    assert ran.code == 0, ran.err
    for part in (
        *(folder.name for folder in folders),
        "perplexity",
        "KL",
        "arc_easy_200.jsonl",
        "acc of 3",
        "0 shots",
    ):
        assert part in ran.out


@pytest.mark.parametrize("count", [1, 2])
def test_json_has_one_shape(run: Run, folders: list[Path], arc: str, count: int):
    ran = run("eval", *folders[:count], "--tasks", arc, "--limit", "4", "--json")
    assert ran.code == 0, ran.err
    assert ran.out.count("\n") == 1
    record = json.loads(ran.out)
    assert record["data"] is None
    assert [one["model"] for one in record["results"]] == [str(folder) for folder in folders[:count]]
    for one in record["results"]:
        assert one["perplexity"] is None
        (task,) = one["tasks"]
        assert (task["task"], task["shots"], task["questions"]) == (arc, 0, 4)
        assert len(task["correct"]) == 4
        assert task["acc_stderr"] >= 0


def test_a_malformed_file_is_refused_before_a_model_is_opened(run: Run, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text("{}\n")
    ran = run("eval", "./nowhere", "--tasks", f"file:{tmp_path / 'bad.jsonl'}")
    assert (ran.code, ran.out) == (2, "")
    assert "bad.jsonl, line 1: no text in the field 'question'" in ran.error


def test_without_lm_eval_the_remedy_is_said(run: Run, blanks: str, monkeypatch: pytest.MonkeyPatch):
    import autoprune

    monkeypatch.delattr(autoprune, "harness", raising=False)
    monkeypatch.delitem(sys.modules, "autoprune.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    ran = run("eval", "./nowhere", "--tasks", blanks)
    assert (ran.code, ran.out) == (2, "")
    assert ran.error.startswith("error: --tasks: tasks need lm-eval")
    assert "pip install 'autoprune[tasks]'" in ran.error


@pytest.mark.parametrize("as_json", [False, True])
def test_what_was_measured_before_an_interruption_is_printed(
    as_json: bool, run: Run, folders: list[Path], blanks: str, monkeypatch: pytest.MonkeyPatch
):
    import autoprune.harness

    measure, calls = autoprune.harness.measure, iter(range(3))

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls):
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(autoprune.harness, "measure", interrupted)
    ran = run("eval", *folders[:2], "--tasks", blanks, *(["--json"] if as_json else []))
    assert ran.code == 130
    assert ran.error.startswith("error: interrupted")
    assert folders[0].name in ran.out
    assert folders[1].name not in ran.out
