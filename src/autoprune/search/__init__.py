"""A language model designs the pruning algorithm: archive, graph, prompts, proposers and the loop over them.

It knows neither models nor pruning: it is handed `score(program) -> Outcome` and `propose(prompt) -> [Proposal]`.
"""
