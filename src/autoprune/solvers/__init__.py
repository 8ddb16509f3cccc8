"""Better masks, better kept weights and better orders of columns: pure functions on tensors, many rows at once, on any
device, in float32; most from the Gram matrix of a layer's inputs.

Legend: R output rows, C input columns. With w a row of the dense weight, v of the pruned one and G = X^T X / T, the
mean squared error of the layer's output is (w - v) G (w - v)^T. Rows are independent of each other.
"""

from autoprune.conditioning import UnsolvableError, output_error
from autoprune.solvers.admm import admm
from autoprune.solvers.dsnot import dsnot
from autoprune.solvers.least_squares import least_squares
from autoprune.solvers.permute import permute
from autoprune.solvers.sparsegpt import sparsegpt
from autoprune.solvers.swaps import swaps
from autoprune.solvers.towards_dense import towards_dense

__all__ = [
    "UnsolvableError",
    "admm",
    "dsnot",
    "least_squares",
    "output_error",
    "permute",
    "sparsegpt",
    "swaps",
    "towards_dense",
]
