"""Prompts, as diffusers' own Wan pipeline encodes them, each once, and what is wrong with a folder or a cached file."""

import inspect
import re
import shutil
import sys
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from forcing.fixture import WIDTH, fixture
from forcing.text import Text, umt5
from forcing.text.names import Names
from forcing.text.umt5 import NEGATIVE, UMT5, clean

PROMPTS = (
    "a red ball moves up over blue",
    "  two   words\n and\ta tab ",
    "rock &amp;amp; roll &lt;b&gt;",
    "5 < 6 &amp;amp;lt; 7",  # nor does ftfy resolve one level, where it meets a <
    "Zoë&nbsp;smiles 😀 at the cafÃ© â€“ twice",
    "",
    NEGATIVE,
    "a white ball moves to the left over green, " * 30,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fixture(tmp_path_factory.mktemp("wan") / "pipeline")


@pytest.fixture(scope="module")
def pipeline(folder):
    from diffusers import WanPipeline

    return WanPipeline.from_pretrained(folder, transformer=None)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def text(folder, tmp_path):
    return UMT5(folder, cache=tmp_path / "cache", length=24)


@torch.no_grad()  # as the pipeline runs
def theirs(pipeline, prompts, length):
    # one by one: with another batch size, sums have another order
    return torch.cat([pipeline._get_t5_prompt_embeds(each, max_sequence_length=length) for each in prompts])


def cached(text):
    return sorted(text.cache.iterdir())


@pytest.mark.parametrize("length", [512, 24, 3])
def test_equal_to_the_pipeline_of_diffusers(folder, pipeline, tmp_path, length):
    text = UMT5(folder, cache=tmp_path, length=length)
    ours = text.encode(PROMPTS)
    assert ours.shape == (len(PROMPTS), length, WIDTH) and ours.dtype == torch.float32 and not ours.requires_grad
    torch.testing.assert_close(ours, theirs(pipeline, PROMPTS, length), atol=1e-6, rtol=0)
    assert ours[0].abs().max() > 0.5 and not torch.equal(ours[0], ours[1])
    if length == 512:
        told, null = pipeline.encode_prompt(PROMPTS[0], NEGATIVE, max_sequence_length=length)
        torch.testing.assert_close(torch.cat([text.encode(PROMPTS[:1]), text.null(1)]), torch.cat([told, null]))


def test_half_precision_is_that_of_the_pipeline(folder, text, tmp_path):
    from diffusers import WanPipeline

    half = UMT5(folder, cache=text.cache, length=24, dtype=torch.bfloat16)
    exact, ours = text.encode(PROMPTS), half.encode(PROMPTS)  # of one cache, which tells them apart
    other = WanPipeline.from_pretrained(folder, transformer=None, dtype=torch.bfloat16)
    torch.testing.assert_close(ours, theirs(other, PROMPTS, 24).float(), atol=1e-6, rtol=0)
    assert not torch.equal(ours, exact) and ours.dtype == torch.float32 and torch.equal(ours, ours.bfloat16().float())


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text(" \t\n\x1c\x85\u3000&#;ampltx1c<"))
def test_prompts_are_cleaned_as_theirs(prompt):
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert clean(prompt) == prompt_clean(prompt)


def test_no_prompt_is_the_empty_one_and_null_the_negative_one(text, folder):
    none, empty, blank, negative = text.encode([None, "", " \n", NEGATIVE])
    assert torch.equal(none, empty) and torch.equal(none, blank)
    assert none[0].abs().max() > 0.1 and none[1:].abs().max() == 0  # the end is a token, the padding is not
    assert torch.equal(text.null(3), negative.expand(3, -1, -1))
    other = UMT5(folder, cache=text.cache, length=24, negative="red")
    assert torch.equal(other.null(1), text.encode(["red"])) and not torch.equal(other.null(1), text.null(1))
    assert text.encode([]).shape == (0, 24, WIDTH)


def test_each_prompt_is_encoded_once(text, folder, monkeypatch):
    met, computed = [], UMT5._computed
    monkeypatch.setattr(UMT5, "_computed", lambda self, prompt: met.append(prompt) or computed(self, prompt))
    first = text.encode(["a", "b", "a", " a\n", None, ""])
    assert met == ["a", "b", ""] and len(cached(text)) == 3
    assert sum(path.stat().st_size for path in cached(text)) < 3 * 1000  # without the padding
    assert torch.equal(text.encode(["b"])[0], first[1]) and len(met) == 3
    again = UMT5(folder, cache=text.cache, length=24)
    assert torch.equal(again.encode(["a", "b", None]), first[[0, 1, 4]]) and len(met) == 3
    assert again._loaded is None  # the encoder was not needed
    shutil.rmtree(text.cache)
    assert torch.equal(text.encode(["a"])[0], first[0]) and len(met) == 3  # from memory


def test_a_cut_prompt_is_not_the_whole_one(text, folder):
    long = "a red ball moves up over blue"
    short = UMT5(folder, cache=text.cache, length=3).encode([long])
    assert torch.equal(text.encode([long]), UMT5(folder, cache=text.cache / "new", length=24).encode([long]))
    assert short.shape == (1, 3, WIDTH) and len(cached(text)) == 3  # and the folder "new"


def test_memory_holds_the_latest(text, monkeypatch):
    monkeypatch.setattr(umt5, "_KEPT", 2)
    rows = text.encode(["a", "b", "c", "a"])
    assert list(text._known) == ["c", "a"] and torch.equal(rows[0], rows[3]) and len(cached(text)) == 3


def test_what_is_handed_out_is_not_what_is_kept(text):
    before = text.encode(["a"]).clone()
    text.encode(["a"]).zero_()
    text.null(2).fill_(7)
    assert torch.equal(text.encode(["a"]), before) and text.null(1).max() != 7


def test_a_released_encoder_is_loaded_again(text):
    first = text.encode(["a"])
    text.release()
    assert text._loaded is None and torch.equal(text.encode(["a"]), first) and text._loaded is None
    text.encode(["b"])
    assert text._loaded is not None


@pytest.mark.parametrize(("device", "gives"), [("cpu", False), ("cuda", True), (torch.device("cuda", 1), True)])
def test_a_gpu_gets_its_memory_back_once_the_encoder_is_gone(text, monkeypatch, device, gives):
    text.encode(["a"])
    model, given = weakref.ref(text._loaded[1]), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(model()))
    text.device = device
    text.release()
    assert given == [None] * gives and model() is None


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(b""),
        lambda path: save_file({"text": torch.full((2, WIDTH), float("nan"))}, path),
        lambda path: save_file({"text": torch.ones(2, WIDTH - 1)}, path),
        lambda path: save_file({"text": torch.ones(25, WIDTH)}, path),
        lambda path: save_file({"text": torch.ones(0, WIDTH)}, path),
        lambda path: save_file({"other": torch.ones(2, WIDTH)}, path),
    ],
)
def test_a_damaged_file_is_encoded_again(text, folder, harm):
    first = text.encode(["a red ball"])
    (path,) = cached(text)
    before = path.read_bytes()
    harm(path)
    assert path.read_bytes() != before
    assert torch.equal(UMT5(folder, cache=text.cache, length=24).encode(["a red ball"]), first)
    assert path.read_bytes() == before and cached(text) == [path]


def test_where_embeddings_are_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, place in (("", tmp_path / ".cache/forcing/text"), (str(tmp_path / "mine"), tmp_path / "mine/text")):
        monkeypatch.setenv("FORCING_CACHE", value)
        UMT5(folder).encode(["a"])
        assert len(list(place.glob("*.safetensors"))) == 1
    monkeypatch.delenv("FORCING_CACHE")
    assert UMT5(folder).cache == tmp_path / ".cache/forcing/text"


def test_a_cache_that_cannot_be_written_is_named_before_the_encoder_is_loaded(folder, tmp_path):
    (tmp_path / "file").touch()
    text = UMT5(folder, cache=tmp_path / "file" / "cache")
    with pytest.raises(OSError, match="file"):
        text.encode(["a"])
    assert text._loaded is None


@pytest.mark.parametrize(
    "name", ["text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"]
)
def test_another_encoder_has_another_digest(folder, copy, name):
    assert UMT5(copy).digest == UMT5(folder).digest and len(UMT5(folder).digest) == 16
    path = copy / name
    data = bytearray(path.read_bytes())
    at = data.index(b"\n") if name.endswith("json") else len(data) // 2
    data[at : at + 1] = b" " if name.endswith("json") else bytes([data[at] ^ 1])
    path.write_bytes(data)
    assert UMT5(copy).digest != UMT5(folder).digest


def test_other_weights_are_not_answered_from_the_cache(text, copy):
    path = copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights["encoder.final_layer_norm.weight"] *= 2
    save_file(weights, path, metadata={"format": "pt"})
    other = UMT5(copy, cache=text.cache, length=24)
    torch.testing.assert_close(other.encode(["a"]), 2 * text.encode(["a"]))


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("text_encoder", "text_encoder"),
        ("text_encoder/config.json", "text_encoder"),
        ("text_encoder/model.safetensors", "text_encoder"),
        ("tokenizer", "tokenizer"),
    ],
)
def test_a_folder_that_is_not_complete_is_named(copy, name, lacking):
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=rf"copy is not a Wan pipeline: {lacking} missing or not complete"):
        UMT5(copy)
    with pytest.raises(ValueError, match="nowhere is not a Wan pipeline: text_encoder and tokenizer missing"):
        UMT5(copy / "nowhere")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("text_encoder/model.safetensors", lambda data: data[:-5]),
        ("text_encoder/config.json", lambda data: data[:20]),
        ("text_encoder/config.json", lambda data: b"[]"),
        ("text_encoder/config.json", lambda data: data.replace(b'"d_model": 32', b'"d_model": "32"')),
        ("text_encoder/config.json", lambda data: data.replace(b'"d_model"', b'"width"')),
    ],
)
def test_a_damaged_file_is_named_before_work(copy, name, harm):
    path = copy / name
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        UMT5(copy)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("tokenizer/tokenizer.json", lambda data: data[:100]),
        ("tokenizer/tokenizer.json", lambda data: b"{}"),
        ("text_encoder/config.json", lambda data: data.replace(b'"d_ff": 64', b'"d_ff": 65')),
        ("text_encoder/config.json", lambda data: data.replace(b'"num_layers": 2', b'"num_layers": "2"')),
    ],
)
def test_an_encoder_that_cannot_be_loaded_is_named(copy, tmp_path, name, harm):
    path = copy / name
    before = path.read_bytes()
    path.write_bytes(harm(before))
    assert path.read_bytes() != before
    with pytest.raises(ValueError, match=r"the text encoder in \S+copy cannot be loaded \(\w+: ") as said:
        UMT5(copy, cache=tmp_path / "cache").encode(["a"])
    assert "\n" not in str(said.value) and not any((tmp_path / "cache").iterdir())


def test_missing_weights_are_not_made_up(copy, tmp_path):
    path = copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"copy lacks 1 weights, such as encoder\.final_layer_norm\.weight"):
        UMT5(copy, cache=tmp_path / "cache").encode(["a"])


def test_numbers_that_are_not_finite_are_not_kept(copy, tmp_path):
    path = copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights["encoder.final_layer_norm.weight"][0] = torch.inf
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not finite for 'a'"):
        UMT5(copy, cache=tmp_path / "cache").encode(["a"])
    assert not any((tmp_path / "cache").iterdir())


def test_what_is_no_prompt_is_named(text):
    with pytest.raises(ValueError, match="a list of texts, with None for no prompt; got 'a red ball'"):
        text.encode("a red ball")
    texts = inspect.unwrap(umt5._texts)  # without the tests' own check of types
    for wrong in (3, b"a", ["a"]):
        with pytest.raises(ValueError, match=re.escape(f"a list of texts, with None for no prompt; got {wrong!r}")):
            texts(["a", wrong])
    assert texts is not umt5._texts and not text.cache.exists()


def test_a_prompt_has_a_token(folder):
    with pytest.raises(ValueError, match="length is 0"):
        UMT5(folder, length=0)


@pytest.mark.parametrize("missing", ["transformers", "ftfy"])
def test_a_missing_package_is_named(text, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r'pip install "forcing\[wan\]"'):
        text.encode(["a"])


def test_nothing_is_drawn_from_the_global_stream(text):
    before = torch.get_rng_state()
    text.encode(["a"])
    assert torch.equal(torch.get_rng_state(), before)


def test_both_encoders_are_texts(text):
    names = Names(("day", "night"))
    assert isinstance(text, Text) and isinstance(names, Text)
    assert names.encode(["night", None, "day"]).tolist() == [[0, 1], [0, 0], [1, 0]]
    assert names.null(2).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ValueError, match=r"unknown prompt 'dya'; this world knows day, night. Did you mean 'day'"):
        names.encode([None, "dya"])
    with pytest.raises(ValueError, match="unknown prompt ''"):
        names.encode([""])
    assert text.width == WIDTH
