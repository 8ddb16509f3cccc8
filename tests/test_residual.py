"""Which outputs make up what a block adds to the residual stream."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autoprune.residual import factors, some_tokens, writers

T, R = 40, 24


def parts(count: int, *, seed: int = 0, scale: float = 0.3) -> tuple[Tensor, list[Tensor]]:
    """A stream with a channel a thousand times the others, and outputs."""
    generator = torch.Generator().manual_seed(seed)
    entering_TR = torch.randn(T, R, generator=generator)
    entering_TR[:, 3] *= 1_000
    return entering_TR, [scale * torch.randn(T, R, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("wanted", [[1.0], [1.0, 0.0, 1.0], [0.0, 0.22, 0.22], [-1.0, 0.0], [2.0, 1.0, 0.5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_are_found_within_rounding(wanted: list[float], dtype: torch.dtype):
    entering_TR, outputs = parts(len(wanted))
    entering_TR, outputs = entering_TR.to(dtype), [output_TR.to(dtype) for output_TR in outputs]
    leaving_TR = entering_TR
    for factor, output_TR in zip(wanted, outputs, strict=True):
        leaving_TR = leaving_TR + factor * output_TR  # rounded each time, as in a model
    found = factors(entering_TR, outputs, leaving_TR)
    assert found == pytest.approx(wanted, abs=1e-4 if dtype == torch.float32 else 0.01)
    assert [factor for factor, want in zip(found, wanted, strict=True) if want in (0, 1)] == [
        want for want in wanted if want in (0, 1)
    ]


def test_what_goes_through_a_norm_is_not_added():
    entering_TR, outputs = parts(2)
    normed_TR = outputs[1] / outputs[1].square().mean(1, keepdim=True).sqrt()
    assert factors(entering_TR, outputs, entering_TR + outputs[0] + normed_TR) == [0, 0]


def test_part_of_what_is_added_is_not_enough():
    entering_TR, outputs = parts(3)
    assert factors(entering_TR, outputs[:2], entering_TR + sum(outputs)) == [0, 0]


@pytest.mark.parametrize("outputs", [0, 1])
def test_a_block_that_adds_nothing(outputs: int):
    entering_TR, made = parts(outputs)
    assert factors(entering_TR, made, entering_TR) == [0.0] * outputs


def test_a_stream_of_another_width_is_another_stream():
    entering_TR, outputs = parts(1)
    assert factors(entering_TR[:, :8], outputs, entering_TR + outputs[0]) == [0]


def test_no_numbers_give_no_factors():
    entering_TR, outputs = parts(1)
    assert factors(entering_TR, outputs, torch.full_like(entering_TR, torch.nan)) == [0]


@pytest.mark.parametrize("tokens", [1, 7, 64, 1000])
def test_few_tokens_are_looked_at_and_copied(tokens: int):
    output = torch.arange(tokens * 3.0).view(1, tokens, 3)
    found_TR = some_tokens(output)
    assert found_TR.shape[1] == 3
    assert min(tokens, 64) <= len(found_TR) <= 128
    output.zero_()
    assert tokens == 1 or found_TR.any()


def test_layers_alone_explain_a_sum_before_other_modules_are_asked():
    entering_TR, (first_TR, second_TR) = parts(2)
    leaving_TR = entering_TR + first_TR + second_TR
    outputs = [("first", first_TR), (None, entering_TR + first_TR), ("second", second_TR), (None, leaving_TR)]
    assert writers(entering_TR, outputs, leaving_TR) == {"first": 1, "second": 1}


def test_with_a_module_that_is_no_layer_those_before_it_are_known():
    entering_TR, (first_TR, experts_TR, last_TR) = parts(3)
    leaving_TR = entering_TR + first_TR + experts_TR + last_TR
    outputs = [("first", first_TR), (None, first_TR), (None, experts_TR), ("last", last_TR)]
    assert writers(entering_TR, outputs, leaving_TR) == {"first": 1}


def test_outputs_of_other_widths_and_nothing_at_all():
    entering_TR, (first_TR,) = parts(1)
    assert writers(entering_TR, [("narrow", first_TR[:, :5]), ("first", first_TR)], entering_TR + first_TR) == {
        "first": 1
    }
    assert writers(entering_TR, [], entering_TR + first_TR) == {}


def test_outputs_that_cannot_be_told_from_each_other_have_no_factors():
    entering_TR, (first_TR, experts_TR) = parts(2)
    leaving_TR = entering_TR + 0.5 * first_TR + experts_TR
    assert factors(entering_TR, [first_TR, first_TR * 0.5, experts_TR], leaving_TR) == [0, 0, 0]
    assert factors(entering_TR, [first_TR, torch.zeros_like(first_TR), experts_TR], leaving_TR) == pytest.approx(
        [0.5, 0, 1]
    )


def test_chance_is_no_factor():
    """In bfloat16 a small output that has nothing to do with the sum."""
    for seed in range(20):
        entering_TR, (first_TR, other_TR) = parts(2, seed=seed)
        entering_TR, first_TR, other_TR = (some.bfloat16() for some in (entering_TR, first_TR, other_TR * 3e-4))
        assert factors(entering_TR, [first_TR, other_TR], entering_TR + first_TR)[1] == 0
