"""How long a model takes to read a prompt and to write on.

Legend: B sequences, L tokens of the prompt, V vocabulary.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from autoprune.models import input_device


def prompt_tokens(model: Any, batch: int, length: int, vocabulary: int) -> Tensor:
    """Token ids (B, L) by chance, the same in every process: what a token is does not change how long it takes. None is
    one of those that stand for something else, such as an image."""
    settings = model.config.to_dict().items()
    reserved = {value for key, value in settings if key.endswith(("_token_id", "_token_index"))}
    ordinary = torch.tensor([token for token in range(vocabulary) if token not in reserved])
    generator = torch.Generator().manual_seed(0)
    return ordinary[torch.randint(len(ordinary), (batch, length), generator=generator)]


def time_once(model: Any, tokens_BL: Tensor, new: int) -> tuple[float, float]:
    """Seconds of prefill (the prompt, to the logits after it) and of decode (`new` greedy steps with a cache).

    No token ends it early: the model's own generation settings are put aside.
    """
    device = input_device(model)
    tokens_BL = tokens_BL.to(device)
    watch = _Stamps(device)
    # One token comes out of the prefill, each of the others out of a step.
    config = GenerationConfig(do_sample=False, max_new_tokens=new + 1, use_cache=True)
    own, model.generation_config = model.generation_config, config
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = watch.now()
            model.generate(
                tokens_BL,
                attention_mask=torch.ones_like(tokens_BL),
                generation_config=config,
                logits_processor=LogitsProcessorList([watch]),
            )
    finally:
        model.generation_config = own
    assert len(watch.stamps) == new + 1, "the model stopped early"
    return watch.stamps[0] - start, watch.stamps[-1] - watch.stamps[0]


class _Stamps(LogitsProcessor):
    """Notes when the logits of each step have come."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stamps: list[float] = []

    def now(self) -> float:
        if self.device.type != "cpu":  # which is told what to do long before it is done
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.stamps.append(self.now())
        return scores
