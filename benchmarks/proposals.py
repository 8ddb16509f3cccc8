"""How many proposals of a local model parse and pass the check, how different they are, and how long one takes.

    python benchmarks/proposals.py MODEL --run campaign --count 300

Prompts are made from the archive of a search, as its next steps would be; nothing is measured, nothing written there.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

import torch

from autoprune.discover import open_run
from autoprune.errors import AutopruneError
from autoprune.language import read_program
from autoprune.language.space import Space
from autoprune.models import open_model
from autoprune.scoring.scorer import RUNGS
from autoprune.search.graph import Graph
from autoprune.search.prompt import Prompter
from autoprune.search.proposers.local import Local
from autoprune.search.protocol import OPERATORS, Request
from autoprune.search.reply import parse_reply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--run", required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--freeze", default="")
    parser.add_argument("--prompt-tokens", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    space = Space.of(options.freeze)
    with open_run(options.run) as archive:
        graph = Graph(archive, RUNGS)
    prompter = Prompter(about="The model is small.", space=space, tokens=options.prompt_tokens)
    requests = []
    for number in range(options.count):
        rng = random.Random(number)
        operator = rng.choice(list(OPERATORS))
        parents = tuple(graph.choose(rng, {}) for _ in range(2 if operator in ("combine", "transfer") else 1))
        prompt = prompter.prompt(graph, operator, parents)
        requests.append(Request(step=number, round=0, operator=operator, parents=(), prompt=prompt, seed=number))
    opened = open_model(options.model)
    proposer = Local(opened.model, opened.tokenizer, space, name=options.model)
    start, outcomes, digests = time.monotonic(), Counter[str](), set[str]()
    for _, answer in proposer.propose(requests):
        try:
            program = read_program(parse_reply(answer.text).program)
            outcome = space.refusal(program) or "valid"
            digests.add(program.digest)
        except AutopruneError as error:
            outcome = str(error)
        outcomes[outcome] += 1
        if outcomes.total() % 20 == 0:
            seconds = time.monotonic() - start
            print(f"{outcomes['valid']} of {outcomes.total()} so far, {seconds:.0f} s", file=sys.stderr)
        if outcome != "valid":
            print(f"{outcome}\n{answer.text}\n", file=sys.stderr)
    seconds = (time.monotonic() - start) / options.count
    known = len(digests & set(graph.nodes))
    print(f"{outcomes['valid']} of {options.count} valid, {len(digests)} different programs, {known} of them known")
    print(f"{seconds:.2f} s a proposal")
    sys.exit(outcomes["valid"] != options.count)


if __name__ == "__main__":
    main()
