"""Tasks through lm-eval, on a model that is open already. The only file that knows lm-eval.

It is imported only when tasks are asked for, since it needs lm-eval to be there.
"""

from __future__ import annotations

import copy
import difflib
import io
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, cast

import lm_eval
import lm_eval.tasks
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task, TaskConfig
from lm_eval.models.huggingface import HFLM

from autoprune.errors import AutopruneError
from autoprune.models import OpenModel, context_length, input_device, vocabulary_size
from autoprune.progress import Progress
from autoprune.tasks import LocalTask, Question, TaskResult, is_local, read_task

# What lm-eval says of its own types is often not so.
_Task, _HFLM, _Instance, _evaluate = (cast("Any", one) for one in (Task, HFLM, Instance, lm_eval.evaluate))

_CPU_BATCH = 8  # the fastest on two cores
_CPU_LOGITS = 2**28  # at a time, 6 bytes each: lm-eval takes those of all tokens of a batch
_SHOTS_SEED = 1234  # lm-eval's own
_ACC, _ACC_NORM = "acc", "acc_norm"

# Where lm-eval describes the field's seven: to look through all it knows takes many seconds.
FOLDERS = {
    "boolq": "super_glue/boolq",
    "rte": "glue/rte",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "openbookqa": "openbookqa",
}


class _FileTask(_Task):
    """The questions of a local file, as lm-eval sees a task: nothing is downloaded, nothing cached."""

    OUTPUT_TYPE = "multiple_choice"

    def __init__(self, local: LocalTask):
        self._questions = list(local.questions)
        self._figures = [_ACC] if all(question.has_blank for question in local.questions) else [_ACC, _ACC_NORM]
        self.VERSION = local.version
        super().__init__()
        self._config = TaskConfig(task=local.name, output_type=self.OUTPUT_TYPE)

    def download(self, *_: Any, **__: Any) -> None:
        pass

    def has_training_docs(self) -> bool:
        return False

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list[Question]:
        return self._questions

    def doc_to_text(self, doc: Question) -> str:
        return doc.question

    def doc_to_target(self, doc: Question) -> int:
        return doc.answer

    def fewshot_context(self, doc: Question, num_fewshot: int, **_: Any) -> str:
        """Other questions of the file with their answers; the question itself is added for each choice."""
        drawn = self.fewshot_rnd.sample(self._questions, num_fewshot + 1) if num_fewshot else []
        others = [question for question in drawn if question != doc]
        return "".join(f"{question.solved}\n\n" for question in others[:num_fewshot])

    def construct_requests(self, doc: Question, ctx: str, *, metadata: Any, **_: Any) -> list[Any]:
        return [
            _Instance("loglikelihood", doc, (ctx + context, continuation), index, metadata)
            for index, (context, continuation) in enumerate(doc.prompts)
        ]

    def process_results(self, doc: Question, results: list[tuple[float, bool]]) -> dict[str, float]:
        likelihoods = np.array([likelihood for likelihood, _ in results])
        lengths = 1 if doc.has_blank else [len(choice) for choice in doc.choices]
        chosen = {_ACC: likelihoods.argmax(), _ACC_NORM: (likelihoods / lengths).argmax()}
        return {figure: float(chosen[figure] == doc.answer) for figure in self._figures}

    def aggregation(self) -> dict[str, Any]:
        return dict.fromkeys(self._figures, mean)

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(self._figures, True)


class _Advance:
    """What lm-eval tells of each answer, as it would tell a cache."""

    def __init__(self, progress: Progress):
        self._progress = progress

    def add_partial(self, *_: Any) -> None:
        self._progress.advance(1)


class LiveModel(_HFLM):
    """lm-eval's view of an open model; tells progress, and refuses what would fail deep inside.

    Logits become log-probabilities in float32: in bfloat16 sums of a few dozen tokens are rounded to quarters.
    """

    def __init__(self, opened: OpenModel, batch: int | str | None, progress: Progress):
        on_cpu = input_device(opened.model).type == "cpu"
        tokenizer = copy.deepcopy(opened.tokenizer)  # it may be given a pad token
        nameless = tokenizer.bos_token_id is None and tokenizer.eos_token_id is None
        super().__init__(
            pretrained=opened.model,
            backend="causal",
            tokenizer=tokenizer,
            max_length=context_length(opened.model),
            softmax_dtype="float32",
            batch_size=batch or (_CPU_BATCH if on_cpu else "auto"),
            prefix_token_id=0 if nameless else None,  # something has to stand before an empty context
        )
        self._opened, self._told = opened, progress
        self._chooses_batch = on_cpu and batch is None
        self.cache_hook = _Advance(progress)
        self.stage = f"evaluating {opened.name}"

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        vocabulary, longest = vocabulary_size(self._opened.model), self.max_length
        for (_, continuation), context_ids, continuation_ids in requests:
            if not 0 < len(continuation_ids) <= longest:
                shown = continuation if len(continuation) <= 40 else f"{continuation[:40]}…"
                raise AutopruneError(
                    f"{len(continuation_ids)} tokens are to be judged ({shown!r}), the model can judge 1 to {longest}",
                    where=self.stage,
                    remedy="leave the question out",
                )
            if (highest := max(context_ids + continuation_ids)) >= vocabulary:
                raise AutopruneError(
                    f"the tokenizer gives token {highest}, the model has {vocabulary}",
                    where=self._opened.name,
                    remedy="use the tokenizer the model was made with",
                )
        lengths = [len(context_ids) + len(continuation_ids) for _, context_ids, continuation_ids in requests]
        if cut := sum(length > longest + 1 for length in lengths):
            self._told.note(f"{self.stage}: {cut} prompts are longer than {longest} tokens; their beginning is cut")
        if self._chooses_batch:
            at_once = _CPU_LOGITS // (min(longest, max(lengths)) * vocabulary)
            self.batch_size_per_gpu = max(1, min(_CPU_BATCH, at_once))
        self._told.stage(self.stage, len(requests))
        answers = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        if any(math.isnan(likelihood) for likelihood, _ in answers):
            raise AutopruneError(
                "a likelihood is not a number",
                where=self._opened.name,
                remedy="check the model's weights, or try --dtype float32",
            )
        return answers


def load(names: Sequence[str], *, shots: int, progress: Progress) -> dict[str, Any]:
    """Tasks by name, ready to be asked; local files are read, others come from the hub or its cache."""
    files = {name: _FileTask(read_task(name)) for name in names if is_local(name)}
    for name, task in files.items():
        if shots >= (count := len(task.eval_docs)):
            raise AutopruneError(
                f"{count} questions are too few for {shots} shots", where=name, remedy="use fewer --shots"
            )
    if known := [name for name in names if name not in files]:
        progress.stage(f"asking lm-eval for {', '.join(known)}", 1)
    manager = _manager(known)
    tasks: dict[str, Any] = {}
    for name in names:
        if name in files:
            tasks[name] = files[name]
        else:
            progress.stage(f"reading the questions of {name}", 1)
            tasks |= _from_hub(manager, name)  # a name may mean several tasks
    for name, task in tasks.items():
        if _ACC not in task.aggregation():
            raise AutopruneError(
                f"the task has no accuracy, but {', '.join(task.aggregation())}",
                where=name,
                remedy="name tasks of multiple choice",
            )
        if task.get_config("num_fewshot") != 0:  # 0 means that the task has its examples, if any, in its text
            task.set_config("num_fewshot", shots)
    return tasks


def _manager(names: list[str]) -> lm_eval.tasks.TaskManager:
    """What lm-eval knows of these tasks; a name that it does not know is refused."""
    if set(names) <= set(FOLDERS):
        root = Path(lm_eval.tasks.__file__).parent
        folders: list[str | Path] = [root / folder for folder in dict.fromkeys(FOLDERS[name] for name in names)]
        manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    else:
        manager = lm_eval.tasks.TaskManager()
    for name in names:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, manager.all_tasks, n=1)
            raise AutopruneError(
                f"lm-eval has no task '{name}'",
                where="--tasks",
                remedy=f"did you mean '{close[0]}'?" if close else "`lm-eval ls tasks` lists them; a file is file:PATH",
            )
    return manager


def _from_hub(manager: lm_eval.tasks.TaskManager, name: str) -> dict[str, Any]:
    try:
        return dict(manager.load([name])["tasks"])
    except Exception as error:  # data sets of strangers, with libraries, networks and formats of their own
        message = " ".join(str(error).split())[:200]
        raise AutopruneError(
            f"cannot load the questions ({type(error).__name__}: {message})",
            where=f"--tasks {name}",
            remedy="check the network, or give local questions as file:PATH",
        ) from None


def measure(
    opened: OpenModel, tasks: dict[str, Any], *, limit: int | None, batch: int | str | None, progress: Progress
) -> tuple[TaskResult, ...]:
    """How good a model is at each task, on its first `limit` questions."""
    model = LiveModel(opened, batch, progress)
    results = []
    for name, task in tasks.items():
        model.stage = f"evaluating {opened.name} on {name}"
        task.set_fewshot_seed(_SHOTS_SEED)
        with redirect_stdout(io.StringIO()):  # the batch size that lm-eval finds is printed
            found = _evaluate(model, {name: task}, limit=limit, bootstrap_iters=0)
        results.append(_result(name, found))
    return tuple(results)


def _result(name: str, found: dict[str, Any]) -> TaskResult:
    samples = [sample for sample in found["samples"][name] if sample["filter"] == found["samples"][name][0]["filter"]]
    figures = {figure: [sample.get(figure) for sample in samples] for figure in (_ACC, _ACC_NORM)}
    if not all(isinstance(one, int | float) for one in figures[_ACC]):
        raise AutopruneError("the task has no accuracy question by question", where=name, remedy="leave it out")
    has_norm = None not in figures[_ACC_NORM]
    return TaskResult(
        task=name,
        version=str(found["versions"][name]),
        shots=found["n-shot"][name],
        questions=len(samples),
        acc=float(np.mean(figures[_ACC])),
        acc_stderr=_standard_error(figures[_ACC]),
        acc_norm=float(np.mean(figures[_ACC_NORM])) if has_norm else None,
        acc_norm_stderr=_standard_error(figures[_ACC_NORM]) if has_norm else None,
        correct=tuple(map(float, figures[_ACC])),
    )


def _standard_error(values: list[float]) -> float | None:
    """Of the mean."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
