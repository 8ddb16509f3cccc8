"""What the benchmarks of wall time share: their options, the tokens, the line about ratios. Knows autoprune only when
asked for tokens, since a peer's environment has none."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parser(doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model")
    made.add_argument("--text", required=True)
    made.add_argument("--sequences", type=int, default=64)
    made.add_argument("--length", type=int, default=512)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--threads", type=int, default=2)
    return made


def opened_with_tokens(options: argparse.Namespace, seed: int = 0) -> tuple[Any, Any]:
    """The model on the CPU, and its calibration tokens (B, L), the first of the text or as the seed draws them."""
    from autoprune.data import bos_rule, token_sequences
    from autoprune.models import open_model

    opened = open_model(options.model, device="cpu")
    rule = bos_rule("auto", opened.tokenizer, opened.model.config.model_type)
    text, amounts = f"file:{options.text}", {"sequences": options.sequences, "length": options.length}
    return opened, token_sequences(text, opened.tokenizer, bos=rule, seed=seed, **amounts)


def test_tokens(options: argparse.Namespace) -> Any:
    """Tokens (B, 1024) of the text that perplexity is of."""
    from autoprune.data import token_sequences
    from autoprune.models import open_model

    tokenizer = open_model(options.model, device="cpu").tokenizer
    return token_sequences(f"file:{options.test}", tokenizer, sequences=options.test_sequences, length=1024)


def perplexity(model: Any, sequences: Sequence[Sequence[int]]) -> float:
    """Of the tokens of all sequences after their first; NaN where there are none."""
    import torch

    losses = []
    with torch.no_grad():
        for tokens in sequences:
            tokens_1L = torch.tensor([tokens])
            logits_LV = model(input_ids=tokens_1L, use_cache=False).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits_LV, tokens_1L[0, 1:]))
    return float(torch.stack(losses).mean().exp()) if losses else math.nan


def peak_resident_bytes() -> int:
    """Of this process alone: ru_maxrss would also count what the parent held when it started us."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def ratios(times: Sequence[float], others: Sequence[float]) -> str:
    """Median and range of the ratio in each round."""
    found = sorted(one / other for one, other in zip(times, others, strict=True))
    return f"median {statistics.median(found):.2f}, {found[0]:.2f} to {found[-1]:.2f}"
