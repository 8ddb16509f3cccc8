"""Self-calibration: texts of the asked shape, reproducible, and no trace in the random state.

Legend: B sequences, L tokens per sequence.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tiny
from autoprune.generate import Sampling, distinct_share, self_calibration, start_token

SAMPLING = Sampling(sequences=5, length=12)

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(model: Any = None, **options: Any) -> Tensor:
    sampling = Sampling(**{"sequences": 5, "length": 12} | options)
    return self_calibration(model or tiny.model(), tiny.tokenizer(), sampling)


def constant_model(token: int = 7) -> Any:
    """Always the same next token."""
    model = tiny.model(tie_word_embeddings=False)
    model.lm_head.weight.data.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(tiny.VOCABULARY), requires_grad=False)
    model.lm_head.bias[token] = 1e4
    return model


def test_the_shape_is_what_was_asked_for():
    tokens_BL = written()
    assert (tokens_BL.shape, tokens_BL.dtype, tokens_BL.device.type) == ((5, 12), torch.int64, "cpu")


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_writes(architecture: str):
    assert written(tiny.model(architecture)).shape == (5, 12)


def test_texts_begin_with_the_start_token_and_never_end():
    tokens_BL = written(sequences=20, length=60)
    assert (tokens_BL[:, 0] == tiny.BOS).all()
    assert (tokens_BL != tiny.EOS).all()


def test_several_end_tokens_are_all_banned():
    model = tiny.model(eos_token_id=[tiny.EOS, 5, 9])
    assert not torch.isin(written(model, sequences=20, length=60), torch.tensor([tiny.EOS, 5, 9])).any()


def test_a_model_that_would_only_end_writes_something_else():
    model = constant_model(tiny.EOS)
    assert (written(model) != tiny.EOS).all()


def test_the_same_seed_writes_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    first = written(seed=3)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "other"))
    torch.manual_seed(99)
    assert torch.equal(written(seed=3), first)


def test_another_seed_writes_another_text():
    assert not torch.equal(written(seed=3), written(seed=4))


def test_another_model_writes_another_text():
    assert not torch.equal(written(tiny.model(seed=0)), written(tiny.model(seed=1)))


def test_texts_differ_from_each_other():
    assert len({tuple(text) for text in written(sequences=20).tolist()}) == 20


def test_batches_make_up_the_number():
    assert written(sequences=7, batch_tokens=3 * 12).shape == (7, 12)


def test_two_tokens_are_the_shortest_text():
    assert written(length=2).shape == (5, 2)


def test_the_global_random_state_is_untouched():
    before = torch.random.get_rng_state()
    written()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_models_own_generation_settings_are_kept_and_not_used():
    model = tiny.model()
    model.generation_config.top_k = 1
    model.generation_config.max_length = 3
    own = model.generation_config
    assert torch.equal(written(model), written(tiny.model(), batch_tokens=9999))  # another key of the cache, same text
    assert model.generation_config is own


def test_the_grad_mode_is_unchanged():
    written()
    assert torch.is_grad_enabled()


def test_a_cached_text_is_not_written_again(monkeypatch: pytest.MonkeyPatch):
    model = tiny.model()
    first = written(model)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("generate was called")

    monkeypatch.setattr(type(model), "generate", refuse)
    assert torch.equal(written(model), first)
    with pytest.raises(AssertionError, match="generate was called"):
        written(model, seed=1)


def test_changed_weights_are_another_key_of_the_cache():
    model = tiny.model()
    first = written(model)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    calls: list[int] = []
    self_calibration(model, tiny.tokenizer(), SAMPLING, calls.append)
    assert calls
    assert first.shape == (5, 12)


def test_the_cache_holds_finished_folders_only(empty_cache: Path):
    written()
    (folder,) = (empty_cache / "self_calibration").iterdir()
    assert [file.name for file in folder.iterdir()] == ["tokens.safetensors"]


def test_an_interrupted_writing_leaves_no_cache(empty_cache: Path):
    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    model = tiny.model()
    own = model.generation_config
    with pytest.raises(KeyboardInterrupt):
        self_calibration(model, tiny.tokenizer(), SAMPLING, interrupt)
    assert not (empty_cache / "self_calibration").exists()
    assert model.generation_config is own


def test_progress_counts_every_written_token():
    counts: list[int] = []
    self_calibration(tiny.model(), tiny.tokenizer(), Sampling(sequences=5, length=12, batch_tokens=24), counts.append)
    assert sum(counts) == 5 * 11


def test_a_model_that_repeats_itself_still_writes_as_much_as_asked():
    tokens_BL = written(constant_model(), sequences=5, length=30)
    assert tokens_BL.shape == (5, 30)
    assert (tokens_BL[:, 1:] == 7).all()


def test_a_model_that_repeats_itself_is_asked_a_bounded_number_of_times():
    counts: list[int] = []
    sampling = Sampling(sequences=5, length=30, max_rounds=3)
    self_calibration(constant_model(), tiny.tokenizer(), sampling, counts.append)
    assert sum(counts) == 3 * 5 * 29


# ---------------------------------------------------------------- the start token


def fake(**config: Any) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(**config)),
        get_input_embeddings=lambda: SimpleNamespace(num_embeddings=10),
    )


@pytest.mark.parametrize(
    ("bos", "eos", "config", "start"),
    [
        (5, 6, {"bos_token_id": 7, "eos_token_id": 8}, 5),
        (0, 6, {"bos_token_id": 7, "eos_token_id": 8}, 0),
        (None, 6, {"bos_token_id": 7, "eos_token_id": 8}, 7),
        (None, 6, {"bos_token_id": None, "eos_token_id": 8}, 6),
        (None, None, {"bos_token_id": None, "eos_token_id": 8}, 8),
        (None, None, {"bos_token_id": None, "eos_token_id": [9, 8]}, 9),
        (None, None, {}, 0),
        (50256, 6, {}, 6),  # beyond the vocabulary
    ],
)
def test_a_text_starts_from(bos: int | None, eos: int | None, config: dict[str, Any], start: int):
    assert start_token(SimpleNamespace(bos_token_id=bos, eos_token_id=eos), fake(**config)) == start


# ---------------------------------------------------------------- how repetitive a text is


@given(st.lists(st.lists(st.integers(0, 2), min_size=9, max_size=9), min_size=1, max_size=5))
def test_the_share_of_distinct_4_grams(texts: list[list[int]]):
    expected = [len({tuple(text[i : i + 4]) for i in range(6)}) / 6 for text in texts]
    assert distinct_share(torch.tensor(texts)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("length", [1, 4])
def test_very_short_texts_are_distinct(length: int):
    assert distinct_share(torch.zeros(3, length, dtype=torch.int64)).tolist() == [1, 1, 1]
