"""Faults while real commands run, and what is left of their work afterwards."""
