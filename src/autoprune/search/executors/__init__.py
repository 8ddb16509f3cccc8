"""Where programs are measured: in this process, in local ones, on many machines."""

from autoprune.search.executors.in_process import InProcess
from autoprune.search.executors.on_ray import OnRay
from autoprune.search.executors.processes import Processes

__all__ = ["InProcess", "OnRay", "Processes"]
