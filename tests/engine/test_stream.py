"""A stream yields what `rollout` yields, under either policy, whatever is told on the way, in fewer passes."""

from collections.abc import Iterator

import pytest
import torch
from toys import SIZE, TEXT, Spy, normal, rng, told, wild

from forcing.cond import Cond
from forcing.engine.passes import run
from forcing.engine.stream import Stream
from forcing.layout import Abreast, Past, after, full, teacher_forced
from forcing.recipe import Sampling
from forcing.ring import Ring
from forcing.rollout import Plan, remember, rollout

CHUNKS = 8
FOUR = (1.0, 0.75, 0.5, 0.25)
PLANS = {
    "1 step": Plan((1.0,)),
    "2 steps": Plan((1.0, 0.35), first=FOUR),
    "4 steps": Plan(FOUR),
    "euler": Plan.ode(4, 3.0),
    "unipc": Plan.ode(5, 3.0, "unipc"),
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
sizes = pytest.mark.parametrize(("chunk", "window", "sink"), [(1, 4, 0), (1, 5, 2), (3, 9, 0), (1, 2, 0)])


def conds(chunk: int, switch: int | None = None) -> Iterator[Cond]:
    """Another action with every frame; from chunk `switch` on another prompt."""
    cond, other = told(2, CHUNKS * chunk), {"text": normal(2, TEXT, seed=77)}
    for i, each in enumerate(cond.chunks(CHUNKS * chunk, chunk)):
        yield each if switch is None or i < switch else Cond(other, each.per_frame)


def plainly(model, plan, chunk, window, sink, switch=None, start=None):
    cache = model.cache(2, window=window, sink=sink)
    if start is not None:
        remember(model, *start, cache)
    return torch.cat(list(rollout(model, conds(chunk, switch), (2, chunk, *SIZE), plan, cache, rng())), 1)


class Streamed:
    """A stream with a model that makes its passes."""

    def __init__(self, model, plan, chunk, window, sink=0, guidance=1.0, **options) -> None:
        layers = model.config.layers if not isinstance(model, Spy) else model.model.config.layers
        past = Ring(layers, window=window, sink=sink, chunk=chunk)
        how = Sampling(plan, guidance, chunk, window, sink)
        self.model, self.stream = model, Stream(model, how, (2, chunk, *SIZE), past, rng(), **options)

    def next(self, cond: Cond):
        return run(self.model, self.stream.chunk(cond))

    def settle(self) -> None:
        run(self.model, self.stream.settle())

    def remember(self, x0, cond: Cond) -> None:
        run(self.model, self.stream.remember(x0, cond))


stream = Streamed


@every_plan
@sizes
@pytest.mark.parametrize("settles", ["never", "at once", "now and then"])
@torch.no_grad()
def test_a_stream_is_a_rollout(double, plan, chunk, window, sink, settles):
    model = wild()
    for switch in (None, 4):
        made = stream(model, plan, chunk, window, sink)
        out = []
        for i, cond in enumerate(conds(chunk, switch)):
            out.append(made.next(cond))
            if settles == "at once" or (settles == "now and then" and i % 3 == 1):
                made.settle()
        expected = plainly(model, plan, chunk, window, sink, switch)
        assert expected.abs().mean() > 0.1
        assert torch.allclose(torch.cat(out, 1), expected, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_stream_goes_on_from_what_is_given(double):
    model, given = wild(), (normal(2, 1, *SIZE, seed=9), told(2, 1, seed=5))
    made = stream(model, PLANS["2 steps"], 3, 9, 0)
    made.remember(*given)
    out = torch.cat([made.next(cond) for cond in conds(3)], 1)
    assert torch.allclose(out, plainly(model, PLANS["2 steps"], 3, 9, 0, start=given), rtol=0, atol=1e-9)


@torch.no_grad()
def test_positions_have_no_end():
    model, out = wild(), {}
    for end in (0, 1_000_000):
        made = stream(model, PLANS["2 steps"], 1, 5)
        made.stream.forget(end)
        out[end] = torch.cat([made.next(cond) for cond in conds(1)], 1)
    assert torch.allclose(out[0], out[1_000_000], rtol=0, atol=2e-4 * float(out[0].abs().max()))


@pytest.mark.parametrize(("name", "merged", "apart"), [("1 step", 1, 2), ("2 steps", 2, 3), ("4 steps", 4, 5)])
@torch.no_grad()
def test_passes_a_chunk(double, name, merged, apart):
    for settles, passes in ((False, merged), (True, apart)):
        spy = Spy(wild())
        made = stream(spy, PLANS[name], 1, 4, 0)
        for i, cond in enumerate(conds(1)):
            if i == 1:
                spy.calls.clear()
            made.next(cond)
            if settles:
                made.settle()
        # what the first chunk leaves unsettled falls to the second
        assert len(spy.calls) == passes * (CHUNKS - 1)


def test_times_have_no_end():
    far = 2**24
    layout = after(Past(0, far, (), {}), 3)
    assert layout.times.tolist() == [far, far + 1, far + 2]
    assert Abreast((layout, full(3)), (1, 2)).on(torch.device("cpu")).tolist() == [
        [*layout.times],
        [0, 1, 2],
        [0, 1, 2],
    ]
    for each in (layout, teacher_forced(2, 1)):
        there = each.on(torch.device("meta"))
        assert there.is_meta and there.shape == each.times.shape and there.dtype == each.times.dtype


@torch.no_grad()
def test_conditions_are_prepared_once_as_long_as_they_stay(double):
    prepared = []

    def prepare(cond: Cond) -> Cond:
        prepared.append(cond.static["text"])
        return cond

    model = wild()
    model.prepare = prepare
    made = stream(model, PLANS["1 step"], 1, 4)
    for cond in conds(1, switch=5):
        made.next(cond)
    assert len(prepared) == 2 and prepared[0] is not prepared[1]
