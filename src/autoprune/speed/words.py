"""Figures → sentences. Nothing is measured here, and no sentence stands that the figures do not bear out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from autoprune.speed.payoff import SAME, Measured, Model, Pair, Payoff
from autoprune.speed.runtimes import PLAIN, RUNTIMES, Case, advice

_WIDE = 1.2
"""From one bound of an interval to the other."""


def in_words(payoff: Payoff) -> Payoff:
    """The same with what its figures mean."""
    return replace(payoff, words=[*_zeros(payoff), *_disk(payoff), *_memory(payoff), *_speed(payoff), *_gain(payoff)])


def _zeros(payoff: Payoff) -> Iterator[str]:
    dense, pruned = payoff.dense.facts.zeros, payoff.pruned.facts.zeros
    pattern = (
        "none has the 2:4 pattern"
        if not pruned.two_of_four
        else "all have the 2:4 pattern"
        if pruned.two_of_four == pruned.matrices
        else f"{pruned.two_of_four} have the 2:4 pattern"
    )
    yield (
        f"{pruned.share:.1%} of the {pruned.weights:,} prunable weights of {payoff.pruned.name} are zero "
        f"({dense.share:.1%} of the dense model's); of its {pruned.matrices} matrices {pattern}."
    )
    if pruned.share <= dense.share:
        yield "It has no more zeros than the dense model: nothing here says what pruning gives."
    if payoff.dense.facts.dtype != payoff.pruned.facts.dtype:
        yield (
            f"The dense model computes in {payoff.dense.facts.dtype} and the pruned one in "
            f"{payoff.pruned.facts.dtype}: give --dtype to compare the same computation."
        )
    if payoff.dense.facts.parameters != payoff.pruned.facts.parameters:
        yield (
            f"The pruned model has {payoff.pruned.facts.parameters:,} parameters and the dense one "
            f"{payoff.dense.facts.parameters:,}: figures below also say what that does."
        )


def _disk(payoff: Payoff) -> Iterator[str]:
    dense, pruned = payoff.dense.files, payoff.pruned.files
    if dense.format != pruned.format or dense.bytes_per_weight != pruned.bytes_per_weight:
        yield (
            f"The dense files ({_stored(payoff.dense)}) and the pruned ones ({_stored(payoff.pruned)}) store numbers "
            "differently: their sizes do not say what pruning gives."
        )
        return
    plain, compressed = pruned.bytes / dense.bytes, pruned.compressed / dense.compressed
    if abs(plain - 1) <= SAME:
        yield "On disk the files are as large as before: a zero takes as many bytes as any number."
    else:
        yield f"On disk the pruned files take {plain:.2f} of what the dense ones take."
    if abs(compressed - 1) <= SAME:
        yield "Compressed by zstd they are as large as the compressed dense ones too."
    else:
        yield (
            f"Compressed by zstd they take {compressed:.2f} of what the dense ones take compressed, for archives and "
            "downloads; they are unpacked before a model is opened."
        )
    if bitmask := _bitmask_bytes(payoff.pruned):
        yield (
            f"By arithmetic, one bit a prunable weight and the values that are not zero would take "
            f"{bitmask / 1e6:,.1f} MB without a compressor; autoprune writes no such format."
        )


def _stored(model: Model) -> str:
    width = model.files.bytes_per_weight
    return model.files.format + (f", {8 * width} bits a weight" if width else "")


def _bitmask_bytes(model: Model) -> float:
    """What the files would take with the zeros as bits; 0 where that is not known or no less."""
    zeros, width = model.facts.zeros, model.files.bytes_per_weight
    saved = zeros.zeros * width - zeros.weights / 8 if width else 0
    return model.files.bytes - saved if saved > 0 else 0


def _memory(payoff: Payoff) -> Iterator[str]:
    dense, pruned = payoff.dense.facts.parameter_bytes, payoff.pruned.facts.parameter_bytes
    if abs(pruned / dense - 1) <= SAME:
        yield "Opened, the parameters of both take the same memory: zeros are held like any number."
    else:
        yield f"Opened, the parameters of the pruned model take {pruned / dense:.2f} of the dense one's memory."


def _speed(payoff: Payoff) -> Iterator[str]:
    for measured in payoff.measured:
        for phase, pair in (("prefill", measured.prefill), ("decode", measured.decode)):
            yield f"{measured.runtime}, {phase}: {_verdict(pair)}."
    pairs = [pair for measured in payoff.measured for pair in (measured.prefill, measured.decode)]
    if any(pair.verdict == "noise" and pair.high > _WIDE * pair.low for pair in pairs):
        yield "The machine is noisy: more --rounds, or doing nothing else on it, would tell smaller differences."


def _verdict(pair: Pair) -> str:
    interval = f"{pair.ratio:.2f} times the dense speed, {pair.low:.2f} to {pair.high:.2f}"
    return {
        "more": f"faster ({interval})",
        "less": f"slower ({interval})",
        "same": f"the same speed to within {SAME:.0%}",
        "noise": f"no difference beyond noise ({interval})",
        "unknown": f"too few rounds to tell a difference from noise ({pair.ratio:.2f} times the dense speed)",
    }[pair.verdict]


def _gain(payoff: Payoff) -> Iterator[str]:
    pruned = payoff.pruned.facts
    if pruned.zeros.share <= payoff.dense.facts.zeros.share:
        return
    if any(_faster(runs) for runs in payoff.measured if runs.runtime == PLAIN):
        yield (
            f"The zeros are not why it is faster in {PLAIN}, which multiplies by them as by any number: look at what "
            "else differs, or measure again on a machine that does nothing else."
        )
    else:
        yield f"{PLAIN} multiplies by zeros as by any number, so they buy no speed in it."
    if gained := [runs.runtime for runs in payoff.measured if RUNTIMES[runs.runtime].uses_zeros and _faster(runs)]:
        yield f"The zeros buy speed in {', '.join(gained)}."
        return
    case = Case(
        share=pruned.zeros.share,
        two_of_four=pruned.zeros.two_of_four == pruned.zeros.matrices,
        device=pruned.device,
        cpu_flags=frozenset(payoff.cpu_flags),
    )
    yield from advice(case)


def _faster(measured: Measured) -> bool:
    return "more" in (measured.prefill.verdict, measured.decode.verdict)
