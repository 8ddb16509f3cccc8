"""What may become of an input: accepted, or refused as autoprune refuses."""

from __future__ import annotations

from autoprune.errors import AutopruneError

ACCEPTED, REFUSED = "accepted", "refused"


def refused(error: AutopruneError) -> str:
    """A refusal is one line that is harmless to print and not too long, with a remedy."""
    assert str(error).isprintable(), repr(str(error))
    assert len(str(error)) < 2_000
    assert error.remedy
    return REFUSED
