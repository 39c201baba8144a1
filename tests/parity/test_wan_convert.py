"""Weights under the names of others: what diffusers computes with them is what ours computes, and nothing is lost."""

import json
import logging
import weakref
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from forcing.backbones.wan import T2V_1_3B, T2V_14B, Wan, WanConfig
from forcing.cond import Cond
from forcing.convert import convert_wan, load_wan, save_wan
from forcing.convert import names as grammar
from forcing.convert import wan as convert
from forcing.layout import full

TINY = WanConfig(
    dim=48, ffn_dim=40, freq_dim=16, text_dim=8, text_len=512, num_heads=2, num_layers=2, in_channels=4, patch=(1, 2, 4)
)


def made(config: WanConfig = TINY, dtype: torch.dtype = torch.float32) -> Wan:
    """All parameters random, and of order 1 what they put out."""
    model, rng = config.build(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=rng)
            parameter.copy_(1 + 0.1 * drawn if "norm" in name and name.endswith("weight") else 0.2 * drawn)
    return model.to(dtype)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def theirs(folder, monkeypatch):
    """What diffusers loads from a folder, with nothing missing or left over."""
    from diffusers import WanTransformer3DModel

    monkeypatch.setattr(WanTransformer3DModel, "_keep_in_fp32_modules", None)  # it would want another package
    model, told = WanTransformer3DModel.from_pretrained(folder, low_cpu_mem_usage=False, output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


def same(one: Wan, other: Wan) -> bool:
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return one.config == other.config and all(
        name == again and a.dtype == b.dtype and torch.equal(a, b) for (name, a), (again, b) in pairs
    )


def agree(ours: Wan, other) -> None:
    """On two clips of three frames, at different noise levels, with a text shorter than what it is padded to."""
    clips, sigma, text = drawn(2, 3, 4, 4, 8), torch.tensor([0.25, 0.875], dtype=torch.float64), drawn(2, 5, 8, seed=2)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # within its blocks, theirs goes down to float32
        out = ours.double()(clips, sigma[:, None].expand(2, 3), Cond({"text": text}), full(3))
        padded = torch.nn.functional.pad(text, (0, 0, 0, ours.config.text_len - text.shape[1]))
        expected = other.double()(clips.transpose(1, 2), 1000 * sigma, padded, return_dict=False)[0].transpose(1, 2)
    assert expected.std() > 0.1
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shard", [2**30, 60_000])
def test_diffusers_computes_the_same_with_what_we_save(shard, tmp_path, monkeypatch, caplog):
    model = made()
    save_wan(model, tmp_path / "theirs", to="diffusers", shard=shard)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    agree(model, theirs(tmp_path / "theirs", monkeypatch))
    assert [record.message for record in caplog.records if "accelerate" not in record.message] == []
    sizes = [path.stat().st_size for path in sorted((tmp_path / "theirs").glob("*.safetensors"))]
    assert (len(sizes) == 1) == (shard == 2**30) and max(sizes) < shard + 3000  # and what they hold is told before it
    assert all(one + other > shard for one, other in pairwise(sizes))


def test_we_compute_the_same_with_what_diffusers_saves(tmp_path):
    from diffusers import WanTransformer3DModel

    other = WanTransformer3DModel(
        patch_size=(1, 2, 4),
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=40,
        num_layers=2,
    )
    with torch.no_grad():
        for seed, parameter in enumerate(other.parameters()):
            parameter.copy_(0.2 * drawn(*parameter.shape, seed=seed))
    other.save_pretrained(tmp_path / "one")
    other.save_pretrained(tmp_path / "several" / "transformer", max_shard_size="40KB")
    assert len(list((tmp_path / "several" / "transformer").glob("*.safetensors"))) > 2
    for source in (tmp_path / "one", tmp_path / "several", next((tmp_path / "several").rglob("*.index.json"))):
        ours = load_wan(source)
        assert ours.config == TINY
        agree(ours, other)


def test_nothing_changes_on_the_way_to_diffusers_and_back(tmp_path):
    model = made(WanConfig(48, 40, 16, 8, 77, 2, 2, 4, (1, 2, 2)))
    first = save_wan(model, tmp_path / "first")
    second = save_wan(load_wan(first), tmp_path / "second", to="diffusers", shard=30_000)
    third = save_wan(load_wan(second), tmp_path / "third")
    assert same(load_wan(third), model)
    assert {p.name: p.read_bytes() for p in third.iterdir()} == {p.name: p.read_bytes() for p in first.iterdir()}
    convert_wan(first, tmp_path / "fourth", to="diffusers", shard=30_000)
    files = [{p.name: p.read_bytes() for p in path.iterdir()} for path in (second, tmp_path / "fourth")]
    assert files[0] == files[1] and len(files[0]) > 4


def test_what_is_saved_under_original_names_has_them(tmp_path):
    model = made()
    save_wan(model, tmp_path / "a")
    save_wan(model, tmp_path / "a.safetensors")
    kept = load_file(tmp_path / "a.safetensors")
    assert kept.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(kept[name], value) for name, value in model.named_parameters())
    same = load_file(tmp_path / "a" / "diffusion_pytorch_model.safetensors")
    assert same.keys() == kept.keys() and all(torch.equal(same[name], kept[name]) for name in kept)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    sizes = {"dim": 48, "ffn_dim": 40, "freq_dim": 16, "in_dim": 4, "out_dim": 4, "num_heads": 2, "num_layers": 2}
    sizes |= {"text_len": 512, "text_dim": 8, "patch_size": [1, 2, 4], "model_type": "t2v", "eps": 1e-6}
    assert config == sizes | {"_class_name": "WanModel", "_diffusers_version": "0.30.0"}


@pytest.mark.parametrize(("config", "parameters"), [(T2V_1_3B, 1_418_996_800), (T2V_14B, 14_288_491_584)])
def test_every_name_of_the_released_models_is_known(config, parameters):
    with torch.device("meta"):
        ours = {name: p.shape for name, p in config.build().named_parameters()}
    assert sum(shape.numel() for shape in ours.values()) == parameters
    called = {name: grammar.diffusers(name) for name in ours}
    assert len(set(called.values())) == len(ours)
    assert all(grammar.original(name) == grammar.original(called[name]) == name for name in ours)
    sizes = {f"blocks.{config.num_layers - 1}.ffn.net.0.proj.weight", "proj_out.bias", "scale_shift_table"}
    assert sizes <= set(called.values())


def test_half_precision_leaves_what_modulates_in_float32(tmp_path, monkeypatch):
    model = made()
    save_wan(model, tmp_path / "half", dtype=torch.bfloat16)
    save_wan(model, tmp_path / "full")
    save_wan(model, tmp_path / "theirs", to="diffusers", dtype=torch.bfloat16)
    loaded = [load_wan(tmp_path / "half"), load_wan(tmp_path / "full", dtype=torch.bfloat16)]
    loaded += [load_wan(tmp_path / "theirs"), load_wan(tmp_path / "half", dtype=torch.bfloat16)]
    for name, value in model.named_parameters():
        expected = value.detach() if Wan.keeps_float32(name) else value.detach().bfloat16()
        for each in loaded:
            assert each.get_parameter(name).dtype == expected.dtype
            assert torch.equal(each.get_parameter(name), expected), name
    wide = load_wan(tmp_path / "half", dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    for _, parameter in theirs(tmp_path / "theirs", monkeypatch).named_parameters():
        assert parameter.isfinite().all()


def test_what_was_stored_in_half_is_kept_but_for_what_modulates(tmp_path):
    path = tmp_path / "half.pt"
    torch.save(made(dtype=torch.bfloat16).state_dict(), path)
    model = load_wan(path, TINY)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if Wan.keeps_float32(name) else torch.bfloat16)


@pytest.mark.parametrize("form", ["wan", "shards", "pt", "old"])
def test_one_tensor_is_in_memory_at_a_time(form, tmp_path, monkeypatch):
    source = tmp_path / "source.pt"
    if form in ("wan", "shards"):
        save_wan(made(), tmp_path / "source", to="wan" if form == "wan" else "diffusers", shard=30_000)
        source = tmp_path / "source"
    else:
        torch.save({"generator": made().state_dict()}, source, _use_new_zipfile_serialization=form == "pt")
    mapped, alive, copies = [], [], []
    read_pickled = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *args, **given: mapped.append(given["mmap"]) or read_pickled(*args, **given)
    )

    def watched(value, kind, device, what):
        assert sum(each() is not None for each in alive) == 0, "a tensor that was read before is still there"
        alive.append(weakref.ref(value))
        out = cast(value, kind, device, what)
        assert out.untyped_storage().data_ptr() != value.untyped_storage().data_ptr()
        assert out.untyped_storage().nbytes() == out.nbytes
        copies.append(weakref.ref(out))
        return out

    cast = convert._cast
    monkeypatch.setattr(convert, "_cast", watched)
    model = load_wan(source, TINY)
    count = len(list(model.parameters()))
    assert len(alive) == count and mapped == {"pt": [True], "old": [False]}.get(form, [])
    if form in ("wan", "shards"):
        copies.clear()
        read = convert._Stored.read

        def alone(self, name, dtype, device):
            assert sum(each() is not None for each in copies) == 0
            return read(self, name, dtype, device)

        monkeypatch.setattr(convert._Stored, "read", alone)
        convert_wan(source, tmp_path / "out", to="diffusers")
        assert len(alive) == 2 * count == 2 * len(copies)


def test_a_loaded_model_is_ready_and_its_own(tmp_path):
    model = made()
    save_wan(model, tmp_path / "a")
    torch.save(model.state_dict(), tmp_path / "a.pt")
    before = torch.get_rng_state()
    loaded = [load_wan(str(tmp_path / "a")), load_wan(tmp_path / "a.pt", TINY)]
    assert torch.equal(torch.get_rng_state(), before)
    for path in (tmp_path / "a" / "diffusion_pytorch_model.safetensors", tmp_path / "a.pt"):
        path.write_bytes(b"\xff" * path.stat().st_size)
    for each in loaded:
        assert same(each, model) and not each.training
        assert not any(p.requires_grad or p.is_meta for p in each.parameters()) and not list(each.buffers())
