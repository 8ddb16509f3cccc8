"""Where programs are measured: in this process, in local ones, on many machines."""
