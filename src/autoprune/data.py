"""Text → token sequences, for calibration and for evaluation.

Legend: B sequences, L tokens per sequence.
A source is "file:PATH" (.txt, or .jsonl with a `text` field) or "hub:NAME[:CONFIG][:SPLIT]" (a data set of the
hub, or a local folder that `datasets` can load). Documents are joined by a blank line, tokenised as one text
and cut into consecutive sequences, as the field does for WikiText-2. Seed 0 takes the first of them, any other seed
draws them from the beginning of the text, 16 times as long as what is drawn (or from all of a shorter one).

Beginning-of-sequence token ("bos"): "none" adds nothing, "start" puts one before the whole text (LLaMA, OPT),
"every" puts one before each sequence (Gemma, which is lost without it). "auto" is "every" for the Gemma family,
else "start" where the tokenizer adds one by itself, else "none".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoprune.errors import AutopruneError

BOS_RULES = ("auto", "none", "start", "every")

_SEPARATOR = "\n\n"
_CHARACTERS_PER_TOKEN = 8  # first guess of how much text to read; more is read when it was too little
_POOL = 16  # times as many sequences as are drawn from them
_UNSTABLE_TAIL = 64  # tokens at the end of a cut text that more text could have changed


def bos_rule(rule: str, tokenizer: Any, model_type: str) -> str:
    """Resolve "auto" to the rule for this tokenizer and model family."""
    if rule not in BOS_RULES:
        raise AutopruneError(f"unknown bos rule '{rule}'", remedy=f"use {', '.join(BOS_RULES)}")
    if rule != "auto":
        if rule != "none" and tokenizer.bos_token_id is None:
            raise AutopruneError("the tokenizer has no bos token", remedy="use --bos none")
        return rule
    if tokenizer.bos_token_id is None:
        return "none"
    if model_type.startswith(("gemma", "recurrent_gemma")):
        return "every"
    return "start" if tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id] else "none"


def token_sequences(
    source: str, tokenizer: Any, *, sequences: int | None, length: int, bos: str = "none", seed: int = 0
) -> Tensor:
    """`sequences` (all, if None) consecutive sequences of `length` tokens, as `seed` says: int64, shape (B, L).

    The last partial sequence is dropped; too little text is an error that says how much there was.
    """
    check_size(sequences, length)
    prefix = [tokenizer.bos_token_id] if bos == "start" else []
    own = length - 1 if bos == "every" else length  # tokens of text in each sequence
    wanted = None if sequences is None else sequences * own * (_POOL if seed else 1) - len(prefix)
    ids = prefix + _tokens(_pieces(source), tokenizer, wanted)
    count = len(ids) // own if sequences is None else sequences
    if count == 0 or len(ids) < count * own:
        raise AutopruneError(
            f"the text has {len(ids):,} tokens; {max(count, 1):,} sequences of {length:,} were asked for",
            where=source,
            remedy="use a longer text, fewer --sequences or a shorter --length",
        )
    pool = min(len(ids) // own, count * _POOL) if seed else count
    tokens_BL = torch.tensor(ids[: pool * own], dtype=torch.int64).view(pool, own)
    if seed:
        tokens_BL = tokens_BL[torch.randperm(pool, generator=torch.Generator().manual_seed(seed))[:count]]
    if bos == "every":
        start_B1 = torch.full((count, 1), tokenizer.bos_token_id, dtype=torch.int64)
        tokens_BL = torch.cat([start_B1, tokens_BL], dim=1)
    return tokens_BL


def check_size(sequences: int | None, length: int, option: str = "--") -> None:
    """Refuse an amount of text that makes no sense; `option` is how the names of the two begin."""
    if sequences is not None and sequences < 1:
        raise AutopruneError(f"{option}sequences {sequences} is less than 1", remedy="ask for at least one sequence")
    if length < 2:
        raise AutopruneError(f"{option}length {length} is less than 2", remedy="a sequence needs at least two tokens")


def _tokens(pieces: Iterator[str], tokenizer: Any, wanted: int | None) -> list[int]:
    """Token ids of the text, at least `wanted` of them if there are so many, reading no more than needed."""
    if wanted is None:
        return _encode(tokenizer, "".join(pieces))
    text, budget = "", wanted * _CHARACTERS_PER_TOKEN + 1024
    while True:
        while len(text) < budget and (piece := next(pieces, None)) is not None:
            text += piece
        ids = _encode(tokenizer, text[:budget])
        if len(text) < budget or len(ids) - _UNSTABLE_TAIL >= wanted:
            return ids
        budget *= 2


def _encode(tokenizer: Any, text: str) -> list[int]:
    # verbose: no warning that the whole text is longer than the model's context; it is cut afterwards
    try:
        return tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    except Exception as error:  # as when a sign is unknown and there is no token for that
        raise AutopruneError(
            f"the tokenizer cannot read the text ({error})", remedy="use another text, or a sound tokenizer"
        ) from None


def check_source(source: str) -> None:
    """Refuse what is not the name of a text source."""
    kind, _, rest = source.partition(":")
    if kind not in ("file", "hub") or not rest:
        raise AutopruneError(
            f"'{source}' is not a text source", remedy="use file:PATH (.txt, .jsonl) or hub:NAME[:CONFIG][:SPLIT]"
        )


def _pieces(source: str) -> Iterator[str]:
    """The text in pieces, in order; joined they are the documents with a blank line between them."""
    check_source(source)
    kind, _, rest = source.partition(":")
    if kind == "file":
        path = local_path(rest)
        return _joined(_jsonl(path)) if path.suffix in (".jsonl", ".json") else _plain(path)
    return _joined(_hub(rest))


def local_path(path: str) -> Path:
    return Path(os.path.expanduser(path))  # unlike Path.expanduser, never raises


def _joined(documents: Iterable[str]) -> Iterator[str]:
    for index, document in enumerate(documents):
        yield document if index == 0 else _SEPARATOR + document


def _plain(path: Path) -> Iterator[str]:
    with _opened(path) as file:
        try:
            while piece := file.read(1 << 20):
                yield piece
        except UnicodeDecodeError:
            raise AutopruneError("not UTF-8 text", where=str(path), remedy="convert it to UTF-8") from None


def _jsonl(path: Path) -> Iterator[str]:
    return (_text_field(record, where) for record, where in json_lines(path))


def json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    """What the lines of a .jsonl file hold, each with its file and line for messages; empty lines are passed over."""
    with _opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                line = line.removeprefix("\ufeff")  # the byte order mark that some editors begin a file with
                where = f"{path}, line {number}"
                if line.strip():
                    yield _parsed(line, where), where
        except UnicodeDecodeError:
            raise AutopruneError("not UTF-8 text", where=str(path), remedy="convert it to UTF-8") from None


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise AutopruneError(f"not JSON ({error.msg})", where=where, remedy="one JSON object a line") from None


def _text_field(record: Any, where: str) -> str:
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise AutopruneError("no field 'text'", where=where, remedy='as in {"text": "..."}')
    check_encodes(text, where)
    return text


def check_encodes(text: str, where: str) -> None:
    """Refuse a text that UTF-8 cannot say: JSON may escape half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise AutopruneError("half a surrogate pair", where=where, remedy="write it as UTF-8") from None


def _opened(path: Path):
    try:
        return path.open(encoding="utf-8", newline="")
    except OSError as error:
        reason = error.strerror or str(error)
        raise AutopruneError(f"cannot read the text: {reason}", where=str(path), remedy="check the path") from None


def _hub(spec: str) -> Iterator[str]:
    name, *rest = spec.split(":")
    split = rest[-1] if rest else "train"
    config = rest[0] if len(rest) == 2 else None
    if len(rest) > 2:
        raise AutopruneError(f"'hub:{spec}' has too many parts", remedy="use hub:NAME[:CONFIG][:SPLIT]")
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise AutopruneError("hub: needs the datasets package", remedy="run: pip install 'autoprune[hub]'") from None
    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get("text"), str):
                raise AutopruneError(
                    f"row {number} has no text column", where=f"hub:{spec}", remedy="use a data set with `text`"
                )
            yield row["text"]
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, AutopruneError):
            raise
        message = " ".join(str(error).split())[:200]
        raise AutopruneError(
            f"cannot load the data set ({message})", where=f"hub:{spec}", remedy="check its name and the network"
        ) from None
