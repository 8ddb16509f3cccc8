"""What pruning buys on this machine: bytes on disk, memory and tokens/s of a dense model and of a pruned one."""

from autoprune.speed.payoff import Facts, Files, Measured, Model, Pair, Payoff, Zeros
from autoprune.speed.turns import compare

__all__ = ["Facts", "Files", "Measured", "Model", "Pair", "Payoff", "Zeros", "compare"]
