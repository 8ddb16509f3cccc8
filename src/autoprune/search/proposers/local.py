"""A language model in this process proposes. A grammar holds it to valid replies, so that a model of any size can.

Legend: B rows (requests answered side by side), L tokens so far, V vocabulary.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from autoprune.errors import AutopruneError
from autoprune.language.grammar import grammar
from autoprune.language.space import Space
from autoprune.models import input_device, vocabulary_size
from autoprune.search.protocol import Answer, Request

_LEAST_ROOM, _MOST_ROOM = 512, 2048
"""Tokens for a reply: a prompt that leaves fewer of the model's context is refused; no reply has had as many."""

_FENCE = "```"

_NO_TOKEN = 0
"""Stands where no token is needed: before short prompts and after finished replies. Nobody reads it."""


class Local:
    """Answers requests in batches of `batch` rows. What is drawn for an answer depends on its request's seed only; but
    the same rows beside others, with other padding, have logits that differ in rounding, which can turn a draw."""

    repairs = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        space: Space,
        *,
        name: str,
        batch: int = 8,
        temperature: float = 0.8,
        program_temperature: float = 1.4,
        top_p: float = 0.95,
        max_field: int = 160,
    ):
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.batch, self.top_p = batch, top_p
        self.temperature, self.program_temperature = temperature, program_temperature
        self._vocabulary = _vocabulary(model, tokenizer)
        self._matcher = _matcher(self._vocabulary, grammar(space, max_field=max_field))
        self._opening = self._matcher.compute_ff_tokens()
        self._matcher.consume_tokens(self._opening)

    def propose(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        for first in range(0, len(requests), self.batch):
            yield from self._answers(requests[first : first + self.batch])

    def close(self) -> None:
        pass

    def _answers(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        started = time.monotonic()
        prompts = [self._tokens(request.prompt) for request in requests]
        rows = [_Row(self, request.seed) for request in requests]
        self._write(prompts, rows)
        seconds = (time.monotonic() - started) / len(requests)
        for request, prompt, row in zip(requests, prompts, rows, strict=True):
            yield (
                request,
                Answer(text=row.text, model=self.name, seconds=seconds, tokens_in=len(prompt), tokens_out=len(row.tokens)),
            )

    def _tokens(self, prompt: str) -> list[int]:
        """A prompt as the model wants it, and the words that every reply begins with."""
        chats = bool(getattr(self.tokenizer, "chat_template", None))
        if chats:
            message = {"role": "user", "content": prompt}
            prompt = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        tokens = [*self.tokenizer(prompt, add_special_tokens=not chats)["input_ids"], *self._opening]
        context = self._context
        if context is not None and len(tokens) + _LEAST_ROOM > context:
            raise AutopruneError(
                f"a prompt of {len(tokens)} tokens leaves no room for a reply in the {context} of {self.name}",
                remedy=f"use --prompt-tokens {max(context - _LEAST_ROOM, 0)} or fewer",
            )
        return tokens

    @property
    def _context(self) -> int | None:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def _write(self, prompts: Sequence[list[int]], rows: Sequence[_Row]) -> None:
        longest = max(map(len, prompts))
        padded_BL = torch.tensor([[_NO_TOKEN] * (longest - len(prompt)) + prompt for prompt in prompts])
        present_BL = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        room = _MOST_ROOM if self._context is None else min(_MOST_ROOM, self._context - longest)
        # Rows draw their tokens themselves: the model's own generation settings must not shape the text.
        config = GenerationConfig(do_sample=False, max_new_tokens=room, use_cache=True, pad_token_id=_NO_TOKEN)
        own, was_training = self.model.generation_config, self.model.training
        self.model.generation_config = config
        self.model.eval()
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.model.generate(
                    padded_BL.to(input_device(self.model)),
                    attention_mask=present_BL.to(input_device(self.model)),
                    generation_config=config,
                    logits_processor=LogitsProcessorList([_Draws(rows)]),
                    stopping_criteria=StoppingCriteriaList([_Finished(rows)]),
                )
        finally:
            self.model.generation_config = own
            self.model.train(was_training)


class _Row:
    """A reply that is being written."""

    def __init__(self, local: Local, seed: int):
        self.local, self.matcher = local, local._matcher.deep_copy()
        self.generator = torch.Generator().manual_seed(seed)
        self.tokens: list[int] = []
        self._forced: list[int] = []

    @property
    def text(self) -> str:
        return self.local._vocabulary.decode_str([*self.local._opening, *self.tokens])

    @property
    def finished(self) -> bool:
        """Whether the grammar allows nothing more."""
        return self.matcher.is_stopped()

    def next(self, logits_V: Tensor) -> int:
        """The next token: the one that the text goes on with anyway, or one drawn from those that the grammar allows."""
        if self.finished:
            return _NO_TOKEN
        # Where only one text is possible, it is cut into tokens as the tokenizer would: models know it that way.
        self._forced = self._forced or self.matcher.compute_ff_tokens()
        token = self._forced.pop(0) if self._forced else self._drawn(logits_V)
        self.matcher.consume_token(token)
        self.tokens.append(token)
        return token

    def _drawn(self, logits_V: Tensor) -> int:
        allowed = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), np.uint8), bitorder="little")
        tokens = torch.from_numpy(np.flatnonzero(allowed[: len(logits_V)]))
        temperature = self.local.program_temperature if _FENCE in self.text else self.local.temperature
        probability, order = (logits_V[tokens].double() / temperature).softmax(0).sort(descending=True)
        probability[probability.cumsum(0) - probability >= self.local.top_p] = 0  # the first token always stays
        return int(tokens[order[torch.multinomial(probability, 1, generator=self.generator)]])


class _Draws(LogitsProcessor):
    """Leaves each row the one token that it draws."""

    def __init__(self, rows: Sequence[_Row]):
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits_BV = scores.cpu()
        drawn = [row.next(logits_V) for row, logits_V in zip(self.rows, logits_BV, strict=True)]
        chosen_BV = torch.full_like(scores, -torch.inf)
        return chosen_BV.scatter_(1, torch.tensor(drawn, device=scores.device)[:, None], 0.0)


class _Finished(StoppingCriteria):
    def __init__(self, rows: Sequence[_Row]):
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor([row.finished for row in self.rows], device=input_ids.device)


def _vocabulary(model: Any, tokenizer: Any) -> Any:
    """The tokens as llguidance wants them."""
    try:
        from llguidance.hf import from_tokenizer
    except ImportError:
        raise AutopruneError("a local proposer needs llguidance", remedy="pip install autoprune[search]") from None
    try:
        return from_tokenizer(tokenizer, n_vocab=max(len(tokenizer), vocabulary_size(model)))
    except ValueError as error:
        raise AutopruneError(
            f"llguidance cannot use the tokenizer ({error})", remedy="use another --proposer"
        ) from None


def _matcher(vocabulary: Any, text: str) -> Any:
    from llguidance import LLMatcher

    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(text))
    assert not matcher.is_error(), matcher.get_error()
    return matcher
