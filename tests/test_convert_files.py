"""Files of Wan's weights: every way in which they are published, and every way in which they can be wrong."""

import json
import re
import shutil
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import contents

from forcing.backbones.wan import WanConfig
from forcing.cli import main
from forcing.codecs.weights import finite, read
from forcing.convert import convert_wan, load_wan, save_wan
from forcing.convert import names as grammar

TINY = WanConfig(dim=16, ffn_dim=24, freq_dim=8, text_dim=4, num_heads=2, num_layers=2, in_channels=4, patch=(1, 2, 2))
HEADS = replace(TINY, dim=128, num_heads=1, num_layers=1)  # as in released models: 128 channels each
WEIGHTS = "diffusion_pytorch_model.safetensors"
LOCAL = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made(config=TINY):
    model, rng = config.build(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return model


def tensors(config=TINY):
    return {name: value.detach().clone() for name, value in made(config).named_parameters()}


def right(model, config=TINY):
    expected = tensors(config)
    assert model.config == config
    assert all(torch.equal(value, expected.pop(name)) for name, value in model.named_parameters()) and not expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_wan(made(), tmp_path_factory.mktemp("wan") / "wan")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return save_wan(made(), tmp_path_factory.mktemp("wan") / "several", to="diffusers", shard=8000)


def harmed(folder, tmp_path, change, form="safetensors"):
    """A copy of the weights in `folder` after `change`, with their config.json beside."""
    values = load_file(folder / WEIGHTS)
    change(values)
    path = tmp_path / f"harmed.{form}"
    shutil.copy(folder / "config.json", tmp_path)
    if form == "pt":
        torch.save(values, path)
    else:
        save_file(values, path)
    return path


# ---- as they are published


def fsdp(name):
    """As in a run whose blocks and linear layers are each sharded and recomputed."""
    parts = re.fullmatch(r"(blocks\.\d+\.)(self_attn|cross_attn|ffn)\.(\w+)\.(.*)", name)
    if parts is None:
        return f"model._fsdp_wrapped_module.{name}"
    inner = "_fsdp_wrapped_module." if parts[2] == "ffn" else ""
    middle = "" if parts[2] == "ffn" else "_fsdp_wrapped_module."
    block = f"{parts[1]}_fsdp_wrapped_module._checkpoint_wrapped_module."
    return f"model._fsdp_wrapped_module.{block}{parts[2]}.{middle}{parts[3]}.{inner}{parts[4]}"


SPELLINGS = {
    "original": str,
    "model": lambda name: f"model.{name}",
    "fsdp": fsdp,
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled inside": lambda name: f"model._orig_mod.{name}",
    "comfy": lambda name: f"model.diffusion_model.{name}",
    "lightx": lambda name: f"diffusion_model.{name}",
    "diffusers": grammar.diffusers,
    "diffusers in fsdp": lambda name: f"_fsdp_wrapped_module.{grammar.diffusers(name)}",
}


def test_names_of_a_large_training_run():
    for key, name in (
        ("model._fsdp_wrapped_module.blocks.0.self_attn._fsdp_wrapped_module.q.weight", "blocks.0.self_attn.q.weight"),
        ("model.blocks.39.ffn.0._fsdp_wrapped_module.weight", "blocks.39.ffn.0.weight"),
        ("blocks.3._checkpoint_wrapped_module.modulation", "blocks.3.modulation"),
        ("_orig_mod.head.modulation", "head.modulation"),
        ("scale_shift_table", "head.modulation"),
        ("blocks.3.scale_shift_table", "blocks.3.modulation"),
        ("blocks.11.norm2.bias", "blocks.11.norm3.bias"),
        ("blocks.0.attn2.to_out.0.bias", "blocks.0.cross_attn.o.bias"),
        ("", ""),
        ("strange\nname", "strange\nname"),
    ):
        assert grammar.original(key) == name


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_every_spelling_is_read(spelling, form, tmp_path):
    values = {SPELLINGS[spelling](name): value for name, value in tensors(HEADS).items()}
    path = tmp_path / f"w.{form}"
    if form == "safetensors":
        save_file(values, path)
    else:
        torch.save(values, path)
    right(load_wan(path), HEADS)


@pytest.mark.parametrize("form", ["pt", "old", "bin", "pth"])
@pytest.mark.parametrize("part", [None, "generator_ema", "generator", "model"])
def test_every_kind_of_pickle_is_read(form, part, tmp_path):
    values = OrderedDict((fsdp(name), value) for name, value in tensors(HEADS).items())
    path = tmp_path / f"w.{'pt' if form == 'old' else form}"
    document = values if part is None else {part: values, "step": 3, "critic": {"a": torch.zeros(1)}}
    torch.save(document, path, _use_new_zipfile_serialization=form != "old")
    right(load_wan(path), HEADS)


def test_the_average_goes_before_the_student_and_any_part_can_be_named(tmp_path):
    wrong = {name: value + 1 for name, value in tensors(HEADS).items()}
    own = tensors(HEADS)
    order = ("generator_ema", "generator", "model")
    for i, first in enumerate(order):
        torch.save({**dict.fromkeys(order[i + 1 :], wrong), first: own, "critic": wrong}, tmp_path / "w.pt")
        right(load_wan(tmp_path / "w.pt"), HEADS)
    torch.save({**dict.fromkeys(order, wrong), "critic": own}, tmp_path / "w.pt")
    right(load_wan(tmp_path / "w.pt", weights="critic"), HEADS)
    with pytest.raises(
        ValueError, match=r"w\.pt has no weights 'student'; it has 'generator_ema', 'generator', 'model', "
    ):
        load_wan(tmp_path / "w.pt", weights="student")


def test_weights_choose_in_pickled_files_only(folder):
    with pytest.raises(ValueError, match="has no parts: weights 'model'"):
        load_wan(folder, weights="model")


def test_every_kind_of_folder_is_read(folder, sharded, tmp_path):
    right(load_wan(folder))
    right(load_wan(folder / WEIGHTS))
    right(load_wan(sharded))
    right(load_wan(next(sharded.glob("*.index.json"))))
    shutil.copytree(sharded, tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    right(load_wan(tmp_path / "pipeline"))


def world(path, backbone):
    path.mkdir()
    save_file(tensors(), path / "model.safetensors")
    save_file({"axes": torch.zeros(1)}, path / "codec.safetensors")
    (path / "world.json").write_text(json.dumps({"format": 1, "recipe": {"backbone": backbone}}))
    return path


BACKBONE = {"kind": "WanConfig", "dim": 16, "ffn_dim": 24, "freq_dim": 8, "text_dim": 4, "text_len": 512}
BACKBONE |= {"num_heads": 2, "num_layers": 2, "in_channels": 4, "patch": [1, 2, 2], "checkpoint": False}


def test_a_world_is_read(tmp_path):
    path = world(tmp_path / "w", BACKBONE)
    right(load_wan(path))
    right(load_wan(path / "model.safetensors"))


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        (BACKBONE | {"kind": "TinyConfig"}, "a world of 'TinyConfig'"),
        (BACKBONE | {"colour": 3}, "has no 'colour'"),
        (BACKBONE | {"dim": "16"}, "dim is '16'"),
        (BACKBONE | {"patch": [1, 2]}, "patch must be"),
        (BACKBONE | {"patch": 2}, "patch is 2, which is no whole numbers"),
        (None, "does not say"),
        ({"dim": 3}, "does not say"),
    ],
)
def test_a_world_of_something_else_is_named(backbone, says, tmp_path):
    with pytest.raises(ValueError, match=rf"world\.json.*{says}"):
        load_wan(world(tmp_path / "w", backbone))


# ---- sizes


def test_sizes_come_from_the_tensors_where_nothing_else_says_them(tmp_path):
    config = replace(HEADS, dim=256, num_heads=2, num_layers=3, in_channels=5, patch=(1, 2, 4))
    save_wan(made(config), tmp_path / "w.safetensors")
    right(load_wan(tmp_path / "w.safetensors"), config)


def test_where_sizes_came_from_is_told_if_they_do_not_fit(tmp_path):
    values = tensors(HEADS) | {"blocks.0.ffn.0.weight": torch.zeros(25, 128)}
    save_file(values, tmp_path / "w.safetensors")
    says = r"2 of another shape \(.*ffn\.2\.weight.*\); sizes are those of .*blocks\.0\.ffn\.0\.weight"
    with pytest.raises(ValueError, match=says):
        load_wan(tmp_path / "w.safetensors")


def test_sizes_that_the_tensors_do_not_tell_must_be_given(tmp_path):
    save_file(dict(made().named_parameters()), tmp_path / "w.safetensors")  # as others save: without metadata
    with pytest.raises(ValueError, match=r"w\.safetensors has 16 channels, not heads of 128: .* config"):
        load_wan(tmp_path / "w.safetensors")
    right(load_wan(tmp_path / "w.safetensors", TINY))
    right(load_wan(tmp_path / "w.safetensors", replace(TINY, checkpoint=True)), replace(TINY, checkpoint=True))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ffn_dim": 32}, r"6 of another shape \(blocks\.0\.ffn\.0\.bias is \[24\], must be \[32\]"),
        ({"num_layers": 3}, r"27 missing \(blocks\.2\.modulation, .*\.\.\.\)$"),
        ({"num_layers": 1}, r"27 unexpected \(blocks\.1\.\S+, "),
        ({"num_layers": 1000}, "too few for 1000 layers"),
        ({"dim": 2**60}, "which no tensor can be"),
        ({"ffn_dim": 2**70}, "which no tensor can be"),
    ],
)
def test_a_config_that_does_not_agree_is_named(changes, says, folder):
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / WEIGHTS))}.*{says}"):
        load_wan(folder, replace(TINY, **changes))


@pytest.mark.parametrize("form", ["wan", "diffusers"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "i2v"}, "model_type 'i2v' is not supported, only 't2v'"),
        ({"image_dim": 1280}, "image_dim 1280 is not supported"),
        ({"added_kv_proj_dim": 5120}, "added_kv_proj_dim 5120 is not supported"),
        ({"qk_norm": None}, "qk_norm None is not supported"),
        ({"qk_norm": "rms_norm"}, "qk_norm 'rms_norm' is not"),
        ({"cross_attn_norm": False}, "cross_attn_norm False is not supported"),
        ({"window_size": [3, 3]}, "window_size"),
        ({"eps": 1e-5}, "eps 1e-05 is not supported"),
        ({"in_dim": 36, "in_channels": 36}, "takes 36 channels and gives 4: .* not image to video"),
        ({"num_layers": "two"}, "num_layers is 'two', which is no whole number$"),
        ({"patch_size": [2, 2, 2]}, "frames are never merged"),
        ({"patch_size": [1, [2], 2]}, "patch_size is"),
        ({"patch_size": None}, "patch_size is None, which is no whole numbers"),
        ({"ffn_dim": 1.5}, "ffn_dim is 1.5"),
        ({"num_heads": 0, "num_attention_heads": 0}, "num_heads must be at least 1|dim must be at least 1"),
    ],
)
def test_a_config_of_another_model_is_refused(form, changes, says, tmp_path):
    path = save_wan(made(), tmp_path / "w", to=form) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=rf"config\.json.*(?:{says})"):
        load_wan(tmp_path / "w")


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"dim": 16}', "\xff", "[" * 100_000, '{"d_model": 512}'])
def test_a_config_that_is_none_is_named(text, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "w")
    (tmp_path / "w" / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json (?:is damaged|is not the config of a Wan transformer)"):
        load_wan(tmp_path / "w")


@pytest.mark.parametrize("missing", ["dim", "num_heads", "in_dim", "freq_dim"])
def test_a_size_that_the_config_lacks_is_named(missing, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "w")
    path = tmp_path / "w" / "config.json"
    told = json.loads(path.read_text())
    del told[missing]
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=rf"config\.json is not .* it has no {missing}$"):
        load_wan(tmp_path / "w")


def test_what_released_config_files_leave_out_has_its_default(tmp_path):
    config = replace(TINY, text_dim=4096, text_len=512, patch=(1, 2, 2))
    path = save_wan(made(config), tmp_path / "w") / "config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in told.items() if k not in ("text_dim", "text_len", "patch_size")}))
    right(load_wan(tmp_path / "w"), config)


def test_image_to_video_is_refused_by_its_shapes(tmp_path):
    values = tensors(HEADS) | {"patch_embedding.weight": torch.zeros(128, 36, 1, 2, 2)}
    save_file(values, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors takes 36 channels and gives 4: only text to video"):
        load_wan(tmp_path / "w.safetensors")


def test_other_networks_are_refused(tmp_path):
    save_file({"encoder.conv1.weight": torch.zeros(2, 2)}, tmp_path / "vae.safetensors")
    with pytest.raises(
        ValueError, match=r"is not a Wan transformer: it lacks patch_embedding\.weight of 5 dimensions, "
    ):
        load_wan(tmp_path / "vae.safetensors")


# ---- what is wrong with tensors


@pytest.mark.parametrize("form", ["safetensors", "pt"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(form, value, folder, tmp_path):
    path = harmed(folder, tmp_path, lambda values: values["blocks.1.ffn.2.weight"][3, 5].fill_(value), form)
    with pytest.raises(ValueError, match=rf"blocks\.1\.ffn\.2\.weight in .*harmed\.{form} has values that are NaN"):
        load_wan(path)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(("out", "."))] == []
    with pytest.raises(ValueError, match=r"blocks\.1\.ffn\.2\.weight"):
        convert_wan(path, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(("out", "."))] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_no_place_hides_a_value_that_is_not_finite(dtype):
    for place in range(67):  # longer than any vector of the processor, with a rest
        value = torch.ones(67, dtype=dtype)
        assert finite(value)
        for wrong in (float("nan"), float("inf"), -float("inf")):
            value[place] = wrong
            assert not finite(value)


def test_values_too_large_for_half_precision_are_named(folder, tmp_path):
    path = harmed(folder, tmp_path, lambda values: values["head.head.weight"][0, 0].fill_(1e5))
    assert load_wan(path, dtype=torch.bfloat16).head.head.weight.max() > 9e4
    with pytest.raises(ValueError, match=r"head\.head\.weight in .* too large for torch\.float16"):
        load_wan(path, dtype=torch.float16)
    model = made()
    model.head.head.weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"head\.head\.weight has values that are too large for torch\.float16"):
        save_wan(model, tmp_path / "out", dtype=torch.float16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64, torch.uint8, torch.float8_e4m3fn])
def test_other_types_are_named(form, dtype, folder, tmp_path):
    name = "blocks.0.self_attn.k.bias"
    path = harmed(folder, tmp_path, lambda values: values.update({name: torch.ones(16).to(dtype)}), form)
    with pytest.raises(ValueError, match=rf"harmed\.{form}: {name} is stored as .*; weights are torch\.float32, "):
        load_wan(path)
    with pytest.raises(ValueError, match=r"dtype is torch\.int8; weights are torch\.float32"):
        load_wan(folder, dtype=torch.int8)


def test_two_names_of_one_tensor_are_named(folder, tmp_path):
    path = harmed(
        folder, tmp_path, lambda values: values.update({"model.head.modulation": values["head.modulation"] * 1})
    )
    with pytest.raises(ValueError, match=r"has head\.modulation and model\.head\.modulation, which are both head\.mod"):
        load_wan(path)


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_a_name_that_cannot_be_shown_is_refused(form, folder, tmp_path):
    path = harmed(folder, tmp_path, lambda values: values.update({"a\n\x1b[31m": torch.zeros(1)}), form)
    with pytest.raises(ValueError, match=rf"{form} is damaged: 'a\\n\\x1b\[31m' is no name of a tensor$"):
        load_wan(path)


NAMES = sorted(tensors())


@LOCAL
@given(
    name=st.sampled_from(NAMES),
    harm=st.sampled_from(["drop", "rename", "reshape", "nan", "int"]),
    form=st.sampled_from(["safetensors", "pt"]),
)
def test_a_harmed_tensor_is_always_named(name, harm, form, folder, tmp_path):
    def change(values):
        value = values.pop(name)
        if harm == "rename":
            values[f"{name}_x"] = value
        if harm == "reshape":
            values[name] = value.flatten()[:-1].clone()
        if harm == "nan":
            values[name] = value.masked_fill(torch.arange(value.numel()).reshape(value.shape) == 0, float("nan"))
        if harm == "int":
            values[name] = value.int()

    path = harmed(folder, tmp_path, change, form)
    with pytest.raises(ValueError, match=rf"^(?=.*{re.escape(str(path))})(?=.*{re.escape(name)})[^\n]*$"):
        load_wan(path)


# ---- what is wrong with files


@LOCAL
@given(form=st.sampled_from(["safetensors", "pt", "old"]), data=st.data())
def test_a_damaged_file_is_named_and_nothing_else_happens(form, data, folder, tmp_path):
    path = tmp_path / f"w.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "safetensors":
        shutil.copy(folder / WEIGHTS, path)
    else:
        torch.save(load_file(folder / WEIGHTS), path, _use_new_zipfile_serialization=form == "pt")
    before = path.read_bytes()
    if data.draw(st.booleans(), label="cut"):
        after = before[: data.draw(st.integers(0, len(before) - 1))]
    else:
        start = data.draw(st.one_of(st.integers(0, 3000), st.integers(0, len(before) - 1)))
        noise = data.draw(st.binary(min_size=1, max_size=64))
        after = before[:start] + noise + before[start + len(noise) :]
    path.write_bytes(after)
    try:
        load_wan(path, TINY)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)  # noqa: PT017 (other bytes may be other numbers)
    else:
        assert len(after) >= len(before)


class Code:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("data", [b"", b"x", b"a text\n" * 100, b"PK\x03\x04" + b"\0" * 100, b"\x80\x02}q\x00."])
def test_something_else_is_named(suffix, data, tmp_path):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} is (?:damaged|not a Wan)[^\n]*$"):
        load_wan(path)


def test_the_librarys_own_warnings_are_not_heard(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"\x80\x04}q\x00.")  # a protocol that torch.save does not write
    for load in (load_wan, read):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with pytest.raises(ValueError, match=r"w\.pt is damaged"):
                load(tmp_path / "w.pt")
        assert not said


def test_paths_may_be_texts(folder, tmp_path):
    assert save_wan(load_wan(str(folder)), str(tmp_path / "a")) == tmp_path / "a"
    convert_wan(str(folder), str(tmp_path / "b.safetensors"))
    for path in (tmp_path / "a", tmp_path / "b.safetensors"):
        right(load_wan(path))


@pytest.mark.parametrize("old", [False, True])
def test_code_is_not_run(old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": tensors(), "code": Code()}, "w.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=r"^w\.pt is damaged, or holds more than tensors \([^\n]*$"):
        load_wan("w.pt")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([torch.zeros(2)], "it is a list, not named tensors"),
        (torch.zeros(2), "it is a Tensor, not named tensors"),
        ({"model": [1]}, "'model' is a list, not named tensors"),
        ({"model": {"a": 3}}, "'a' is a int, not a named tensor$"),
        ({"model": {3: torch.zeros(2)}}, "3 is a Tensor, not a named tensor"),
        (
            {"state": {"a": torch.zeros(1)}, "step": 1},
            "'state' is a dict, not a named tensor; it has 'state', 'step': weights can name one$",
        ),
        ({"a": torch.eye(3).to_sparse()}, "'a' is a sparse or an empty tensor"),
        ({"a": torch.zeros(3, device="meta")}, "'a' is a sparse or an empty tensor"),
        ({}, "is not a Wan transformer"),
    ],
)
def test_a_pickle_of_something_else_is_named(document, says, tmp_path):
    torch.save(document, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt.*{says}"):
        load_wan(tmp_path / "w.pt")
    if not isinstance(document, dict):
        with pytest.raises(ValueError, match=r"w\.pt has no weights 'model'; it has a"):
            load_wan(tmp_path / "w.pt", weights="model")


def test_a_part_that_is_a_view_is_read(tmp_path):
    values = tensors(HEADS)
    values["blocks.0.norm3.bias"] = torch.arange(256.0).reshape(128, 2)[:, 1]  # not alone in its memory
    values["blocks.0.self_attn.q.weight"] = values["blocks.0.self_attn.q.weight"].T.contiguous().T  # column by column
    torch.save(values, tmp_path / "w.pt")
    model = load_wan(tmp_path / "w.pt")
    assert all(torch.equal(value, values[name]) for name, value in model.named_parameters())
    assert all(p.is_contiguous() and p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere", "there is no file or folder .*nowhere"),
        ("nowhere.safetensors", "there is no file or folder .*nowhere"),
        ("w.ckpt", "w.ckpt is not known as weights: .*.safetensors, .pt, .pth, .bin"),
        ("config.json", "config.json is not known as weights"),
        ("empty", "empty has none of diffusion_pytorch_model.safetensors, model.safetensors or"),
        ("two", "two has diffusion_pytorch_model.safetensors and model.safetensors: name one"),
        ("experts", "experts has two transformers, as Wan2.2"),
    ],
)
def test_a_source_that_is_none_is_named(source, says, tmp_path):
    for name in ("w.ckpt", "config.json", "two/model.safetensors", f"two/{WEIGHTS}", "empty/readme"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("experts/transformer", "experts/transformer_2"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=says):
        load_wan(tmp_path / source)


def broken_index(sharded, tmp_path, change):
    shutil.copytree(sharded, tmp_path / "w")
    path = next((tmp_path / "w").glob("*.index.json"))
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return tmp_path / "w"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda told: told.clear(), "is damaged: it has no weight_map"),
        (lambda told: told.update(weight_map=[]), "is damaged: it has no weight_map"),
        (lambda told: told["weight_map"].update({"proj_out.bias": 3}), "is damaged: it has no weight_map"),
        (
            lambda told: told["weight_map"].update({"proj_out.bias": "gone.safetensors"}),
            r"names 'gone\.safetensors', and 1 such",
        ),
        (lambda told: told["weight_map"].update({"proj_out.bias": ""}), r"names '', and 1 such"),
        (lambda told: told["weight_map"].update({"proj_out.bias": ".."}), r"names '\.\.', and 1 such"),
        (lambda told: told["weight_map"].pop("proj_out.bias"), r"differ in 1 tensors, such as 'proj_out\.bias' in"),
        (
            lambda told: told["weight_map"].update({"more": told["weight_map"]["proj_out.bias"]}),
            "differ in 1 tensors, such as 'more' in",
        ),
        (
            lambda told: told["weight_map"].update({"proj_out.bias": told["weight_map"]["patch_embedding.bias"]}),
            r"differ in 2 tensors, such as 'proj_out\.bias' in",
        ),
    ],
)
def test_an_index_that_is_wrong_is_named(change, says, sharded, tmp_path):
    with pytest.raises(ValueError, match=rf"index\.json {says}|index\.json and its files {says}"):
        load_wan(broken_index(sharded, tmp_path, change))


def test_an_index_does_not_lead_out_of_its_folder(sharded, tmp_path):
    def away(told):
        told["weight_map"] = {key: f"../elsewhere/{name}" for key, name in told["weight_map"].items()}

    with_paths = broken_index(sharded, tmp_path, away)
    right(load_wan(with_paths))  # by their names, beside the index


def test_a_shard_that_is_not_there_or_damaged_is_named(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "w")
    shard = sorted((tmp_path / "w").glob("*-of-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"^{re.escape(str(shard))} is damaged"):
        load_wan(tmp_path / "w")
    shard.unlink()
    with pytest.raises(ValueError, match=rf"index\.json names '{shard.name}', and 1 such files are not there"):
        load_wan(tmp_path / "w")


# ---- what is written


@pytest.mark.parametrize("to", ["wan", "diffusers"])
def test_a_folder_that_holds_something_is_kept(to, folder, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious").touch()
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    before = contents(tmp_path)
    for path in (taken, tmp_path / "file", tmp_path / "folder.safetensors"):
        for attempt in (lambda path: save_wan(made(), path, to="wan"), lambda path: convert_wan("nowhere", path)):
            with pytest.raises(ValueError, match=f"{re.escape(str(path))} is there already, and is not replaced"):
                attempt(path)
    assert contents(tmp_path) == before and taken.is_dir()
    (tmp_path / "free").mkdir()
    right(load_wan(save_wan(made(), tmp_path / "free", to=to)))


def test_a_file_is_replaced_by_what_it_holds(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "w")
    path = tmp_path / "w" / WEIGHTS
    convert_wan(path, path, dtype=torch.bfloat16)
    assert load_wan(path).head.head.weight.dtype == torch.bfloat16
    assert sorted(file.name for file in path.parent.iterdir()) == ["config.json", WEIGHTS]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"to": "diffusers"}, r"out\.safetensors is to be a file, and the form 'diffusers' is a folder"),
        ({"shard": 0}, "shard must be at least 1 byte, got 0"),
        ({"dtype": torch.int8}, r"dtype is torch\.int8"),
    ],
)
def test_what_cannot_be_written_is_named_first(given, says, tmp_path):
    for attempt in (lambda path: save_wan(made(), path, **given), lambda path: convert_wan("nowhere", path, **given)):
        with pytest.raises(ValueError, match=says):
            attempt(tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_half_written(tmp_path):
    model = made()
    model.patch_embedding.bias.data[0] = float("nan")
    for to in ("wan", "diffusers"):
        with pytest.raises(ValueError, match=r"patch_embedding\.bias has values that are NaN"):
            save_wan(model, tmp_path / "out", to=to, shard=8000)
    with pytest.raises(ValueError, match=r"patch_embedding\.bias"):
        save_wan(model, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_every_tensor_begins_at_a_multiple_of_its_size(tmp_path):
    odd = replace(TINY, ffn_dim=25, num_layers=1)  # so that no size is right by chance
    save_wan(made(odd), tmp_path / "w.safetensors", dtype=torch.bfloat16)
    data = (tmp_path / "w.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0 and header.pop("__metadata__")["format"] == "pt"
    sizes = {"F32": 4, "BF16": 2}
    assert {each["dtype"] for each in header.values()} == set(sizes)
    assert all(each["data_offsets"][0] % sizes[each["dtype"]] == 0 for each in header.values())


# ---- the command


def ask(capsys, *argv):
    code = main([str(arg) for arg in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_converts_and_says_what_it_wrote(folder, tmp_path, capsys):
    torch.save({"generator": tensors(), "other": tensors()}, tmp_path / "w.pt")
    shutil.copy(folder / "config.json", tmp_path)
    code, out, err = ask(capsys, "convert", tmp_path / "w.pt", tmp_path / "a", "--to", "diffusers")
    count = sum(value.numel() for value in tensors().values())
    assert (code, err) == (0, "") and f"{tmp_path / 'a'}: {count:,} parameters, 2 layers ({count:,} in float32)" in out
    assert "config.json (0.0 MB), diffusion_pytorch_model.safetensors (0." in out
    right(load_wan(tmp_path / "a"))
    assert "proj_out.bias" in load_file(tmp_path / "a" / WEIGHTS)
    code, out, _ = ask(capsys, "convert", tmp_path / "a", tmp_path / "b.safetensors", "--dtype", "bfloat16")
    assert code == 0 and re.search(r"\([\d,]+ in bfloat16 and [\d,]+ in float32\); b\.safetensors \(", out)
    assert load_wan(tmp_path / "b.safetensors").head.head.weight.dtype == torch.bfloat16
    code, out, _ = ask(capsys, "convert", tmp_path / "w.pt", tmp_path / "c", "--weights", "other")
    assert code == 0
    right(load_wan(tmp_path / "c"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("nowhere", "out"), "there is no file or folder nowhere"),
        (("w", "w"), "w is there already, and is not replaced"),
        (("w", "out", "--dtype", "int8"), "dtype is 'int8': choose from float32, bfloat16, float16"),
        (("w", "out", "--weights", "a"), "has no parts"),
        (("w", "out", "--to", "onnx"), "onnx"),
        (("w",), "missing"),
    ],
)
def test_the_command_says_what_is_wrong_in_a_line(args, says, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "w")
    code, out, err = ask(capsys, "convert", *args)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_a_single_file_says_its_own_sizes(tmp_path):
    # two heads of 24 channels cannot be read off the tensors, and no config lies beside
    model = WanConfig(dim=48, ffn_dim=64, freq_dim=16, text_dim=8, text_len=6, num_heads=2, num_layers=1).build()
    path = save_wan(model, tmp_path / "alone.safetensors")
    assert load_wan(path).config == model.config
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for told in ("{", "[]", '{"dim": 48}'):
        save_file(tensors, path, metadata={"config": told})
        with pytest.raises(ValueError, match=r"alone\.safetensors"):
            load_wan(path)
