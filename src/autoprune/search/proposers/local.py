"""A language model in this process proposes. A grammar holds it to valid replies, so that a model of any size can.

Legend: B rows (requests that are answered side by side), L tokens so far, V vocabulary.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer

from autoprune.attention import faster_attention
from autoprune.errors import AutopruneError
from autoprune.language.grammar import MAX_CHARACTERS, grammar
from autoprune.language.reader import read_program
from autoprune.language.space import Space
from autoprune.models import input_device, vocabulary_size
from autoprune.search.protocol import Answer, Request
from autoprune.search.reply import parse_reply

_LEAST_ROOM = 512
"""Tokens of the model's context that a prompt has to leave for the reply; most take 50 to 200."""

_ANY_TOKEN = 0
"""Fills rows before short prompts and after finished replies; nothing reads it."""

_FENCE = "```"

_TRIES = 3
"""Draws for an answer, each hotter, until one is a program that is not known and fits."""


class Local:
    """Answers requests with a language model of transformers, `batch` of them side by side.

    Programs are drawn at another temperature than the prose before them: small models copy programs from the prompt
    unless it is high, and the grammar keeps whatever comes valid. What is drawn for an answer depends on its request
    only. The logits it is drawn from differ by rounding errors with what else is in the batch, though, since that
    decides about padding; the same batch gives the same answers.
    """

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
        program_temperature: float = 1.3,
        top_p: float = 0.95,
        max_field: int = 160,
    ):
        self.model, self.tokenizer, self.name, self.batch, self._space = model, tokenizer, name, batch, space
        self._sampling = _Sampling(temperature=temperature, program_temperature=program_temperature, top_p=top_p)
        self._vocabulary = _vocabulary(model, tokenizer)
        self._matcher = _matcher(self._vocabulary, grammar(space, max_field=max_field))
        self._opening = self._matcher.compute_ff_tokens()  # what every reply begins with need not be generated
        self._matcher.consume_tokens(self._opening)
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._most_tokens = MAX_CHARACTERS + 2 * max_field + 100  # a token is a character at least
        self._shares: bool | None = None  # whether what prompts begin with can be read once; found by a trial

    def propose(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        for first in range(0, len(requests), self.batch):
            yield from self._answers(requests[first : first + self.batch])

    def close(self) -> None:
        pass

    def _answers(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Answer]]:
        started = time.monotonic()
        prompts = [self._tokens(request.prompt) for request in requests]
        texts: dict[Request, str] = {}
        tokens_in, tokens_out = Counter[Request](), Counter[Request]()
        waiting = list(zip(requests, prompts, strict=True))
        common = self._common(prompts)
        for attempt in range(_TRIES):
            sampling = self._sampling.hotter(attempt)
            rows = [
                _Row(self._matcher.deep_copy(), self._vocabulary, sampling, request.seed + attempt, list(self._opening))
                for request, _ in waiting
            ]
            self._write([prompt for _, prompt in waiting], rows, common)
            for (request, prompt), row in zip(waiting, rows, strict=True):
                texts[request] = row.text
                tokens_in[request] += len(prompt)
                tokens_out[request] += len(row.tokens) - len(self._opening)
            waiting = [(request, prompt) for request, prompt in waiting if self._is_in_vain(texts[request], request)]
            if not waiting:
                break
        seconds = (time.monotonic() - started) / len(requests)
        for request, text in texts.items():
            read, written = tokens_in[request], tokens_out[request]
            yield request, Answer(text=text, model=self.name, seconds=seconds, tokens_in=read, tokens_out=written)

    def _is_in_vain(self, text: str, request: Request) -> bool:
        """Whether an answer's program is there already, or does not fit; what is no program (it was cut off) is not."""
        try:
            program = read_program(parse_reply(text).program)
        except AutopruneError:
            return False
        return program.digest in request.known or bool(self._space.refusal(program))

    def _tokens(self, prompt: str) -> list[int]:
        """A prompt as the model knows prompts, and the opening of the reply."""
        if getattr(self.tokenizer, "chat_template", None):
            message = {"role": "user", "content": prompt}
            text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            tokens = self.tokenizer(f"{prompt}\n\n")["input_ids"]
        if self._context is not None and len(tokens) + len(self._opening) + _LEAST_ROOM > self._context:
            raise AutopruneError(
                f"a prompt of {len(tokens)} tokens leaves too little of {self._context} for a reply",
                where=self.name,
                remedy=f"use a --prompt-tokens below {self._context - _LEAST_ROOM}, or a model with a longer context",
            )
        return [*tokens, *self._opening]

    def _common(self, prompts: Sequence[list[int]]) -> DynamicCache | None:
        """Keys and values of what all prompts of a batch begin with, so that it is read once, not once a row and try.

        None where there is nothing, or where the model goes on from it otherwise than from the whole: it remembers by
        windows or states, or knows distances by the place in the row, where what fills short rows now is in between.
        """
        start = _shared_start(prompts)
        if not start or self._shares is False:
            return None
        if self._shares is None:
            ends = [min(prompts, key=len), max(prompts, key=len)]
            self._shares = self._goes_on(start, ends)
        return self._read(start) if self._shares else None

    def _goes_on(self, start: list[int], prompts: Sequence[list[int]]) -> bool:
        """Whether the model says the same after a start that was read before, but for rounding."""
        try:
            cache = self._read(start)
            if any(type(layer) is not DynamicLayer for layer in cache.layers):
                return False
            found_BV, whole_BV = (self._next_logits(prompts, common) for common in (cache, None))
        except Exception:  # whatever a model's own code makes of a cache that it does not expect
            return False
        wide_BV = whole_BV - whole_BV.mean(1, keepdim=True)
        rounding = 0.1 if self.model.dtype.itemsize < 4 else 1e-3
        return bool(((found_BV - whole_BV).norm(dim=1) <= rounding * wide_BV.norm(dim=1)).all())

    def _read(self, start: list[int]) -> DynamicCache:
        cache = DynamicCache(config=self.model.config)
        with self._generating():
            self.model.base_model(torch.tensor([start], device=input_device(self.model)), past_key_values=cache)
        return cache

    def _next_logits(self, prompts: Sequence[list[int]], common: DynamicCache | None) -> Tensor:
        """What the model expects after each prompt, float32, shape (B, V)."""
        config = GenerationConfig(do_sample=False, max_new_tokens=1, use_cache=True, pad_token_id=_ANY_TOKEN)
        with self._generating(config):
            made = self.model.generate(
                **self._rows(prompts, common),
                generation_config=config,
                output_logits=True,
                return_dict_in_generate=True,
            )
        return made.logits[0].float()

    def _write(self, prompts: Sequence[list[int]], rows: Sequence[_Row], common: DynamicCache | None) -> None:
        """Writes all rows to their ends."""
        longest = max(map(len, prompts))
        most = self._most_tokens if self._context is None else min(self._most_tokens, self._context - longest)
        # Rows draw their tokens themselves: the model's own generation settings must not shape the text.
        config = GenerationConfig(do_sample=False, max_new_tokens=most, use_cache=True, pad_token_id=_ANY_TOKEN)
        with self._generating(config):
            self.model.generate(
                **self._rows(prompts, common),
                generation_config=config,
                logits_processor=LogitsProcessorList([_Draw(rows)]),
                stopping_criteria=StoppingCriteriaList([_Finished(rows)]),
            )

    def _rows(self, prompts: Sequence[list[int]], common: DynamicCache | None) -> dict[str, Any]:
        """Prompts side by side; what fills short ones comes after what is known already."""
        device, longest, known = input_device(self.model), max(map(len, prompts)), 0
        if common is not None:
            known, common = common.get_seq_length(), copy.deepcopy(common)
            common.batch_repeat_interleave(len(prompts))
        tokens_BL = torch.full((len(prompts), longest), _ANY_TOKEN)
        present_BL = torch.zeros_like(tokens_BL)
        for row, prompt in enumerate(prompts):
            for part, at in (
                (prompt[:known], slice(known)),
                (prompt[known:], slice(longest - len(prompt) + known, None)),
            ):
                tokens_BL[row, at] = torch.tensor(part)
                present_BL[row, at] = 1
        return {
            "input_ids": tokens_BL.to(device),
            "attention_mask": present_BL.to(device),
            "past_key_values": common,
        }

    @contextmanager
    def _generating(self, config: GenerationConfig | None = None) -> Iterator[None]:
        """The model is left as it was."""
        own, training = self.model.generation_config, self.model.training
        self.model.generation_config = config or own
        try:
            self.model.eval()
            with torch.no_grad(), faster_attention(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            self.model.generation_config = own
            self.model.train(training)


def _shared_start(prompts: Sequence[list[int]]) -> list[int]:
    """What all begin with, and at least one token less than each has: a model needs one to begin with."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return [tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, columns)]


@dataclass(frozen=True, kw_only=True)
class _Sampling:
    temperature: float
    program_temperature: float
    top_p: float

    def hotter(self, attempt: int) -> _Sampling:
        return replace(self, program_temperature=self.program_temperature * (1 + attempt / 4))


@dataclass
class _Row:
    """A reply that is being written; its matcher has seen `tokens`."""

    matcher: Any
    vocabulary: Any
    sampling: _Sampling
    seed: int
    tokens: list[int]
    _forced: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    @property
    def text(self) -> str:
        return self.vocabulary.decode_str(self.tokens)

    @property
    def finished(self) -> bool:
        """Whether the grammar allows nothing more."""
        return self.matcher.is_stopped()

    def next(self, logits_V: Tensor) -> int:
        """Writes one more token, and returns it."""
        if self.finished:
            return _ANY_TOKEN
        # Where only one text can follow, it is cut into tokens as the tokenizer would: that is how models know it.
        self._forced = self._forced or self.matcher.compute_ff_tokens()
        token = self._forced.pop(0) if self._forced else self._drawn(logits_V)
        self.matcher.consume_token(token)
        self.tokens.append(token)
        return token

    def _drawn(self, logits_V: Tensor) -> int:
        """A token that the grammar allows."""
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        allowed = torch.from_numpy(np.flatnonzero(np.unpackbits(bits, bitorder="little")[: len(logits_V)]))
        sampling = self.sampling
        temperature = sampling.program_temperature if _FENCE in self.text else sampling.temperature
        probability, order = (logits_V[allowed].double() / temperature).softmax(0).sort(descending=True)
        probability[probability.cumsum(0) - probability >= sampling.top_p] = 0  # never the first
        return int(allowed[order[torch.multinomial(probability, 1, generator=self._generator)]])


class _Draw(LogitsProcessor):
    """Leaves every row the one token that it draws."""

    def __init__(self, rows: Sequence[_Row]):
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits_BV = scores.cpu()  # where the generators are, so that all devices draw alike
        tokens = [row.next(logits_V) for row, logits_V in zip(self.rows, logits_BV, strict=True)]
        chosen_BV = torch.full_like(scores, -torch.inf)
        return chosen_BV.scatter_(1, torch.tensor(tokens, device=scores.device)[:, None], 0.0)


class _Finished(StoppingCriteria):
    def __init__(self, rows: Sequence[_Row]):
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return torch.tensor([row.finished for row in self.rows], device=input_ids.device)


def _vocabulary(model: Any, tokenizer: Any) -> Any:
    """The tokenizer as llguidance wants it."""
    try:
        from llguidance.hf import from_tokenizer
    except ImportError:
        raise AutopruneError("a local model needs llguidance", remedy="pip install autoprune[search]") from None
    try:
        return from_tokenizer(tokenizer, n_vocab=max(len(tokenizer), vocabulary_size(model)))
    except ValueError as error:
        raise AutopruneError(f"the tokenizer does not suit llguidance ({error})", remedy="use another model") from None


def _matcher(vocabulary: Any, text: str) -> Any:
    from llguidance import LLMatcher, LLParserLimits

    # A matcher that reaches a limit gives up its text. The usual ones leave some room; these are never reached.
    limits = LLParserLimits(max_items_in_row=100_000, step_max_items=10_000_000, step_lexer_fuel=10_000_000)
    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(text), limits=limits)
    assert not matcher.is_error(), matcher.get_error()
    return matcher
