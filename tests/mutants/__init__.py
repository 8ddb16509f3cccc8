"""Mutation testing of what checks a program: `make mutants`. Is there a small mistake in the checker by which it would
let an unsafe program through, without any ordinary test that fails?

edits.py     the small mistakes, made in a syntax tree
programs.py  programs by chance, most of them wrong
verdicts.py  what each gate of the language says of a text
loading.py   a mutant in the place of its module
judge.py     one mutant: which of its verdicts are not the real ones
workers.py   processes side by side, one for each mutant
__main__.py  all mutants, and the table
"""
