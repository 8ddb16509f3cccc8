"""Text to token sequences: the same ids as the whole text cut up, however little of it was read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from autoprune import data
from autoprune.data import bos_rule, token_sequences
from autoprune.errors import AutopruneError

TOKENIZER = tiny.tokenizer("has_bos")


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


def cut(ids: list[int], count: int, length: int) -> torch.Tensor:
    return torch.tensor(ids[: count * length]).view(count, length)


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes, name: str = "text.txt") -> str:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return f"file:{tmp_path / name}"

    return write


def jsonl(*documents: str) -> str:
    return "".join(json.dumps({"text": document}) + "\n" for document in documents)


# ---------------------------------------------------------------- files


def test_seeds_draw_other_sequences_of_the_same_text(write: Write):
    source = write(tiny.text(4000))
    every = {tuple(row) for row in token_sequences(source, TOKENIZER, sequences=None, length=16).tolist()}
    first = token_sequences(source, TOKENIZER, sequences=5, length=16)
    drawn = [token_sequences(source, TOKENIZER, sequences=5, length=16, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], first)
    for tokens_BL in drawn:
        assert {tuple(row) for row in tokens_BL.tolist()} <= every
        assert len({tuple(row) for row in tokens_BL.tolist()}) == 5


def test_a_short_text_is_drawn_from_whole(write: Write):
    source = write(tiny.text(200))
    every = token_sequences(source, TOKENIZER, sequences=None, length=16)
    drawn = token_sequences(source, TOKENIZER, sequences=len(every), length=16, seed=3)
    assert sorted(drawn.tolist()) == sorted(every.tolist())


def test_every_drawn_sequence_has_its_bos(write: Write):
    drawn = token_sequences(write(tiny.text(2000)), TOKENIZER, sequences=5, length=16, bos="every", seed=1)
    assert (drawn[:, 0] == tiny.BOS).all()


def test_a_text_file_is_cut_into_consecutive_sequences(write: Write):
    text = tiny.text(500)
    tokens_BL = token_sequences(write(text), TOKENIZER, sequences=5, length=16)
    assert tokens_BL.dtype == torch.int64
    assert torch.equal(tokens_BL, cut(ids_of(text), 5, 16))


def test_all_sequences_are_taken_where_no_number_is_given(write: Write):
    text = tiny.text(500)
    ids = ids_of(text)
    tokens_BL = token_sequences(write(text), TOKENIZER, sequences=None, length=16)
    assert torch.equal(tokens_BL, cut(ids, len(ids) // 16, 16))


@pytest.mark.parametrize("name", ["text.jsonl", "text.json"])
def test_documents_are_joined_by_a_blank_line(write: Write, name: str):
    tokens_BL = token_sequences(write(jsonl("one größe", "two\n", "three"), name), TOKENIZER, sequences=None, length=2)
    ids = ids_of("one größe\n\ntwo\n\n\nthree")
    assert torch.equal(tokens_BL, cut(ids, len(ids) // 2, 2))


def test_blank_lines_between_records_are_skipped(write: Write):
    source = write("\n" + jsonl("one two three") + "  \n" + jsonl("four five six"), "text.jsonl")
    ids = ids_of("one two three\n\nfour five six")
    assert token_sequences(source, TOKENIZER, sequences=1, length=len(ids))[0].tolist() == ids


def test_other_fields_of_a_record_are_ignored(write: Write):
    source = write('{"id": 1, "text": "one two three", "meta": {"text": 2}}\n', "text.jsonl")
    ids = ids_of("one two three")
    assert token_sequences(source, TOKENIZER, sequences=1, length=len(ids))[0].tolist() == ids


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_of_a_text_are_kept(write: Write, line_end: str):
    text = f"one{line_end}two{line_end}{line_end}three"
    ids = ids_of(text)
    assert token_sequences(write(text), TOKENIZER, sequences=1, length=len(ids))[0].tolist() == ids


def test_characters_split_over_read_blocks_are_whole(write: Write):
    text = "x" + "ä零" * (1 << 17)  # block edges fall inside characters
    tokens_BL = token_sequences(write(text), TOKENIZER, sequences=None, length=64)
    ids = ids_of(text)
    assert torch.equal(tokens_BL, cut(ids, len(ids) // 64, 64))


@given(st.text(min_size=1), st.integers(1, 4), st.integers(2, 12))
def test_any_text_gives_the_first_tokens_of_the_whole(piece: str, sequences: int, length: int):
    text = piece * (1 + 200 // len(piece))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_pieces", lambda source: iter([text]))
        tokens_BL = token_sequences("file:x", TOKENIZER, sequences=sequences, length=length)
    assert torch.equal(tokens_BL, cut(ids_of(text), sequences, length))


words = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=30)


@settings(max_examples=30)
@given(words, st.sampled_from([" ", "\n\n", "", "\t\t  "]), st.integers(1, 3), st.integers(2, 40))
def test_of_a_large_text_only_a_prefix_is_read(words: list[str], joiner: str, sequences: int, length: int):
    document = joiner.join(words) + joiner
    document *= 1 + 2000 // len(document)
    read = []

    def pieces(source: str) -> Any:
        for number in range(20):
            read.append(number)
            yield document

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_pieces", pieces)
        tokens_BL = token_sequences("file:x", TOKENIZER, sequences=sequences, length=length)
    assert torch.equal(tokens_BL, cut(ids_of(document * 20), sequences, length))
    assert len(read) < 10


def test_more_is_read_where_tokens_are_long(write: Write):
    text = "weight " * 20_000  # few tokens for many characters
    count = len(ids_of(text)) // 32 - 3
    assert torch.equal(
        token_sequences(write(text), TOKENIZER, sequences=count, length=32), cut(ids_of(text), count, 32)
    )


@pytest.mark.parametrize("length", range(2036, 2056))
def test_tokens_at_the_cut_are_not_trusted(write: Write, length: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "_CHARACTERS_PER_TOKEN", 6)  # so that the first guess is just about too little
    text = "weight größe " * 2000
    assert torch.equal(
        token_sequences(write(text), TOKENIZER, sequences=1, length=length), cut(ids_of(text), 1, length)
    )


# ---------------------------------------------------------------- the start token


@pytest.mark.parametrize(
    ("kind", "model_type", "rule"),
    [
        ("adds_bos", "llama", "start"),
        ("has_bos", "qwen2", "none"),
        ("no_bos", "gpt_neox", "none"),
        ("adds_bos", "gemma", "every"),
        ("adds_bos", "gemma2", "every"),
        ("has_bos", "gemma3_text", "every"),
        ("adds_bos", "recurrent_gemma", "every"),
        ("no_bos", "gemma", "none"),
    ],
)
def test_the_automatic_rule(kind: str, model_type: str, rule: str):
    assert bos_rule("auto", tiny.tokenizer(kind), model_type) == rule


@pytest.mark.parametrize("rule", ["none", "start", "every"])
def test_a_named_rule_is_kept(rule: str):
    assert bos_rule(rule, tiny.tokenizer("has_bos"), "gemma") == rule


@pytest.mark.parametrize("rule", ["start", "every"])
def test_a_rule_that_needs_a_start_token_is_refused_without_one(rule: str):
    with pytest.raises(AutopruneError, match="no bos token") as caught:
        bos_rule(rule, tiny.tokenizer("no_bos"), "llama")
    assert caught.value.remedy


def test_an_unknown_rule_is_refused():
    with pytest.raises(AutopruneError, match="unknown bos rule 'x'"):
        bos_rule("x", TOKENIZER, "llama")


@pytest.mark.parametrize("kind", ["adds_bos", "has_bos"])
@pytest.mark.parametrize("sequences", [3, None])
def test_start_puts_one_before_the_text(write: Write, kind: str, sequences: int | None):
    text = tiny.text(200)
    tokens_BL = token_sequences(write(text), tiny.tokenizer(kind), sequences=sequences, length=16, bos="start")
    ids = [tiny.BOS, *ids_of(text)]
    assert torch.equal(tokens_BL, cut(ids, sequences or len(ids) // 16, 16))


@pytest.mark.parametrize("kind", ["adds_bos", "has_bos"])
@pytest.mark.parametrize("sequences", [3, None])
def test_every_puts_one_before_each_sequence(write: Write, kind: str, sequences: int | None):
    text = tiny.text(200)
    tokens_BL = token_sequences(write(text), tiny.tokenizer(kind), sequences=sequences, length=16, bos="every")
    ids = ids_of(text)
    assert (tokens_BL[:, 0] == tiny.BOS).all()
    assert torch.equal(tokens_BL[:, 1:], cut(ids, sequences or len(ids) // 15, 15))


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
def test_none_adds_nothing(write: Write, kind: str):
    text = tiny.text(200)
    assert torch.equal(
        token_sequences(write(text), tiny.tokenizer(kind), sequences=3, length=16), cut(ids_of(text), 3, 16)
    )


# ---------------------------------------------------------------- amounts


@pytest.mark.parametrize("bos", ["none", "start", "every"])
def test_exactly_enough_text_is_enough_and_one_token_less_is_not(write: Write, bos: str):
    text = tiny.text(200)
    count, length = 4, 1 + len(ids_of(text)) // 4
    needed = {"none": count * length, "start": count * length - 1, "every": count * (length - 1)}[bos]
    exact = TOKENIZER.decode(ids_of(tiny.text(2000))[:needed])
    assert len(ids_of(exact)) == needed
    assert token_sequences(write(exact), TOKENIZER, sequences=count, length=length, bos=bos).shape == (count, length)
    less = TOKENIZER.decode(ids_of(exact)[:-1])
    with pytest.raises(AutopruneError, match="tokens; 4 sequences"):
        token_sequences(write(less), TOKENIZER, sequences=count, length=length, bos=bos)


def test_too_short_a_text_says_how_much_there_is(write: Write):
    with pytest.raises(AutopruneError, match=rf"has {len(ids_of('a b c'))} tokens; 2 sequences of 1,000") as caught:
        token_sequences(write("a b c"), TOKENIZER, sequences=2, length=1000)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_an_empty_text_is_too_short(write: Write, name: str):
    with pytest.raises(AutopruneError, match="has 0 tokens; 1 sequences of 8"):
        token_sequences(write("", name), TOKENIZER, sequences=None, length=8)


@pytest.mark.parametrize(("sequences", "length"), [(0, 8), (-1, 8), (1, 1), (1, 0), (None, 1)])
def test_impossible_amounts_are_refused(write: Write, sequences: int | None, length: int):
    with pytest.raises(AutopruneError, match="is less than"):
        token_sequences(write("a b c"), TOKENIZER, sequences=sequences, length=length)


# ---------------------------------------------------------------- what cannot be read


def refused(source: str) -> AutopruneError:
    with pytest.raises(AutopruneError) as caught:
        token_sequences(source, TOKENIZER, sequences=1, length=2)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("source", ["", "text.txt", "file:", "hub:", "http://x", "FILE:x", ":x"])
def test_what_is_no_source_is_refused(source: str):
    assert "is not a text source" in refused(source).what


@pytest.mark.parametrize("name", ["no.txt", "no.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    error = refused(f"file:{tmp_path / name}")
    assert error.what == "cannot read the text: No such file or directory"
    assert error.where == str(tmp_path / name)


def test_a_folder_is_no_text(tmp_path: Path):
    assert refused(f"file:{tmp_path}").what == "cannot read the text: Is a directory"


def test_the_home_of_an_unknown_user_is_no_text():
    assert "nobody-here" in str(refused("file:~nobody-here/text.txt"))


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_text_that_is_not_utf8_is_refused(write: Write, name: str):
    assert refused(write(b'{"text": "caf\xe9"}\n', name)).what == "not UTF-8 text"


def test_bad_json_names_the_line(write: Write):
    error = refused(write(jsonl("one") + "\n" + "{oops}\n", "text.jsonl"))
    assert error.where.endswith("text.jsonl, line 3")
    assert error.what.startswith("not JSON")


@pytest.mark.parametrize("record", ['{"content": "x"}', '{"text": 3}', '{"text": null}', '["text"]', "3", '"text"'])
def test_a_record_without_text_names_the_line(write: Write, record: str):
    error = refused(write(jsonl("one") + record + "\n", "text.jsonl"))
    assert error.where.endswith("text.jsonl, line 2")
    assert error.what == "no field 'text'"


def test_half_a_surrogate_pair_is_refused(write: Write):
    refused(write('{"text": "one \\ud800 two three"}\n', "text.jsonl"))


# ---------------------------------------------------------------- data sets


def test_a_data_set_folder_is_read(tmp_path: Path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(jsonl("one größe", "two", "three"), "utf-8")
    ids = ids_of("one größe\n\ntwo\n\nthree")
    for source in (f"hub:{tmp_path / 'set'}", f"hub:{tmp_path / 'set'}:train"):
        assert token_sequences(source, TOKENIZER, sequences=1, length=len(ids))[0].tolist() == ids


def test_a_split_that_is_not_there_is_refused(tmp_path: Path):
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text(jsonl("one"), "utf-8")
    assert "cannot load the data set" in refused(f"hub:{tmp_path}:validation").what


def test_a_data_set_without_text_names_the_row(tmp_path: Path):
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text('{"content": "x"}\n', "utf-8")
    assert refused(f"hub:{tmp_path}").what == "row 1 has no text column"


def test_too_many_parts_of_a_data_set_name_are_refused():
    assert "too many parts" in refused("hub:a:b:c:d").what


def test_data_sets_without_the_package_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "autoprune[hub]" in refused("hub:a").remedy
