"""Self-calibration: the model writes its own calibration text, so that none has to be found.

After Williams, Chrysostomou and Aletras, "Self-calibration for language model quantization and pruning"
(arXiv 2410.17170): ancestral sampling that starts from the BOS token only, hotter for the first tokens, so that the
texts differ, then at temperature 1. Texts that repeat themselves are dropped and written again.

Legend: B sequences, L tokens per sequence.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from autoprune.attention import faster_attention
from autoprune.errors import AutopruneError
from autoprune.files import cache_folder, finished_folder
from autoprune.models import fingerprint, input_device


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the model writes. `heat_tokens` tokens cool from `first_temperature` to 1, linearly.

    A text is degenerate where fewer than `min_distinct` of its 4-grams are distinct.
    """

    sequences: int
    length: int
    seed: int = 0
    first_temperature: float = 1.5
    heat_tokens: int = 8
    min_distinct: float = 0.5
    max_rounds: int = 3
    batch_tokens: int = 32_768  # written side by side: bounds the key-value cache


def self_calibration(
    model: Any, tokenizer: Any, sampling: Sampling, on_tokens: Callable[[int], None] = lambda count: None
) -> Tensor:
    """Sequences the model wrote: int64, shape (B, L), on the CPU, each beginning with the start token.

    Cached by the content of the model and the settings. `on_tokens` is told how many tokens were written.
    """
    start = start_token(tokenizer, model)
    content = [asdict(sampling), start, fingerprint(model), model.config.to_json_string()]
    settings = json.dumps(content, sort_keys=True)
    folder = cache_folder("self_calibration") / hashlib.sha256(settings.encode()).hexdigest()[:32]
    try:
        return load_file(folder / "tokens.safetensors")["tokens"]
    except (OSError, SafetensorError, KeyError):
        pass  # not there, or damaged: write it again
    tokens_BL = _write(model, start, sampling, on_tokens)
    with suppress(AutopruneError), finished_folder(folder) as partial:  # no place for a cache is no reason to fail
        save_file({"tokens": tokens_BL}, partial / "tokens.safetensors")
    return tokens_BL


def start_token(tokenizer: Any, model: Any) -> int:
    """What a text starts from: BOS; EOS, which separates documents, where there is no BOS; else token 0."""
    text_config = model.config.get_text_config()
    for candidate in (
        tokenizer.bos_token_id,
        getattr(text_config, "bos_token_id", None),
        tokenizer.eos_token_id,
        getattr(text_config, "eos_token_id", None),
    ):
        if isinstance(candidate, list | tuple):
            candidate = candidate[0] if candidate else None
        if candidate is not None and 0 <= int(candidate) < model.get_input_embeddings().num_embeddings:
            return int(candidate)
    return 0


def distinct_share(tokens_BL: Tensor) -> Tensor:
    """Share of a sequence's 4-grams that are distinct, shape (B,); 1 for sequences of fewer than five tokens."""
    if tokens_BL.shape[1] < 5:
        return torch.ones(len(tokens_BL))
    grams = tokens_BL.unfold(1, 4, 1).tolist()
    return torch.tensor([len({tuple(gram) for gram in text}) / len(text) for text in grams])


def _write(model: Any, start: int, sampling: Sampling, on_tokens: Callable[[int], None]) -> Tensor:
    """Write until enough texts are good; after the last round the least repetitive others fill the gap."""
    devices = [input_device(model)] if input_device(model).type == "cuda" else []
    written: list[Tensor] = []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(sampling.seed)
        for _ in range(sampling.max_rounds):
            good = sum(int((distinct_share(part) >= sampling.min_distinct).sum()) for part in written)
            missing = sampling.sequences - good
            while missing > 0:
                count = min(missing, max(1, sampling.batch_tokens // sampling.length))
                written.append(_sample(model, start, count, sampling, on_tokens))
                missing -= count
    tokens_BL = torch.cat(written)
    share_B = distinct_share(tokens_BL)
    # good ones in the order they were written, then the others from best to worst
    rank_B = torch.where(share_B >= sampling.min_distinct, torch.tensor(2.0), share_B)
    return tokens_BL[rank_B.argsort(descending=True, stable=True)[: sampling.sequences]].contiguous()


def _sample(model: Any, start: int, count: int, sampling: Sampling, on_tokens: Callable[[int], None]) -> Tensor:
    start_B1 = torch.full((count, 1), start, device=input_device(model))
    new = sampling.length - 1
    # The model's own generation settings (top-k, penalties, a short maximum) must not shape the text.
    config = GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=new, min_new_tokens=new, use_cache=True
    )
    own, model.generation_config = model.generation_config, config
    try:
        with torch.no_grad(), faster_attention(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokens_BL = model.generate(
                start_B1,
                attention_mask=torch.ones_like(start_B1),
                generation_config=config,
                logits_processor=LogitsProcessorList([_Temperature(sampling, on_tokens), _NeverEnds(model)]),
            )
    finally:
        model.generation_config = own
    return tokens_BL.cpu()


class _Temperature(LogitsProcessor):
    """Cools from the first temperature to 1 over the first tokens; also the place that sees each token come."""

    def __init__(self, sampling: Sampling, on_tokens: Callable[[int], None]):
        self.sampling, self.on_tokens = sampling, on_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.on_tokens(len(input_ids))
        cooled = min((input_ids.shape[1] - 1) / self.sampling.heat_tokens, 1.0)
        return scores / (self.sampling.first_temperature + cooled * (1.0 - self.sampling.first_temperature))


class _NeverEnds(LogitsProcessor):
    """Bans the end tokens: a sequence is filled to its length."""

    def __init__(self, model: Any):
        ends = getattr(model.config.get_text_config(), "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        self.ends = [end for end in ends if 0 <= end < model.get_input_embeddings().num_embeddings]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, self.ends] = -torch.inf
        return scores
