"""How programs are measured, from the cheapest figure to the real one."""
