"""Fuzzing of all that reads what strangers wrote: one file a target, each with

`seeds()`: honest and hostile inputs, as bytes, to begin with;
`mutated(data, rng)`: another input, made from one by a few changes that keep most of its structure;
`check(data)`: reads an input as autoprune does, asserts what must hold whatever it is, and says what became of it.

`tests/test_fuzz.py` runs a little of each; `make fuzz` a million inputs, guided by coverage (`guided`, `campaign`).
"""
