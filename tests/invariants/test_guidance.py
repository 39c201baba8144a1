"""One formula for guidance, and a model that guides itself."""

import pytest
import torch
from toys import SIZE, Spy, normal, rng, told, uniform, wild

from forcing import flow
from forcing.cond import Cond
from forcing.guidance import Guided, guide
from forcing.layout import Cache, after, full
from forcing.rollout import Plan, remember, rollout

pytestmark = pytest.mark.usefixtures("double")


def test_the_formula():
    v, u = normal(1, 1, 1, 2, 2, seed=1), normal(1, 1, 1, 2, 2, seed=2)
    assert torch.allclose(guide(v, u, 3.0), 3 * v - 2 * u, rtol=0, atol=1e-12)
    assert torch.allclose(guide(v, u, 1.0), v, rtol=0, atol=1e-12)
    assert torch.equal(guide(v, u, 0.0), u) and torch.equal(guide(v, v, 7.0), v)


@torch.no_grad()
def test_guidance_1_is_the_plain_model_at_its_price():
    spy, plain = Spy(wild()), wild()
    model = Guided(spy, 1.0)
    x, sigma, cond = normal(2, 3, *SIZE), uniform(2, 3), told(2, 3)
    assert torch.equal(model(x, sigma, cond, full(3)), plain(x, sigma, cond, full(3)))
    assert [len(call.x) for call in spy.calls] == [2]
    arguments = (list(told(2, 3).chunks(3, 1)), (2, 1, *SIZE), Plan((1.0, 0.5)))
    guided = list(rollout(model, *arguments, model.cache(2, window=3), rng()))
    alone = list(rollout(plain, *arguments, plain.cache(2, window=3), rng()))
    assert all(torch.equal(a, b) for a, b in zip(guided, alone, strict=True))
    assert {len(call.x) for call in spy.calls} == {2}


@torch.no_grad()
def test_guided_is_both_models_by_the_formula():
    model, x, sigma, cond = wild(), normal(2, 3, *SIZE), uniform(2, 3), told(2, 3)
    null = told(2, 3, seed=5)
    v = model(x, sigma, cond, full(3))
    for uncond, null_cond in ((Cond.blank, cond.blank()), (lambda _: null, null)):
        u = model(x, sigma, null_cond, full(3))
        out = Guided(model, 2.5, uncond)(x, sigma, cond, full(3))
        assert torch.allclose(out, u + 2.5 * (v - u), rtol=0, atol=1e-9)
        assert (out - v).abs().mean() > 1e-2


@torch.no_grad()
def test_a_guided_rollout_is_two_rollouts_combined_by_hand():
    model, shape, plan, conds = wild(), (2, 2, *SIZE), Plan.ode(4, 3.0), list(told(2, 6).chunks(6, 2))
    nulls = [cond.blank() for cond in conds]
    guided = Guided(model, 3.0)
    made = list(rollout(guided, conds, shape, plan, guided.cache(2, window=4, sink=1), rng()))

    draw = rng()
    told_cache, null_cache = (model.cache(2, window=4, sink=1) for _ in range(2))
    for chunk, cond, null in zip(made, conds, nulls, strict=True):
        x, levels = flow.randn(shape, draw), [*plan.rest, 0.0]
        for level, level_next in zip(levels[:-1], levels[1:], strict=True):
            sigma = torch.full((2, 2), level)
            v = model(x, sigma, cond, after(told_cache.past(2), 2))
            u = model(x, sigma, null, after(null_cache.past(2), 2))
            x = x + (level_next - level) * (u + 3.0 * (v - u))
        assert torch.allclose(chunk, x, rtol=0, atol=1e-9)
        remember(model, x, cond, told_cache)
        remember(model, x, null, null_cache)


def test_a_guided_cache_holds_both_halves():
    class Asked:
        def __call__(self, x, sigma, cond, layout):
            return x

        def cache(self, batch, *, window, sink=0):
            return Cache(batch, window=window, sink=sink)

    for scale, layers in ((3.0, 8), (1.0, 4)):
        cache = Guided(Asked(), scale).cache(4, window=5, sink=2)
        assert (len(cache.layers), cache.window, cache.sink) == (layers, 5, 2)


def test_conditions_side_by_side_must_tell_the_same():
    cond = told(1, 2)
    with pytest.raises(ValueError, match="differ"):
        cond.beside(Cond(cond.static, {}))
    both = cond.beside(cond.blank())
    assert torch.equal(both.static["text"][0], cond.static["text"][0]) and both.per_frame["action"][1].abs().max() == 0
