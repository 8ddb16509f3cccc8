"""Accuracy at ARC-Easy without lm-eval: log-likelihoods of one prompt at a time.

Legend: L tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune import evaluate
from autoprune.models import OpenModel
from autoprune.progress import Silent

ARC_EASY = Path(__file__).parent / "data" / "arc_easy_200.jsonl"


def arc_easy(count: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ARC_EASY.read_text("utf-8").splitlines()[:count]]


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """ln p(continuation | context), in float64, one prompt at a time."""
    longest = getattr(model.config, "max_position_embeddings", None) or 2048
    ids, known = tokenizer(context + continuation).input_ids, len(tokenizer(context).input_ids)
    judged, ids = len(ids) - known, ids[-(longest + 1) :]
    with torch.no_grad():
        logits_LV = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0]
    log_LV = logits_LV.double().log_softmax(-1)
    return sum(log_LV[place, ids[place + 1]].item() for place in range(len(ids) - 1 - judged, len(ids) - 1))


def independently(model: Any, tokenizer: Any, records: Sequence[dict[str, Any]]) -> tuple[list[list[float]], list[int]]:
    """Log-likelihoods of the choices as ARC has them, and the likeliest choice of each question."""
    likelihoods = [
        [
            log_likelihood(model, tokenizer, f"Question: {one['question']}\nAnswer:", f" {choice}")
            for choice in one["choices"]
        ]
        for one in records
    ]
    return likelihoods, [row.index(max(row)) for row in likelihoods]


def assert_as_computed_independently(model: Any, tokenizer: Any, count: int) -> None:
    """Question for question: the answers, and the log-likelihood of every choice."""
    task = f"file:{ARC_EASY}"
    records = arc_easy(count)
    (found,) = evaluate(model, tokenizer=tokenizer, tasks=[task], limit=count).tasks
    likelihoods, chosen = independently(model, tokenizer, records)
    right = [one["answer"] for one in records]
    assert found.correct == tuple(float(own == answer) for own, answer in zip(chosen, right, strict=True))
    assert found.acc == pytest.approx(np.mean(found.correct))
    assert found.acc_stderr == pytest.approx(np.std(found.correct, ddof=1) / math.sqrt(count))
    normed = [
        int(np.argmax([value / len(choice) for value, choice in zip(row, one["choices"], strict=True)]))
        for row, one in zip(likelihoods, records, strict=True)
    ]
    assert found.acc_norm == pytest.approx(np.mean(np.equal(normed, right)))
    seen = lm_evals_likelihoods(model, tokenizer, task, count)
    assert seen == pytest.approx([value for row in likelihoods for value in row], abs=2e-3)


def lm_evals_likelihoods(model: Any, tokenizer: Any, task: str, count: int) -> list[float]:
    from autoprune.harness import LiveModel, load

    (loaded,) = load([task], shots=0, progress=Silent()).values()
    loaded.build_all_requests(limit=count)
    opened = OpenModel(model=model, tokenizer=tokenizer, name="model", stored_dtype=model.dtype)
    return [value for value, _ in LiveModel(opened, 8, Silent()).loglikelihood(loaded.instances)]
