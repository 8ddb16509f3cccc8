"""What the scorer's cheap rungs say of the real prune: rank correlations over diverse programs, all measured by all.

    python benchmarks/rungs.py MODEL --text articles.txt --count 60 --out rungs.jsonl

Programs: those of the library, random ones, and the library's changed by one to four steps of genetic programming, in
turn. None does the same as another (masks of the probe). Goes on where the file ends.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from autoprune import algorithms
from autoprune.data import token_sequences
from autoprune.language import read_program
from autoprune.language.sample import mutated, random_program
from autoprune.language.space import Space
from autoprune.models import open_model
from autoprune.progress import Silent
from autoprune.scoring.scorer import FULL, PROBE, QUICK, RUNGS, ModelRecipe, ModelScorer
from autoprune.scoring.signature import alike
from autoprune.search.graph import spearman
from autoprune.search.protocol import Task
from autoprune.sparsity import Target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--sparsity", type=float, default=0.6)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--freeze", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    opened = open_model(options.model)
    judged_on = {QUICK: 4, FULL: 8}
    count = 2 * options.sequences + sum(judged_on.values())
    tokens = token_sequences(f"file:{options.text}", opened.tokenizer, sequences=count, length=options.length).numpy()
    recipe = ModelRecipe(
        model=options.model,
        dtype="auto",
        device="auto",
        target=Target.of(options.sparsity),
        propagation="one_pass",
        seed=options.seed,
        calibrated_on={QUICK: [tokens[: options.sequences]], FULL: [tokens[options.sequences : 2 * options.sequences]]},
        judged_on={QUICK: tokens[-12:-8], FULL: tokens[-8:]},
        timeout_s={},
    )
    scorer = ModelScorer(recipe, opened, Silent())
    lines = options.out.read_text("utf-8").splitlines() if options.out.exists() else []
    rows = [json.loads(line) for line in lines]
    known = {row["program"]: row for row in rows}
    signatures: list[str] = []
    measured = []
    for text in programs(Space.of(options.freeze), options.seed):
        if len(measured) == options.count:
            break
        probe = scorer.score(Task(PROBE, text))
        if probe.damage is None or any(alike(probe.signature, other) for other in signatures):
            continue
        signatures.append(probe.signature)
        if text not in known:
            found = {rung: scorer.score(Task(rung, text)) for rung in RUNGS[1:]} | {PROBE: probe}
            row = {"program": text, "model": options.model, "target": str(recipe.target)}
            row |= {rung: outcome.damage for rung, outcome in found.items()}
            row["seconds"] = {rung: round(outcome.seconds, 2) for rung, outcome in found.items()}
            known[text] = row
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if all(known[text][rung] is not None for rung in RUNGS):
            measured.append(known[text])
            print(len(measured), *(f"{rung} {known[text][rung]:.3f}" for rung in RUNGS), file=sys.stderr)
    for low, high in itertools.combinations(RUNGS, 2):
        both = [[row[rung] for row in measured] for rung in (low, high)]
        print(f"{low} → {high}: Spearman {spearman(*both):.3f} over {len(measured)} programs")


def programs(space: Space, seed: int) -> Iterator[str]:
    """Canonical texts: in turn one of the library, a random one, one changed from the library."""
    rng = random.Random(seed)
    library = [algorithms.load(name) for name in algorithms.names()]
    library = [program for program in library if program.score and not space.refusal(program)]
    for index in itertools.count():
        if index < len(library):
            yield library[index].canonical
        yield read_program(random_program(rng, space)).canonical
        changed = rng.choice(library)
        for _ in range(rng.randint(1, 4)):
            changed = read_program(mutated(changed, rng, space).text)
        yield changed.canonical


if __name__ == "__main__":
    main()
