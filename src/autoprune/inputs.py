"""What the user names → an open model, and calibration tokens that fit it.

Legend: B sequences, L tokens per sequence.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from autoprune.data import bos_rule, check_size, token_sequences
from autoprune.errors import AutopruneError
from autoprune.generate import Sampling, self_calibration
from autoprune.models import (
    BlockSource,
    InMemoryBlocks,
    OpenModel,
    check_finite,
    context_length,
    input_device,
    open_model,
    open_on_disk,
    vocabulary_size,
)
from autoprune.progress import Progress

SELF = "self"

# Calibration amounts (sequences, tokens per sequence) where the user names none.
_WITH_ACCELERATOR, _ON_CPU = (128, 2048), (32, 512)


_EVALUATION_LENGTH = 2048


def check_length(opened: OpenModel, length: int, option: str = "--") -> None:
    """Refuse sequences that are longer than the model's context; `option` is how its name begins."""
    limit = context_length(opened.model)
    if limit is not None and length > limit:
        raise AutopruneError(
            f"{option}length {length} is more than the {limit} positions of the model",
            where=opened.name,
            remedy=f"use at most {limit}",
        )


def opened_model(model: Any, tokenizer: Any, dtype: str, device: str, progress: Progress) -> OpenModel:
    if isinstance(model, str | Path):
        progress.stage(f"opening {model}", 1)
        return open_model(model, dtype=dtype, device=device)
    check_finite(model)
    name = getattr(model.config, "name_or_path", "") or type(model).__name__
    return OpenModel(model=model, tokenizer=tokenizer, name=name, stored_dtype=model.dtype)


def opened_blocks(
    model: Any, tokenizer: Any, dtype: str, device: str, progress: Progress, *, on_disk: bool
) -> tuple[OpenModel, BlockSource]:
    """A model and access to its blocks; `on_disk` reads them one by one, where that can be."""
    if on_disk and isinstance(model, str | Path):
        progress.stage(f"opening {model}", 1)
        if found := open_on_disk(model, dtype=dtype, device=device):
            return found
    opened = opened_model(model, tokenizer, dtype, device, progress)
    return opened, InMemoryBlocks(opened.model, opened.stored_dtype)


def calibration_tokens(
    opened: OpenModel,
    calibration: str,
    sequences: int | None,
    length: int | None,
    seed: int,
    progress: Progress,
    *,
    more: int = 0,
    chosen: tuple[int, int] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Calibration tokens (B, L), and what is recorded of them; `more` further sequences come last. `chosen` are
    sequences and length where the user names none."""
    if opened.tokenizer is None:
        raise AutopruneError("calibration needs the model's tokenizer", remedy="pass tokenizer=")
    on_cpu = input_device(opened.model).type == "cpu"
    chosen_sequences, chosen_length = chosen or (_ON_CPU if on_cpu else _WITH_ACCELERATOR)
    chosen_length = min(chosen_length, context_length(opened.model) or chosen_length)
    defaults = {"--sequences": (sequences, chosen_sequences), "--length": (length, chosen_length)}
    unsaid = [f"{name} {default}" for name, (given, default) in defaults.items() if given is None]
    if unsaid:
        progress.note(f"calibration: {' '.join(unsaid)}, chosen for {'the CPU' if on_cpu else 'the accelerator'}")
    sequences = chosen_sequences if sequences is None else sequences
    length = chosen_length if length is None else length
    check_size(sequences, length)
    check_length(opened, length)
    if calibration == SELF:
        sampling = Sampling(sequences=sequences + more, length=length, seed=seed)
        progress.stage("the model writes its calibration text", (sequences + more) * (length - 1))
        with evaluation_mode(opened.model):
            tokens_BL = self_calibration(opened.model, opened.tokenizer, sampling, progress.advance)
        rule = "every"
    else:
        progress.stage(f"reading {calibration}", 1)
        rule = bos_rule("auto", opened.tokenizer, opened.model.config.model_type)
        tokens_BL = token_sequences(
            calibration, opened.tokenizer, sequences=sequences + more, length=length, bos=rule, seed=seed
        )
    check_vocabulary(opened.model, tokens_BL, opened.name)
    record = {"source": calibration, "sequences": sequences, "length": length, "bos": rule}
    return tokens_BL, record | {"sha256": _content(tokens_BL)}


def evaluation_tokens(
    opened: OpenModel, data: str, sequences: int | None, length: int | None, bos: str, option: str = "--"
) -> tuple[Tensor, dict[str, Any]]:
    """Tokens (B, L) to measure a model on, and what is recorded of them; `option` is how the names of the two amounts
    begin."""
    length = min(_EVALUATION_LENGTH, context_length(opened.model) or _EVALUATION_LENGTH) if length is None else length
    check_size(sequences, length, option)
    check_length(opened, length, option)
    if opened.tokenizer is None:
        raise AutopruneError("evaluation needs the model's tokenizer", remedy="pass tokenizer=")
    rule = bos_rule(bos, opened.tokenizer, opened.model.config.model_type)
    tokens_BL = token_sequences(data, opened.tokenizer, sequences=sequences, length=length, bos=rule)
    check_vocabulary(opened.model, tokens_BL, opened.name)
    record = {"source": data, "sequences": len(tokens_BL), "length": length, "bos": rule}
    return tokens_BL, record | {"sha256": _content(tokens_BL)}


def amount_of_text(record: dict[str, Any]) -> str:
    """What is recorded of calibration or evaluation tokens, in words."""
    return f"{record['sequences']} × {record['length']} tokens of {record['source']}"


def _content(tokens_BL: Tensor) -> str:
    return hashlib.sha256(tokens_BL.numpy().tobytes()).hexdigest()


def require_same_vocabulary(one: OpenModel, other: OpenModel) -> None:
    """Refuse to compare models whose tokens mean different things."""
    if vocabulary_size(one.model) != vocabulary_size(other.model):
        raise AutopruneError(
            "the two models have different vocabularies",
            where=f"{one.name} and {other.name}",
            remedy="compare models of one family",
        )


def check_vocabulary(model: Any, tokens_BL: Tensor, name: str) -> None:
    size = vocabulary_size(model)
    if int(tokens_BL.max()) >= size:
        raise AutopruneError(
            f"the tokenizer gives token {int(tokens_BL.max())}, the model has {size}",
            where=name,
            remedy="use the tokenizer the model was made with",
        )


@contextmanager
def evaluation_mode(model: Any):
    """Dropout off; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
