"""Texts as the unpruned and the pruned model read them: where the pruned one is more surprised, token by token.

Legend: B sequences, L tokens per sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoprune.budget import available
from autoprune.errors import AutopruneError
from autoprune.evaluation import next_logits
from autoprune.files import SIDECAR
from autoprune.generate import Sampling, self_calibration
from autoprune.inputs import check_vocabulary, evaluation_mode, evaluation_tokens, opened_model, require_same_vocabulary
from autoprune.models import context_length
from autoprune.progress import Progress
from autoprune.report.reading import record_of

_WORST = 12
_SEED = 7  # of the texts: another one than any calibration has by default


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token of a text; `dense` and `pruned` are its losses in nats, None for the first, which nothing predicts."""

    text: str
    dense: float | None = None
    pruned: float | None = None
    dense_guess: str = ""
    pruned_guess: str = ""

    @property
    def lost(self) -> float:
        """By how much the pruned model's loss is larger, nats."""
        return (self.pruned or 0.0) - (self.dense or 0.0)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text. Mean losses are nats a token, over all but the first one."""

    tokens: Sequence[Token]

    @property
    def dense(self) -> float:
        return _mean([token.dense for token in self.tokens if token.dense is not None])

    @property
    def pruned(self) -> float:
        return _mean([token.pruned for token in self.tokens if token.pruned is not None])

    @property
    def worst(self) -> list[tuple[int, Token]]:
        """Tokens on which most was lost, with their positions, the worst first."""
        found = sorted(enumerate(self.tokens), key=lambda item: -item[1].lost)[:_WORST]
        return [(position, token) for position, token in found if token.lost > 0]

    def before(self, position: int, characters: int = 40) -> str:
        """The end of the text before a token."""
        return "".join(token.text for token in self.tokens[:position])[-characters:]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Texts through both models, and where they come from."""

    texts: Sequence[Sample]
    says: str

    @property
    def loss(self) -> str:
        """The mean losses over all of them, in a sentence."""
        dense, pruned = (_mean([getattr(text, name) for text in self.texts]) for name in ("dense", "pruned"))
        return f"On the texts below the mean loss went from {dense:.3f} to {pruned:.3f} nats a token."


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which texts: `count` of `length` tokens from `data` or, without it, such as the unpruned model writes; that is
    `against`, or the one that the pruned one was made from."""

    data: str | None
    count: int
    length: int
    against: str | None
    device: str


def samples(pruned: Path, wanted: Wanted, progress: Progress) -> Samples:
    """Some texts through the model of a folder and the unpruned one."""
    pruned = pruned.parent if pruned.name == SIDECAR else pruned
    record = record_of(pruned)
    assert record
    name = wanted.against or record["model"]
    size = sum(file.stat().st_size for file in pruned.glob("*.safetensors"))
    left = available()
    if left is not None and 2 * size > left:
        what = f"both models in memory take {2 * size / 1e9:.1f} GB, and there are {left / 1e9:.1f} GB"
        raise AutopruneError(what, remedy="use --samples 0")
    try:
        dense = opened_model(name, None, "auto", wanted.device, progress)
    except AutopruneError as error:
        remedy = "name it with --against, or use --samples 0"
        raise AutopruneError(f"the unpruned model cannot be opened ({error.what})", where=name, remedy=remedy) from None
    own = opened_model(pruned, None, "auto", wanted.device, progress)
    require_same_vocabulary(dense, own)
    tokenizer = dense.tokenizer
    if tokenizer is None:
        raise AutopruneError("the model has no tokenizer", where=name, remedy="use --samples 0")
    count, data = wanted.count, wanted.data
    length = min(wanted.length, context_length(dense.model) or wanted.length)
    with evaluation_mode(dense.model), evaluation_mode(own.model):
        if data is None:
            progress.stage("the unpruned model writes texts to show", count * (length - 1))
            sampling = Sampling(sequences=count, length=length, seed=_SEED)
            tokens_BL = self_calibration(dense.model, tokenizer, sampling, progress.advance)
            says = "The unpruned model wrote these texts."
        else:
            tokens_BL, _ = evaluation_tokens(dense, data, count, length, "auto")
            says = f"The first {count} × {length} tokens of {data}."
            if (record["settings"]["calibration"] or {}).get("source") == data:
                says += " The pruning was calibrated on that text, so on others more may be lost."
        for opened in (dense, own):
            check_vocabulary(opened.model, tokens_BL, opened.name)
        progress.stage("reading the texts with both models", count)
        texts = []
        for tokens_L in tokens_BL:
            texts.append(sample(dense.model, own.model, tokenizer, tokens_L))
            progress.advance(1)
    return Samples(texts=texts, says=says)


def sample(dense_model: Any, pruned_model: Any, tokenizer: Any, tokens_L: Tensor) -> Sample:
    """One text through both models."""
    found = [_losses(model, tokens_L) for model in (dense_model, pruned_model)]
    texts = _texts(tokenizer, tokens_L)
    tokens = [Token(text=texts[0])]
    for index, text in enumerate(texts[1:]):
        (dense, dense_id), (pruned, pruned_id) = [(losses[index], guesses[index]) for losses, guesses in found]
        guesses = {"dense_guess": tokenizer.decode([dense_id]), "pruned_guess": tokenizer.decode([pruned_id])}
        tokens.append(Token(text=text, dense=dense, pruned=pruned, **guesses))
    return Sample(tokens=tokens)


def _losses(model: Any, tokens_L: Tensor) -> tuple[list[float], list[int]]:
    """Loss of every token but the first, and what the model held likeliest in its place."""
    logits_LV = next_logits(model, tokens_L).float().cpu()
    losses_L = torch.nn.functional.cross_entropy(logits_LV, tokens_L[1:], reduction="none")
    return losses_L.tolist(), logits_LV.argmax(-1).tolist()


def _texts(tokenizer: Any, tokens_L: Tensor) -> list[str]:
    """What each token adds to the text: a character that several tokens make together is of the last of them."""
    texts, sound = [], ""
    ids = tokens_L.tolist()
    start = 0
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[start:end])
        if whole.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids) and end - start < 8:
            texts.append("")
            continue
        texts.append(whole[len(sound) :])
        # A few tokens back are enough to tell the next one's text, blanks included.
        start = max(0, end - 4)
        sound = tokenizer.decode(ids[start:end])
    return texts


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
