"""Wall time, peak memory and perplexity of prunes here and of llmcompressor's, in turn, on the same tokens.

    python benchmarks/against_llmcompressor.py MODEL --text FILE --test FILE --peer PATH_TO_PYTHON [--rounds 3]
        [--cases wanda:0.5,wanda:2:4,sparsegpt:0.5,sparsegpt:2:4] [--propagation block,one_pass] [--peer-batch 8]
        [--sequences 64] [--length 512] [--threads 2] [--out results.jsonl]

`--peer` is the interpreter of an environment that has llmcompressor. Every prune is a process of its own; what is timed
is the prune alone, without imports, loading and saving, and peak memory is the largest resident set of the process
until then. Each round has a draw of calibration text of its own. `block` walks as llmcompressor's sequential pipeline
does, a second forward after each block to compute the next one's inputs through pruned weights; `one_pass` is the
default here. A case such as `best:0.5` has no equal there and stands beside SparseGPT. The peer gets as many sequences
at a time as `--peer-batch` says; its own default is 1.

    python benchmarks/against_llmcompressor.py --table results.jsonl
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

PEER = "llmcompressor"


def main() -> None:
    if "--table" in sys.argv[1:]:
        print(table([json.loads(line) for line in Path(sys.argv[-1]).read_text("utf-8").splitlines()]))
        return
    parser = timing.parser(__doc__, rounds=3)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--test", required=True, help="text the perplexity is of")
    parser.add_argument("--test-sequences", type=int, default=16)
    parser.add_argument("--cases", default="wanda:0.5,wanda:2:4,sparsegpt:0.5,sparsegpt:2:4")
    parser.add_argument("--propagation", default="block,one_pass")
    parser.add_argument("--peer-batch", type=int, default=8, help="sequences at a time")
    parser.add_argument("--out", type=Path, default=Path("against-llmcompressor.jsonl"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--tokens", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("model", "text", "test"):  # each prune runs in a folder of its own
        if Path(getattr(options, name)).exists():
            setattr(options, name, str(Path(getattr(options, name)).absolute()))
    if options.one:
        case, who = options.one.split("=")
        print(json.dumps(peer(options, case) if who == PEER else own(options, case, who)))
        return
    print(table(measured(options)))


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    test = timing.test_tokens(options).tolist()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "tokens.json"
        given = [f"--{name.replace('_', '-')}={getattr(options, name)}"
                 for name in ("text", "test", "peer", "sequences", "length", "threads", "peer_batch")]  # fmt: skip
        for case in options.cases.split(","):
            for round_ in range(options.rounds):
                tokens = timing.opened_with_tokens(options, seed=round_)[1].tolist()
                written.write_text(json.dumps({"calibration": tokens, "test": test}), "utf-8")
                for who in (*options.propagation.split(","), PEER):
                    python = options.peer if who == PEER else sys.executable
                    command = [python, str(Path(__file__).resolve()), options.model, *given]
                    command += ["--one", f"{case}={who}", "--tokens", str(written), "--seed", str(round_)]
                    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
                    if result.returncode:
                        sys.exit(f"{case}, {who} failed:\n{result.stderr[-2000:]}")
                    found = json.loads(result.stdout.splitlines()[-1])
                    amounts = {name: getattr(options, name) for name in ("sequences", "length", "threads")}
                    rows.append(
                        {"model": Path(options.model).name, "case": case, "who": who, "round": round_} | amounts
                    )
                    rows[-1] |= found
                    print(f"{case} {who}: {found}", file=sys.stderr, flush=True)
                    with options.out.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(rows[-1]) + "\n")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Medians by case, of perplexities means ± sd over rounds; ratios of llmcompressor's time to ours in the same
    round, with their range."""
    lines = [
        "| model | case | | seconds | llmcompressor's / ours | peak memory, GB | perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["case"]), {}).setdefault(row["who"], []).append(row)
    for (model, case), by_who in groups.items():
        peers = {row["round"]: row["seconds"] for row in by_who.get(PEER, [])}
        for who, of_it in by_who.items():
            seconds = statistics.median(row["seconds"] for row in of_it)
            peak = statistics.median(row["peak_bytes"] for row in of_it) / 1e9
            found = sorted(peers[row["round"]] / row["seconds"] for row in of_it if row["round"] in peers)
            ratio = f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})" if who != PEER else ""
            found = [row["perplexity"] for row in of_it]
            spread = f" ± {statistics.stdev(found):.2g}" if len(found) > 1 else ""
            perplexity = f"{statistics.mean(found):.2f}{spread}"
            lines.append(f"| {model} | {case} | {who} | {seconds:.1f} | {ratio} | {peak:.2f} | {perplexity} |")
    return "\n".join(lines)


def own(options: argparse.Namespace, case: str, propagation: str) -> dict[str, float]:
    import torch

    import autoprune
    from autoprune.models import open_model

    torch.set_num_threads(options.threads)
    algorithm, _, target = case.partition(":")
    opened = open_model(options.model, device="cpu")
    report = autoprune.prune(
        opened.model,
        tokenizer=opened.tokenizer,
        algorithm=algorithm,
        pattern=target if ":" in target else None,
        sparsity=None if ":" in target else float(target),
        propagation=propagation,
        calibration=f"file:{options.text}",
        sequences=options.sequences,
        length=options.length,
        seed=options.seed,
    )
    # Tokens are ready for both.
    seconds = sum(taken for name, taken in report.durations_s.items() if name in ("allocation", "gradients", "prune"))
    return _found(options, seconds, opened.model)


def peer(options: argparse.Namespace, case: str) -> dict[str, float]:
    """The modifier's defaults; the sequential pipeline, which prunes block after block."""
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers.pruning import (  # pyright: ignore[reportMissingImports]
        SparseGPTModifier,
        WandaPruningModifier,
    )
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(options.threads)
    algorithm, _, target = case.partition(":")
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto")
    tokens = tokens_of(options)["calibration"]
    rows: dict[str, Any] = {"input_ids": tokens, "attention_mask": [[1] * len(row) for row in tokens]}
    pattern = target if ":" in target else "0:0"
    kept, group = map(int, pattern.split(":"))
    recipe = (WandaPruningModifier if algorithm == "wanda" else SparseGPTModifier)(
        sparsity=1 - kept / group if group else float(target),
        mask_structure=pattern,
        targets=["Linear"],
        ignore=["re:.*lm_head"],  # a plain name is looked for within blocks, and the head is pruned
    )
    start = time.perf_counter()
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(options.model),
        dataset=Dataset.from_dict(rows),
        recipe=recipe,
        pipeline="sequential",
        batch_size=options.peer_batch,
        max_seq_length=options.length,
        num_calibration_samples=len(tokens),
        shuffle_calibration_samples=False,
        output_dir=None,
    )
    return _found(options, time.perf_counter() - start, model)


def _found(options: argparse.Namespace, seconds: float, model: Any) -> dict[str, float]:
    peak = timing.peak_resident_bytes()
    perplexity = timing.perplexity(model, tokens_of(options)["test"])
    return {"seconds": seconds, "peak_bytes": peak, "perplexity": perplexity}


def tokens_of(options: argparse.Namespace) -> dict[str, list[list[int]]]:
    return json.loads(Path(options.tokens).read_text("utf-8"))


if __name__ == "__main__":
    main()
