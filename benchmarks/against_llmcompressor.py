"""Wall time, and perplexity afterwards, of a prune here and of llmcompressor's SparseGPT, in turn, on the same tokens.

    python benchmarks/against_llmcompressor.py MODEL --text FILE --peer PATH_TO_PYTHON [--test FILE] [--rounds 3]
        [--algorithm best] [--target 0.7 | --target 2:4] [--propagation one_pass] [--threads 2]

`--peer` is the interpreter of an environment that has llmcompressor. Every prune is a process of its own; what is timed
is the prune alone, without imports, loading and saving. Prints medians, and the ratio to the peer in the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timing


def main() -> None:
    parser = timing.parser(__doc__, rounds=3)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--test", help="text the perplexity is of")
    parser.add_argument("--test-sequences", type=int, default=16)
    parser.add_argument("--algorithm", default="sparsegpt")
    parser.add_argument("--target", default="0.7", help="a sparsity or an n:m pattern")
    parser.add_argument("--propagation", default="block")
    parser.add_argument("--one", choices=["own", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--tokens", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("model", "text", "test"):  # each prune runs in a folder of its own
        if (path := Path(getattr(options, name) or "")).exists() and getattr(options, name):
            setattr(options, name, str(path.resolve()))
    if options.one:
        print(json.dumps((own if options.one == "own" else peer)(options)))
        return
    tokens = timing.opened_with_tokens(options)[1].tolist()
    test = []
    if options.test:
        test = timing.test_tokens(options).tolist()
    taken: dict[str, list[float]] = {"own": [], "peer": []}
    perplexities: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "tokens.json"
        written.write_text(json.dumps({"calibration": tokens, "test": test}), "utf-8")
        given = [f"--{name.replace('_', '-')}={value}" for name, value in vars(options).items()
                 if name not in ("model", "one", "tokens", "rounds") and value is not None]  # fmt: skip
        for _ in range(options.rounds):
            for name, python in (("own", sys.executable), ("peer", options.peer)):
                command = [python, str(Path(__file__).resolve()), options.model, *given, "--one", name]
                result = subprocess.run(
                    [*command, "--tokens", str(written)], capture_output=True, text=True, cwd=folder
                )
                if result.returncode:
                    sys.exit(f"{name} failed:\n{result.stderr[-2000:]}")
                seconds, perplexities[name] = json.loads(result.stdout.splitlines()[-1])
                taken[name].append(seconds)
                print(f"{name}: {seconds:.1f} s, perplexity {perplexities[name]:.2f}", file=sys.stderr)
    for name, seconds in taken.items():
        print(f"{name:<6} median {statistics.median(seconds):6.1f} s  perplexity {perplexities[name]:.2f}")
    print(f"ratio  {timing.ratios(taken['own'], taken['peer'])}")


def own(options: argparse.Namespace) -> tuple[float, float]:
    import torch

    import autoprune
    from autoprune.models import open_model

    torch.set_num_threads(options.threads)
    opened = open_model(options.model, device="cpu")
    is_pattern = ":" in options.target
    report = autoprune.prune(
        opened.model,
        tokenizer=opened.tokenizer,
        algorithm=options.algorithm,
        pattern=options.target if is_pattern else None,
        sparsity=None if is_pattern else float(options.target),
        propagation=options.propagation,
        calibration=f"file:{options.text}",
        sequences=options.sequences,
        length=options.length,
    )
    seconds = report.durations_s["allocation"] + report.durations_s["prune"]
    return seconds, timing.perplexity(opened.model, tokens_of(options)["test"])


def tokens_of(options: argparse.Namespace) -> dict[str, list[list[int]]]:
    return json.loads(Path(options.tokens).read_text("utf-8"))


def peer(options: argparse.Namespace) -> tuple[float, float]:
    """The modifier's defaults; the sequential pipeline, which prunes block after block."""
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers.pruning import SparseGPTModifier  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto")
    tokens = tokens_of(options)["calibration"]
    rows: dict[str, Any] = {"input_ids": tokens, "attention_mask": [[1] * len(row) for row in tokens]}
    pattern = options.target if ":" in options.target else "0:0"
    kept, group = map(int, pattern.split(":"))
    recipe = SparseGPTModifier(
        sparsity=1 - kept / group if group else float(options.target),
        mask_structure=pattern,
        targets=["Linear"],
        ignore=["lm_head"],
    )
    start = time.perf_counter()
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(options.model),
        dataset=Dataset.from_dict(rows),
        recipe=recipe,
        pipeline="sequential",
        max_seq_length=options.length,
        num_calibration_samples=len(tokens),
        shuffle_calibration_samples=False,
        output_dir=None,
    )
    return time.perf_counter() - start, timing.perplexity(model, tokens_of(options)["test"])


if __name__ == "__main__":
    main()
