"""Break a line of the source on purpose, in a copy, and see a test go red.

`python tests/mutations.py [ITEM ...]` prints a table of what was broken and which test noticed. It exits with 1 if a
mutant survives, or if a line to break is no longer there.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    """In `file` (below src/forcing) `old` becomes `new`; the tests in `seen_by` (below tests) should notice."""

    item: int
    file: str
    old: str
    new: str
    seen_by: str


def group(item: int, seen_by: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    return [Mutation(item, file, old, new, seen_by) for file, old, new in changes]


OLD_SEED = """\
    import zlib
    state = (zlib.crc32(name.encode()) << 31) ^ zlib.adler32(name[::-1].encode())
    return torch.Generator(device).manual_seed(state)
"""
SEED = """\
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))
"""

MUTATIONS = [
    *group(
        1,
        "invariants/test_teacher_forcing.py",
        ("layout.py", "noisy = torch.cat([before, same], 1)", "noisy = torch.cat([before | same, same], 1)"),
        ("layout.py", "Layout(torch.cat([times, times])", "Layout(torch.cat([times, times + frames])"),
        ("layout.py", "_times(past.end, past.end + frames)", "_times(0, frames)"),
        ("layout.py", "table.repeat_interleave(queries, 0)", "table.repeat(queries, 1)"),
        ("cond.py", "torch.cat([value, value], 1)", "torch.cat([value, value.roll(1, 1)], 1)"),
        ("stages/diffusion.py", "torch.cat([torch.zeros_like(sigma), sigma], 1)", "torch.cat([sigma, sigma], 1)"),
        ("rollout.py", "torch.zeros(x0.shape[:2], device=x0.device)", "torch.ones(x0.shape[:2], device=x0.device)"),
        ("backbones/tiny.py", "angles(times, h", "angles(0 * times, h"),
    ),
    *group(
        2,
        "invariants/test_teacher_forcing.py",
        ("layout.py", "number[:, None] >= number)", "torch.arange(frames)[:, None] >= torch.arange(frames))"),
        ("layout.py", "before, same = number[:, None] > number,", "before, same = number[:, None] >= number,"),
    ),
    *group(
        3,
        "invariants/test_causality.py",
        ("layout.py", "torch.zeros_like(same)], 1)", "torch.ones_like(same)], 1)"),
        ("layout.py", "torch.cat([before | same, ", "torch.cat([torch.ones_like(same), "),
        ("layout.py", "noisy = torch.cat([before, same], 1)", "noisy = torch.cat([before, before | same], 1)"),
        ("layout.py", "number[:, None] >= number)", "number[:, None] + 1 >= number)"),
        ("backbones/tiny.py", "return told\n", "return told + 1e-6 * told.mean(1, keepdim=True)\n"),
    ),
    *group(
        4,
        "invariants/test_cache.py",
        ("layout.py", "held[: self.sink] + held[self.sink + frames :]", "held[frames:]"),
        ("layout.py", "held[: self.sink] + held[self.sink + frames :]", "held[:-frames]"),
        (
            "layout.py",
            "split = [each.unflatten(1, (asked or frames, -1)).unbind(1)[:frames]",
            "split = [each.clone().unflatten(1, (asked or frames, -1)).unbind(1)[:frames][:1] * frames",
        ),
        ("layout.py", "max(0, self.held + room - self.window)", "max(0, self.held - self.window)"),
        ("layout.py", "self.end += frames", "self.end = self.held"),
        ("layout.py", "_times(past.end, past.end + frames)", "_times(past.held, past.held + frames)"),
        ("layout.py", "if room < 1 or room + self.sink > self.window:", "if room < 1 or room > self.window:"),
        ("layout.py", "not 0 <= sink < window", "not 0 <= sink <= window"),
        ("layout.py", "reading, self._reading = self._reading, None", "reading = self._reading"),
        ("layout.py", "if self._reading is None or not self._reading.fresh:", "if self._reading is None:"),
    ),
    *group(
        5,
        "invariants/test_rollout.py invariants/test_cache.py",
        ("layout.py", "self.held, self.end, tuple(self.layers), {}", "self.held, self.end, self.layers, {}"),
        ("rollout.py", "        if detach:\n", "        if False:\n"),
        (
            "rollout.py",
            "            remember(model, x0, cond, cache)",
            "            remember(model, x0.detach(), cond, cache)",
        ),
        ("rollout.py", "grad and level == plan.rest[-1]", "grad"),
        ("rollout.py", "grad and level == plan.rest[-1]", "level == plan.rest[-1]"),
    ),
    *group(
        6,
        "invariants/test_guidance.py",
        ("guidance.py", "return v_uncond + scale *", "return v_cond + scale *"),
        ("guidance.py", "        if self.scale == 1:\n", "        if self.scale == 0:\n"),
        ("guidance.py", "batch if self.scale == 1 else 2 * batch", "batch"),
        ("guidance.py", "cond.beside(self.uncond(cond))", "self.uncond(cond).beside(cond)"),
        ("guidance.py", "cond.beside(self.uncond(cond))", "cond.beside(cond.blank())"),
        (
            "rollout.py",
            "x = flow.euler(x, v, at(level), at(after_it))",
            "x = flow.to_x0(x, v, at(level))",
        ),
    ),
    *group(
        7,
        "invariants/test_flow.py invariants/test_rollout.py",
        ("flow.py", "return eps - x0", "return x0 - eps"),
        ("flow.py", "(1 - s) * x0 + s * eps", "s * x0 + (1 - s) * eps"),
        ("flow.py", "(x - _beside(sigma) * v)", "(x - v)"),
        ("flow.py", "_beside(sigma_next - sigma)", "_beside(sigma - sigma_next)"),
        ("flow.py", "(1 + (factor - 1) * sigma)", "(1 + factor * sigma)"),
        ("flow.py", "torch.linspace(1, 0, steps + 1)", "torch.linspace(1, 0, steps)"),
        ("flow.py", "generator=rng, device=rng.device)", "device=rng.device)"),
        ("rollout.py", "if plan.fresh:", "if not plan.fresh:"),
        (
            "rollout.py",
            "tuple(flow.grid(steps, shift)[:-1].tolist())",
            "tuple(flow.grid(steps + 1, shift)[:-2].tolist())",
        ),
    ),
    *group(
        8,
        "invariants/test_consistency.py",
        ("stages/consistency.py", "torch.randint(self.steps, ", "torch.randint(self.steps - 1, "),
        (
            "stages/consistency.py",
            "(clips, 1), generator=rng, device=rng.device).expand(-1, frames)",
            "(clips, frames), generator=rng, device=rng.device)",
        ),
        (
            "stages/consistency.py",
            "(clips, 1), generator=rng, device=rng.device).expand(-1, frames)",
            "(1, 1), generator=rng, device=rng.device).expand(clips, frames)",
        ),
        ("stages/consistency.py", "grid[i], grid[i + 1]", "grid[i], grid[i]"),
        ("stages/consistency.py", "flow.euler(x, v, sigma, sigma_next)", "flow.euler(x, v, sigma, sigma)"),
        ("stages/consistency.py", '"student_ema", x_next, sigma_next, batch)', '"student_ema", x_next, sigma, batch)'),
        ("stages/consistency.py", '"student_ema", x_next, sigma_next, batch)', '"student", x_next, sigma_next, batch)'),
        ("stages/consistency.py", "lambda _: batch.uncond.twice()", "lambda _: batch.cond.twice()"),
        ("stages/consistency.py", 'Guided(models["teacher"], self.guidance,', 'Guided(models["teacher"], 1.0,'),
        ("stages/consistency.py", "with torch.no_grad():", "with torch.enable_grad():"),
        ("stages/consistency.py", ".to(rng.device)\n", ".to(rng.device).to(batch.latents.dtype)\n"),
        ("stages/consistency.py", "[i[:, 0] == self.steps - 1]", "[i[:, 0] == self.steps - 2]"),
        (
            "stages/consistency.py",
            "sigma, batch.latents, batch.cond, self.chunk)\n            x_next",
            "sigma, x, batch.cond, self.chunk)\n            x_next",
        ),
    ),
    *group(
        9,
        "invariants/test_dmd.py invariants/test_rollout.py",
        ("stages/dmd.py", "return (fake - real) /", "return (real - fake) /"),
        ("stages/dmd.py", ".mean((1, 2, 3, 4), keepdim=True)", ".mean()"),
        ("stages/dmd.py", "scale.clamp(min=1e-6)", "scale.clamp(min=1.0)"),
        ("stages/dmd.py", "return 0.5 * (video", "return (video"),
        ("stages/dmd.py", "(video - towards).detach()", "(video + towards).detach()"),
        (
            "stages/dmd.py",
            "critic(x, sigma, batch.cond, everything)",
            "Guided(critic, self.guidance, lambda _: batch.uncond)(x, sigma, batch.cond, everything)",
        ),
        ("stages/dmd.py", 'models.get("critic_ema", models["critic"])', 'models["critic"]'),
        ("stages/dmd.py", "start=self.critic_first)", "start=0)"),
        ("stages/dmd.py", 'Guided(models["teacher"], self.guidance,', 'Guided(models["teacher"], 1.0,'),
        ("stages/dmd.py", "self.plan.cut(rng)", "self.plan"),
        ("stages/dmd.py", ".clamp(self.lowest, self.highest)", ""),
        ("stages/dmd.py", "x, target = noised(video, sigma, rng)", "x, target = noised(batch.latents, sigma, rng)"),
        (
            "stages/dmd.py",
            "        with torch.no_grad():\n            video = ",
            "        with torch.enable_grad():\n            video = ",
        ),
        ("rollout.py", "begins=cache.end == 0", "begins=True"),
        ("rollout.py", "begins=cache.end == 0", "begins=False"),
        (
            "rollout.py",
            "levels[: 1 + int(torch.randint(len(levels), ",
            "levels[: 1 + int(torch.randint(max(1, len(levels) - 1), ",
        ),
    ),
    *group(
        10,
        "train/test_loop.py",
        ("train/loop.py", "state.step >= update.start and ", ""),
        ("train/state.py", "old.lerp_(new, 1 - decay)", "old.lerp_(new, decay)"),
        ("train/state.py", 'self.models.get(role + "_ema", self.models[role])', "self.models[role]"),
        ("train/loop.py", "    if update.role in state.ema:\n", "    if False:\n"),
        ("train/state.py", "model.requires_grad_(role in optims)", "model.requires_grad_(True)"),
    ),
    *group(
        11,
        "train/test_resume.py train/test_checkpoint.py train/test_loop.py",
        ("train/checkpoint.py", 'role.removesuffix("_ema") in state.optimizers', "role in state.optimizers"),
        ("train/checkpoint.py", '{"state": entries, "param_groups"', '{"state": {}, "param_groups"'),
        ("train/checkpoint.py", "state.step, state.recent = ", "_, state.recent = "),
        ("train/checkpoint.py", "state.step, state.recent = ", "state.step, _ = "),
        ("train/checkpoint.py", "    if different:\n", "    if False:\n"),
        ("train/checkpoint.py", "except Exception as error:", "except FileNotFoundError as error:"),
        ("train/checkpoint.py", "[:-keep]", "[: -keep - 1]"),
        ("train/checkpoint.py", "    files.sweep(folder)\n", "    pass\n"),
        ("train/log.py", 'if line["step"] <= step]', "]"),
        ("train/log.py", "            break\n", "            raise\n"),
        ("train/log.py", "            signal.signal(number, handler)\n", "            pass\n"),
        ("train/log.py", "            raise KeyboardInterrupt\n", "            pass\n"),
        ("train/run.py", "or done or stop:", "or done:"),
        ("train/run.py", "return not stop\n", "return interrupt.asked is None\n"),
        ("train/run.py", "if state.step < recipe.steps:\n            raise", "if interrupt.asked:\n            raise"),
        ("train/loop.py", 'seeded(seed, "step", state.step, n)', 'seeded(seed, "step", n)'),
        ("train/loop.py", 'seeded(seed, "step", state.step, n)', "torch.default_generator"),
        ("data/clips.py", 'rng = seeded(self.seed, "withhold", step, update)', "rng = torch.default_generator"),
    ),
    *group(
        12,
        "invariants/test_rollout.py",
        ("rollout.py", "for cond in conds:", "for cond in list(conds):"),
        ("rollout.py", "        yield x0  # ship the frames first, then settle them into the past\n", ""),
        (
            "layout.py",
            "_times(past.end, past.end + frames), past=past, mute=mute)",
            "_times(past.end, past.end + frames), mute=mute)",
        ),
        (
            "world.py",
            "            with torch.no_grad():\n                chunk",
            "            if True:\n                chunk",
        ),
        (
            "world.py",
            "            yield chunk\n",
            "            torch.set_grad_enabled(False)\n            yield chunk\n",
        ),
        ("world.py", "remember(model, clean[:, first:stop], told.frames(first, stop), cache)", "pass"),
    ),
    *group(
        13,
        "invariants/test_recipe.py invariants/test_order.py invariants/test_clips.py invariants/test_linear_codec.py "
        "invariants/test_world_folder.py",
        ("recipe.py", "    if unknown:\n", "    if False:\n"),
        ("recipe.py", "    if not found:\n", "    if not found and False:\n"),
        ("recipe.py", "return tuple(parse(part, item)", "return list(parse(part, item)"),
        ("recipe.py", "            return float(data)\n", "            return data\n"),
        ("data/order.py", "default_rng([seed, int(epoch)])", "default_rng([seed])"),
        ("data/order.py", "default_rng([seed, int(epoch)])", "default_rng([seed, step])"),
        ("data/order.py", SEED, OLD_SEED),
        ("data/clips.py", "[s : s + self.frames - 1]", "[s + 1 : s + self.frames]"),
        ("data/clips.py", "torch.cat([none, told.float()], 1)", "torch.cat([told.float(), none], 1)"),
        ("data/clips.py", "draw >= self.withhold.actions + self.withhold.everything", "draw >= self.withhold.actions"),
        ("data/clips.py", "named = (draw >=", "named = (torch.rand(self.batch, generator=rng) >="),
        ("data/clips.py", "starts = [len(latents) - frames + 1", "starts = [len(latents) - frames"),
        ("codecs/linear.py", ".round().clamp(0, 255)", ".clamp(0, 255)"),
        ("codecs/linear.py", "[(high, 0), (0, wide), (0, 0)]", "[(0, high), (0, wide), (0, 0)]"),
        ("codecs/linear.py", "axes = axes[:keep].T", "axes = axes[: keep - 1].T"),
        ("codecs/linear.py", '"scale": repr(self.scale)', '"scale": f"{self.scale:.3f}"'),
        ("world.py", "if missing:\n", "if False:\n"),
        ("world.py", "with files.whole(path) as draft:", "for draft in [path]:"),
        ("world.py", "            files.remove(path)\n", ""),
    ),
    *group(
        14,
        "invariants/test_randomness.py",
        ("flow.py", "generator=rng, device=rng.device)", "device=rng.device)"),
        ("data/order.py", "np.random.default_rng([seed, int(epoch)]).permutation", "np.random.permutation"),
        ("stages/consistency.py", "generator=rng, device=rng.device).expand", "device=rng.device).expand"),
    ),
    *group(
        15,
        "train/test_gates.py",
        ("train/gate.py", "not verdict.control - 1 >= gate.control", "verdict.control - 1 < gate.control"),
        ("train/gate.py", "not verdict.quality <= gate.quality", "verdict.quality > gate.quality"),
        ("train/gate.py", "* (verdict.control_before - 1)", "* verdict.control_before"),
        ("train/gauge.py", "at, eps) / max(true, 1e-12)", "at, eps) * max(true, 1e-12)"),
        ("pipeline.py", "        self._pass_gate(world, data)\n", ""),
        ("pipeline.py", "        self._pass_gate(world, lambda: data)\n", ""),
        ("pipeline.py", "self.finished(name, data) or self.train(name, data())", "self.train(name, data())"),
        ("pipeline.py", "        check(name, start, gate, verdict)\n", ""),
        ("pipeline.py", "        if stale:\n", "        if False:\n"),
        ("train/gate.py", "level(before.recipe.stage)", "level(world.recipe.stage)"),
        ("train/gate.py", "torch.zeros_like(value) for name, value in told", "value for name, value in told"),
        ("train/gate.py", "return frechet(features.of(np.asarray(made)), ", "return frechet(features.of(real), "),
        ("train/gate.py", "replace(own, guidance=before.recipe.sampling.guidance)", "before.recipe.sampling"),
        ("train/gauge.py", "return FEW_STEPS if", "return MANY_STEPS if"),
        ("train/run.py", "if state.step // recipe.log % 2 or done:", "if state.step % (10 * recipe.log) == 0 or done:"),
    ),
    *group(
        16,
        "test_record.py",
        ("envs/gym.py", "default_rng([spec.seed, 0, index])", "default_rng()"),
        (
            "envs/gym.py",
            "elif key is None or rng.random() >= spec.hold:",
            "elif key is None or rng.random() < spec.hold:",
        ),
        ("envs/gym.py", "frames.append(env.step(kept[key]))\n", "frames.append(env.step(kept[key - 1]))\n"),
        ("envs/gym.py", "np.array([*actions, -1], np.int64)", "np.array([-1, *actions], np.int64)"),
        ("envs/gym.py", 'sha256": checksum(path)}', 'sha256": ""}'),
        ("envs/gym.py", '"heldout" if _held_out(', '"heldout" if not _held_out('),
        ("envs/gym.py", "shift = index // every if math.gcd(every, envs) > 1 else 0", "shift = 0"),
        ("data/shards.py", 'if split in (None, row["split"])]', "]"),
        ("data/shards.py", "if verify and checksum(path) !=", "if False and checksum(path) !="),
        (
            "data/shards.py",
            'span = slice(row["start"], row["start"] + row["length"])',
            'span = slice(0, row["length"])',
        ),
    ),
    *group(
        17,
        "test_truth.py",
        ("eval/truth.py", "moved = (actions == FORWARD) & _PASSABLE[", "moved = (actions == FORWARD) | _PASSABLE["),
        ("eval/truth.py", "turns = np.where(actions == RIGHT, 1, 0)", "turns = np.where(actions == RIGHT, 3, 0)"),
        ("eval/truth.py", "when[place] >= now - memory, tile[place]", "when[place] >= 0, tile[place]"),
        ("eval/truth.py", "        last = now - 1\n", "        last = now\n"),
        ("eval/truth.py", "ids[~possibly] = UNSEEN\n", "ids[~possibly] = FLOOR\n"),
    ),
    *group(
        18,
        "test_eval.py",
        ("eval/tiles.py", "known & made.valid & (made.ids == ids)", "known & made.valid"),
        ("eval/tiles.py", "known & made.valid & (made.ids == ids)", "known & (made.ids == ids)"),
        ("eval/tiles.py", "known & (ids != UNSEEN) & (ids != AGENT)", "known"),
        ("eval/tiles.py", "known if determined else ~known)", "~known if determined else known)"),
        (
            "eval/scores.py",
            "judged = against_truth(self._views(frames), ",
            "judged = against_truth(self._views(footage.frames), ",
        ),
        ("eval/scores.py", "part = slice(max(1, start), None)", "part = slice(0, 1)"),
        ("eval/scores.py", '"motion_free": _over(motion(clips), motion(real)),', '"motion_free": 1.0,'),
        ("eval/scores.py", "self._apart(each[:, b]) for b in buckets)", "diversity(each[:, b]) for b in buckets)"),
        ("eval/distribution.py", "np.abs(np.diff(", "(np.diff("),
        (
            "eval/distribution.py",
            "weight = 2 * np.arange(n, dtype=np.float32) - n + 1",
            "weight = np.arange(n, dtype=np.float32)",
        ),
        ("eval/distribution.py", "np.trace(cov_b) - 2 * overlap", "np.trace(cov_b) - overlap"),
        (
            "eval/distribution.py",
            "np.concatenate([small[:, :-1], small[:, 1:]], -1)",
            "np.concatenate([small[:, :-1], small[:, :-1]], -1)",
        ),
    ),
    *group(
        19,
        "test_eval_run.py",
        ("eval/verdict.py", 'if BY_NAME[metric].better == "low" else', 'if BY_NAME[metric].better == "high" else'),
        ("eval/verdict.py", "passed &= mine[1] < theirs[0]", "passed &= mine[0] < theirs[1]"),
        (
            "eval/verdict.py",
            'lambda first, last: last >= 0.95 * first),\n        ("valid_free"',
            'lambda first, last: True),\n        ("valid_free"',
        ),
    ),
    *group(
        20,
        "test_files.py",
        ("files.py", "    finally:\n        remove(draft)", "    finally:\n        pass"),
        ("files.py", ".{os.getpid()}", ""),
        ("files.py", "        os.replace(draft, path)\n", "        remove(path)\n        os.replace(draft, path)\n"),
        ("files.py", "if error.filename in (None, str(draft)):", "if False:"),
        ("files.py", "allow_nan=False", "allow_nan=True"),
    ),
    *group(
        20,
        "test_cli.py",
        ("cli/options.py", "with redirect_stderr(said):", "if True:"),
        ("cli/options.py", 'if near else f"see', 'if False else f"see'),
    ),
    *group(
        21,
        "parity/test_wan_golden.py parity/test_wan.py",
        (
            "backbones/wan.py",
            "return F.linear(patches.to(self.weight.dtype)",
            "return F.linear(patches.flip(-1).to(self.weight.dtype)",
        ),
        ("backbones/wan.py", '"b f (h w) (p q c) -> b f c (h p) (w q)"', '"b f (h w) (c p q) -> b f c (h p) (w q)"'),
        ("backbones/wan.py", "torch.cat([angle.cos(), angle.sin()], -1)", "torch.cat([angle.sin(), angle.cos()], -1)"),
        (
            "backbones/wan.py",
            "shift1, scale1, gate1, shift2, scale2, gate2 =",
            "shift1, scale1, gate1, scale2, shift2, gate2 =",
        ),
        ("backbones/wan.py", "x = x + self.cross_attn(self.norm3(x), text)", "x = x + self.cross_attn(x, text)"),
        (
            "backbones/wan.py",
            "(self.norm_q(self.q(x)), *text.unbind(1))",
            "(self.q(x), *text.unbind(1))",
        ),
        ("backbones/wan.py", "(0, 0, 0, most - text.shape[1])", "(0, 0, most - text.shape[1], 0)"),
        (
            "backbones/wan.py",
            "return self.head(_modulated(x, *told.unbind(2)))",
            "return self.head(_modulated(x, *told.flip(2).unbind(2)))",
        ),
        ("backbones/wan.py", "_sinusoid(1000 * sigma.double()", "_sinusoid(1000 * sigma.bfloat16().double()"),
        ("backbones/wan.py", "with torch.autocast(sigma.device.type, enabled=False):", "if True:"),
        ("backbones/wan.py", "return any(part in name for part in _FLOAT32)", 'return "norm" in name'),
        ("backbones/rope.py", "dtype=torch.float64, device=where)", "device=where)"),
        ("backbones/wan.py", "or text.shape[1] > most:", "or False:"),
        ("backbones/wan.py", "checkpoint(block, tokens, modulation,", "checkpoint(block, tokens.detach(), modulation,"),
        (
            "backbones/wan.py",
            "_modulated(x, shift1, scale1), turn, layout",
            "_modulated(x, shift1, scale1), turn.conj(), layout",
        ),
        (
            "backbones/attention.py",
            "if seen:\n            yield start, stop",
            "if True:\n            yield start, stop",
        ),
        ("backbones/attention.py", "slice(first * tokens, last * tokens)", "slice(first * tokens, last * tokens - 1)"),
        ("backbones/attention.py", "return grouped(q, k, v, table)", "return _sdpa(q, k, v)"),
        ("backbones/rope.py", ".to(kind.to_complex())", ".to(torch.complex64)"),
        ("flow.py", "levels = grid(1000, factor)[:-1]", "levels = grid(1000, factor)"),
        ("flow.py", "- 0.5).square()) - least) /", "- 0.5).square())) /"),
    ),
    *group(
        22,
        "parity/test_unipc.py",
        ("unipc.py", "x = _moved(self._points, sigma, self._order, x0)", "pass"),
        ("unipc.py", "self._order = len(self._points)", "self._order = 1"),
        ("unipc.py", "rho * past + (first - rho)", "rho * past + (1 - rho)"),
        ("unipc.py", "bend = 0.5 * past", "bend = 0.6 * past"),
        ("unipc.py", "second = 2 * (first * whole / -h - 0.5) / whole", "second = (first * whole / -h - 0.5) / whole"),
        ("rollout.py", 'elif plan.solver == "unipc":', "elif False:"),
    ),
    *group(
        23,
        "train/test_compute.py",
        ("train/compute.py", "return Loss(value / self.pieces, metrics)", "return Loss(value, metrics)"),
        ("train/compute.py", ".chunk(self.pieces)[piece]", ".chunk(self.pieces)[0]"),
        ("train/compute.py", 'enabled=self.precision == "bfloat16"', "enabled=True"),
        ("train/compute.py", "update.every,\n                update.start,", "1,\n                0,"),
        ("train/compute.py", 'if name == "auto":', "if False:"),
    ),
    *group(
        24,
        "test_wan_cli.py",
        ("world.py", 'static={"text": self.text.null(len(text)).to(text)}', 'static={"text": torch.zeros_like(text)}'),
        ("world.py", "range(frames % chunk or chunk, frames + 1, chunk)", "range(chunk, frames + 1, chunk)"),
        ("train/run.py", "if how.optim is None and how.ema is None:", "if True:"),
        ("train/material.py", "if not self.latents.has_latents and not isinstance(recipe.stage, DMD):", "if False:"),
        ("cli/shot.py", "if at <= picture:", "if at < picture:"),
        ("cli/shot.py", "max(0, 1 + time * (latent - 1))", "time * latent"),
        ("cli/shot.py", "[: self.frames - made]", ""),
        ("cli/shot.py", "if files.mark([path]) != self.mark:", "if False:"),
        ("cli/shot.py", "if not world.causal and (self.start is not None or self.switches):", "if False:"),
        ("cli/film.py", "if before.source.get(name) != mark]", "if False]"),
        ("cli/film.py", "touch(exist_ok=False)", "touch()"),
        ("cli/film.py", "wan.PLANS.get(steps) or Plan(wan.levels(steps))", "Plan(wan.levels(steps))"),
        ("cli/film.py", "world.kit = replace(kit_of(world), negative=options.negative)", "pass"),
        ("cli/models.py", "world.kit = replace(kit_of(world), pipeline=pipeline)", "pass"),
        ("cli/distil.py", 'if where.start is not None and start == recipe.roles["student"].start:', "if False:"),
        ("cli/distil.py", "if different:", "if False:"),
        ("data/videos.py", 'ImageOps.fit if fit == "crop" else ImageOps.pad', "ImageOps.pad"),
        ("recipes/wan.py", "replace(slow, lr=4e-7, adam_lr=4e-7)", "slow"),
        ("recipes/wan.py", "2: Plan(levels(2), first=levels(4))", "2: Plan(levels(2))"),
    ),
    *group(
        25,
        "parity/test_wan_vae.py parity/test_taehv.py",
        ("codecs/wan_vae.py", "- self._mean) / self._std", "- self._mean) * self._std"),
        ("codecs/wan_vae.py", "first_chunk=not memory", "first_chunk=False"),
        ("codecs/stream.py", "return pictures.clamp_(self.black, 1)", "return pictures"),
        ("codecs/stream.py", "return replace(self)", "return self"),
    ),
    *group(
        26,
        "parity/test_wan_convert.py test_convert_files.py",
        ("convert/names.py", '"norm3": "norm2"', '"norm3": "norm3"'),
        ("convert/source.py", '"generator_ema generator model"', '"generator generator_ema model"'),
        ("convert/source.py", "weights_only=True", "weights_only=False"),
        ("convert/source.py", "partial(tensors.pop, key)", "partial(tensors.get, key)"),
        ("convert/sizes.py", "if dim % HEAD:", "if dim % 2:"),
        ("convert/wan.py", "config or sizes.within(path) or sizes.beside", "config or sizes.beside"),
        ("convert/wan.py", "return model.eval()", "return model.train()"),
    ),
    *group(
        27,
        "parity/test_umt5.py test_fixture.py",
        ("text/umt5.py", "html.unescape(html.unescape(ftfy.fix_text(prompt)))", "html.unescape(ftfy.fix_text(prompt))"),
        ("text/umt5.py", "[0, : int(mask.sum())]", "[0]"),
        ("text/umt5.py", "attention_mask=mask", "attention_mask=None"),
        ("text/umt5.py", 'if told["missing_keys"]:', "if False:"),
        ("fixture.py", "flow_shift=5.0", "flow_shift=3.0"),
    ),
    *group(
        28,
        "data/test_latents.py data/test_encode.py data/test_lmdb.py",
        ("data/latents.py", "indices(self.seed * 1000 + update", "indices(self.seed * 1000"),
        ("data/latents.py", "if verify and checksum(path)", "if False and checksum(path)"),
        ("data/videos.py", "ticks += nearer", "ticks += 1"),
        ("data/videos.py", "if end < _WHOLE * claimed:", "if False:"),
        ("data/lmdb.py", "row[-1]", "row[0]"),
        ("data/captions.py", "utf-8-sig", "utf-8"),
    ),
    *group(
        29,
        "invariants/test_ring.py engine/test_stream.py",
        ("layout.py", "see[:chunk, past.held + chunk :] = False", "pass"),
        ("layout.py", "see[chunk:, list(past.leaving)] = False", "pass"),
        ("layout.py", "if asked is not None and frames < asked:", "if False:"),
        ("ring.py", "i - self.sink if i < self.held else i for i in leaving", "i for i in leaving"),
        (
            "ring.py",
            "del at[self.sink : self.sink + max(0, len(at) - self.most)]",
            "del at[: max(0, len(at) - self.most)]",
        ),
        ("ring.py", "self._store[:, :, :, new].copy_(self._store[:, :, :, old])", "pass"),
        ("ring.py", "if new != last:", "if False:"),
        ("layout.py", "see, past, mute=chunk)", "see, past, mute=0)"),
        ("backbones/attention.py", "table = table[frames - q.shape[1] // tokens :]", "pass"),
        ("backbones/tiny.py", "turn[..., first:, :])", "turn[..., : len(turn) - first, :])"),
        (
            "backbones/tiny.py",
            "cond.per_frame if SIGMAS in cond.per_frame else self.embed(sigma)",
            "cond.per_frame if SIGMAS in cond.per_frame else self.embed(0 * sigma)",
        ),
        ("engine/stream.py", "before.static is cond.static", "True"),
        (
            "engine/stream.py",
            "begins = self._waiting is None and self.past.end == self._origin",
            "begins = self.past.end == self._origin",
        ),
        ("engine/stream.py", "yield from self.settle()  # told", "self._waiting = None  # told"),
        ("guidance.py", "all(one[name] is other[name] for name in one)", "False"),
        ("engine/stream.py", "self._waiting, self._origin = None, end", "self._waiting = None"),
        ("backbones/rope.py", "dtype=torch.float64, device=where)", "device=where)"),
        ("layout.py", "torch.arange(start, stop, dtype=torch.float64", "torch.arange(start, stop, dtype=torch.float32"),
    ),
    *group(
        30,
        "engine/test_session.py",
        ("engine/stream.py", "clean.shape[1] == self.how.chunk and", ""),
        ("engine/stream.py", "key = levels, sigma.shape[1]", 'key = "any"'),
        ("engine/stream.py", "cond = cond.beside(self.uncond(cond))", "cond = cond.beside(cond)"),
        ("engine/stream.py", "self.past.end if at is None else at", "self.past.end"),
        ("engine/session.py", "told.switch if before is not None and before[0] != told.prompt else None", "None"),
        ("engine/session.py", "self.random.set_state(random)\n                self.asleep", "self.asleep"),
        ("engine/session.py", "self.asleep = True\n            raise", "pass\n            raise"),
        ("engine/session.py", "self.random.set_state(chunk.random)", "pass"),
        ("engine/session.py", "other.random.set_state(self.random.get_state())", "pass"),
        ("engine/session.py", "other.stream.become(self.stream)", "pass"),
        ("engine/session.py", "self.history.recached.append(", "("),
        ("engine/session.py", "(0, self.setup.projector()) if cut", "(self.place, self.setup.projector()) if cut"),
        ("engine/session.py", "(0, self.setup.projector()) if cut", "(0, self.decode) if cut"),
        ("engine/session.py", "self.decode(chunk.latents)", "pass"),
        ("engine/session.py", "self.history.fork(), self.decode.fork(),", "self.history.fork(), self.decode,"),
        (
            "engine/session.py",
            "self.history.held(self.setup.how.window, recache)",
            "self.history.held(self.setup.how.window)",
        ),
        ("engine/session.py", "self.place = last.place + last.frames", "pass"),
        ("engine/session.py", "if 0 < frame < self.given:", "if False:"),
        ("engine/session.py", "torch.cat(given, 1) if frame < self.given else None", "None"),
        ("engine/session.py", "history = History(self.setup.keep, self.setup.how.sink)\n", "history = self.history\n"),
        ("engine/session.py", "self._texts.popitem(last=False)", "break"),
        ("engine/session.py", "if prompt not in self._texts:", "if True:"),
        (
            "engine/session.py",
            "latents = None if start is None else self._encoded(start)\n        self.setup = self.setup.by(plan)",
            "self.setup = self.setup.by(plan)\n        latents = None if start is None else self._encoded(start)",
        ),
        ("guidance.py", "known[1] != shapes:", "True:"),
        ("engine/history.py", "if chunk.scene == scene]", "]"),
        ("engine/history.py", "if chunk.scene >= oldest.scene]", "]"),
        ("engine/history.py", "self.recached.pop(0)", "break"),
        ("engine/session.py", "self.ring.clear()\n        shape", "shape"),
        ("ring.py", "self._store = store.clone()", "self._store = store"),
        ("engine/history.py", "if chunk.frame < last.frame else chunk", "if False else chunk"),
        ("engine/history.py", "if frames <= 0 or chunk.place < since:", "if frames <= 0:"),
        (
            "engine/history.py",
            "if each.frame < chunk.frame]\n            self.recached",
            "]\n            self.recached",
        ),
        (
            "engine/history.py",
            "other.chunks = self.chunks.copy() if",
            "other.chunks = self.chunks if",
        ),
    ),
    *group(
        31,
        "engine/test_schedule.py",
        ("backbones/attention.py", "for q, k, v, own in apart]", "for q, k, v, own in reversed([*apart])]"),
        (
            "layout.py",
            "for one, clips in zip(self.layouts, self.clips, strict=True)",
            "for one, clips in zip(self.layouts[:1] * 9, self.clips)",
        ),
        ("engine/passes.py", "(*self.x.shape[1:], self.layout.mute, static)", "(static,)"),
        ("engine/schedule.py", "max(seat.due + self.period, self.clock())", "seat.due + self.period"),
        ("engine/schedule.py", "max(seat.due + self.period, self.clock())", "self.clock() + self.period"),
        ("engine/schedule.py", "min(self.period, MARGIN * seat.usual)", "self.period"),
        ("engine/schedule.py", "sorted(settling or ready, key=lambda seat: seat.due)", "settling or ready"),
        (
            "engine/schedule.py",
            "[_alone(self.model, each) for each in passes] if sharing > 1 else [failed]",
            "[failed] * len(passes)",
        ),
        ("engine/schedule.py", "else seat.credit - 1", "else seat.credit"),
        ("engine/schedule.py", "seat.paused = paused", "pass"),
        (
            "engine/schedule.py",
            "ring, seat.holds = seat.session.sleep(), False",
            "ring, seat.holds = seat.session.ring, False",
        ),
        ("engine/schedule.py", "self._give_back(seat)\n\n    def pause", "pass\n\n    def pause"),
        ("engine/schedule.py", 'if self.policy == "eager" or not ready:', "if False:"),
        ("engine/schedule.py", "seat.work is None and seat is not wants", "seat is not wants"),
        ("engine/reel.py", "if not finite(latents):", "if False:"),
        ("engine/schedule.py", "key=lambda seat: (seat.wants, -seat.due)", "key=lambda seat: (seat.wants, seat.due)"),
        ("engine/schedule.py", "key=lambda seat: (seat.wants, -seat.due)", "key=lambda seat: -seat.due"),
        ("engine/schedule.py", "max(seat.due, self.clock()) if seat.paused and not paused else seat.due", "seat.due"),
        ("engine/schedule.py", "seat.reel, seat.due = None, self.clock()", "seat.reel = None"),
        ("engine/schedule.py", "seat.wants and seat.reel is None and self._release(seat) <= now", "seat.wants"),
        ("engine/schedule.py", "*(POLL for seat in busy if seat.reel is not None)", ""),
        ("engine/schedule.py", "if not reel.fine:", "if False:"),
        ("engine/schedule.py", "            else:\n                begins = False", ""),
        ("engine/schedule.py", "self._spare[:1] if graphs is None", "() if graphs is None"),
        ("engine/schedule.py", "            self._warm_abreast()", "            pass"),
        ("engine/schedule.py", '(("merge", 2), ("eager", 4))', '(("eager", 4),)'),
        ("engine/passes.py", "self._static = own, (made := _joined(static))", "made = _joined(static)"),
        ("engine/passes.py", "one is not other for one, other in zip(own, known, strict=True)", "False for _ in own"),
    ),
    *group(
        31,
        "engine/test_turns.py",
        ("engine/schedule.py", "        while seat.asked is not None:", "        while False:"),
        ("engine/schedule.py", "        self._seat(session)  # which", "        pass  # which"),
        ("engine/schedule.py", "            self._spare.append(ring)\n            raise", "            raise"),
        ("engine/schedule.py", "happened, self._late = self._late, []", "happened = []"),
        ("engine/schedule.py", "if self._late or any(", "if any("),
        ("engine/schedule.py", "            ring.become(session.ring)\n", ""),
        ("engine/schedule.py", "ring = None if session.asleep else self._ring(None)", "return self._seated(session)"),
        ("engine/schedule.py", "seat.leave()\n        seat.reel", "seat.reel"),
        ("engine/schedule.py", "(begins or settling) and self._is_open(seat):", "(begins or settling):"),
        ("engine/schedule.py", "if seat.asked is not None and self._is_open(seat)]", "]"),
        ("engine/schedule.py", "and getgeneratorstate(work) != GEN_RUNNING", ""),
        ("engine/session.py", "if self.generation == generation:", "if True:"),
        ("ring.py", "(self.window, self.sink, self.chunk) != (other.window, other.sink, other.chunk)", "False"),
    ),
    *group(
        32,
        "engine/test_graphs.py",
        ("engine/graphs.py", "self.x.copy_(x)", "pass"),
        ("engine/graphs.py", "self.sigma.copy_(sigma)", "pass"),
        ("engine/graphs.py", "torch.add(self.steps, start, out=self.times)", "pass"),
        ("engine/graphs.py", "self.cond.per_frame[name].copy_(value)", "pass"),
        ("engine/graphs.py", "self.cond.static[name].copy_(value)", "pass"),
        ("engine/graphs.py", "if value is not self.said.get(name):", "if False:"),
        ("engine/graphs.py", "ring.wrote(len(layout.times))", "pass"),
        ("engine/graphs.py", "and past.held == past.ring.most", ""),
        ("engine/graphs.py", "x.dtype, layout.mute)", "x.dtype)"),
        (
            "engine/schedule.py",
            "if isinstance(self.model, Graphs):\n                self",
            "if False:\n                self",
        ),
        ("engine/graphs.py", "recorded.said = {}", "pass"),
        ("ring.py", "own.copy_(store)", "self._store = store.clone()"),
    ),
    *group(
        33,
        "engine/test_saved.py",
        ("engine/saved.py", 'session.random.set_state(tensors["random"])', "pass"),
        ("engine/saved.py", "history.first = [", "_ = ["),
        ("engine/saved.py", "history.recached = [", "_ = ["),
        ("engine/saved.py", "session.go_on()", "pass"),
        ("engine/saved.py", 'session.start = tensors["start"].to(setup.device)', "pass"),
        ("engine/saved.py", "if tuple(latents.shape[2:]) != setup.size:", "if False:"),
        ("engine/saved.py", "session.history.fork(frames)", "session.history.fork()"),
        ("engine/saved.py", 'if document["format"] != FORMAT:', "if False:"),
        ("engine/saved.py", "if getattr(how, name) != getattr(here, name):", "if False:"),
        ("engine/saved.py", 'if document["world"] != setup.digest:', "if False:"),
        ("engine/saved.py", "return setup.by(how.plan)", "return setup"),
        ("engine/saved.py", "RuntimeError, ArithmeticError)", "RuntimeError)"),
        ("engine/session.py", "@cached_property\n    def digest", "@property\n    def digest"),
        ("engine/session.py", "or self.shared.world is not self.world:", "or False:"),
    ),
    *group(
        34,
        "serve/test_host.py",
        ("engine/schedule.py", "        self._forget(seat.session)\n", ""),
        ("serve/host.py", "self.texts.ask(prompt, then)", "then(self.engine.setup.text(prompt))"),
        ("serve/host.py", "while not self._gone.wait(BEAT):", "while False:"),
        ("serve/host.py", "viewer.beside.back(max(0, session.frame - 1))", "pass"),
        ("serve/host.py", "self._fail(order.other, wrong)", "self._fail(number, wrong)"),
        ("serve/host.py", "self.engine.pause(session, False)\n", "pass\n"),
        (
            "serve/host.py",
            "except (ValueError, OSError) as wrong:\n        connection",
            "except KeyError as wrong:\n        connection",
        ),
        ("serve/host.py", "self.engine.finish(session)\n", "pass\n"),
        ("serve/viewer.py", "while len(self.tapped) > MOST_TAPS:", "while False:"),
        ("serve/viewer.py", "if key not in self.held]  # down", "if False]  # down"),
    ),
    *group(
        35,
        "serve/test_gateway.py",
        (
            "serve/gateway.py",
            'exports.get(name) if request.method == "HEAD" else exports.take(name)',
            "exports.take(name)",
        ),
        ("serve/gateway.py", "if not (_is_address(name)", "if False and not (_is_address(name)"),
        ("serve/gateway.py", "if not hmac.compare_digest(", "if False and not hmac.compare_digest("),
        ("serve/gateway.py", "            self.uploads -= 1\n", "            pass\n"),
        ("serve/gateway.py", "page.netloc != host", "False"),
        ("serve/visit.py", "if made.generation != self.generation:", "if False:"),
        ("serve/line.py", "if picture.generation == visit.generation:", "if True:"),
        ("serve/visit.py", "MOST_AHEAD - self.out - len(self.slot)", "8"),
        ("serve/visit.py", "self.owed = self.out + len(self.slot)", "pass"),
        ("serve/saves.py", "if save.world not in worlds:", "if False:"),
        ("serve/admission.py", "if not waits:  # nobody needs the place", "if False:"),
        (
            "serve/admission.py",
            "visit.say(orders.Open(*numbers, image, data,",
            "visit.say(orders.Open(*numbers, image, None,",
        ),
        ("serve/images.py", "if opened.width * opened.height > most:", "if False:"),
    ),
    *group(
        36,
        "serve/test_engines.py serve/test_faults.py",
        ("serve/admission.py", "return visit.losses >= SUSPECT and any(", "return False and any("),
        ("serve/admission.py", "engine.slots, engine.shrunk_at = engine.slots + 1, now", "pass"),
        ("serve/supervisor.py", "except OSError as wrong:  # no memory", "except KeyError as wrong:  # no memory"),
        ("serve/supervisor.py", "self.beat_at += seconds", "pass"),
        ("serve/gateway.py", "proxy_headers=False", "proxy_headers=True"),
        ("serve/gateway.py", "if now - since > SILENT_S and", "if False and"),
        (
            "serve/line.py",
            "                self._pressed(visit)  # what was said before comes before",
            "                pass",
        ),
    ),
    *group(
        37,
        "serve/test_replay.py",
        ("serve/replay.py", "[asked] * max(1, self.clips.popleft())", "[asked] * max(1, 0 * self.clips.popleft())"),
        ("serve/replay.py", "elif line.settled and session.stream.waits:", "elif False:"),
        ("engine/schedule.py", "self.making = Making(settled=sum(making.shared))", "self.making = Making()"),
        ("serve/replay.py", "viewer.tapped = deque(line.keys or [])", "pass"),
        ("serve/replay.py", "if line.asked is not None:", "if False:"),
        ("serve/host.py", "fingerprint(pictures.tobytes())", 'fingerprint(b"")'),
        ("serve/replay.py", "if key in self.wanted:", "if False:"),
    ),
]


def failing(tests: set[str], copy: Path) -> str:
    """The first of these tests that fails in the copy; "" if none does."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--no-showlocals", "--tb=no"]
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    paths = [f"tests/{name}" for name in sorted(tests)]
    done = subprocess.run([*command, *paths], cwd=copy, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+?)(?:\[.*)?(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode and not found:
        raise LookupError(done.stdout + done.stderr)
    return found[1] if found else ""


def misplaced(home: Path) -> list[str]:
    """What is no longer there to be broken, or there more than once."""
    counts = [(each, (home / each.file).read_text().count(each.old)) for each in MUTATIONS]
    return [f"{each.file} holds {each.old!r} {count} times, not once" for each, count in counts if count != 1]


def broken(mutation: Mutation, copy: Path) -> str:
    """The test that notices the mutation, made in the copy and taken back; "" if it survives."""
    path = copy / "src" / "forcing" / mutation.file
    text = path.read_text()
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        return failing(set(mutation.seen_by.split()), copy)
    finally:
        path.write_text(text)


def short(text: str) -> str:
    """One line of a table."""
    one = re.sub(r"\s+", " ", text.strip()).replace("|", "\\|")
    return one if len(one) < 70 else one[:66] + " ..."


def main() -> int:
    wanted = {int(argument) for argument in sys.argv[1:]}
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if odd := misplaced(copy / "src" / "forcing"):
            sys.exit("\n".join(odd))
        chosen = [mutation for mutation in MUTATIONS if not wanted or mutation.item in wanted]
        if already := failing({test for mutation in chosen for test in mutation.seen_by.split()}, copy):
            sys.exit(f"{already} fails before anything is broken")
        sys.stdout.write("| item | file | broken | into | seen by |\n|---|---|---|---|---|\n")
        for mutation in chosen:
            try:
                seen = broken(mutation, copy)
            except LookupError as error:
                seen = f"**{error}**"
                bad += 1
            bad += not seen
            old, new = (f"`{short(part)}`" if part.strip() else "(removed)" for part in (mutation.old, mutation.new))
            row = [str(mutation.item), mutation.file, old, new, f"`{seen}`" if seen else "**nothing**"]
            sys.stdout.write(f"| {' | '.join(row)} |\n")
            sys.stdout.flush()
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
