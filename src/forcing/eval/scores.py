"""From clips to the numbers of one row at one seed."""

import math
from dataclasses import dataclass

import numpy as np

from forcing.eval.distribution import Features, diversity, frechet, motion
from forcing.eval.measure import Measure
from forcing.eval.samples import Samples
from forcing.eval.scenes import Scenes
from forcing.eval.tiles import Views, against_itself, against_truth, recognised


@dataclass(frozen=True)
class Scores:
    """`values`: metric -> number. `curves`: metric -> one number for each bucket of frames of the rollouts."""

    values: dict[str, float]
    curves: dict[str, list[float]]


@dataclass(frozen=True)
class Judge:
    """Scores samples against the scenes that they were made from."""

    scenes: Scenes
    measure: Measure
    features: Features

    @staticmethod
    def appoint(scenes: Scenes, measure: Measure) -> "Judge":
        """A judge whose features are fitted to the training clips of `scenes`."""
        return Judge(scenes, measure, Features.fit(scenes.train, measure.keep))

    def score(self, samples: Samples, memory: int | None, chunk: int) -> Scores:
        """Everything but cost. memory: frames a model can look back on; chunk: frames it makes at once."""
        parts = [self._told(samples, memory), self._nothing(samples.nothing)]
        if samples.ahead is not None:
            parts.append(self._ahead(samples.ahead, memory, chunk))
        if samples.free is not None:
            parts.append(self._free(samples.free))
        values = {name: value for part in parts for name, value in part.values.items() if math.isfinite(value)}
        curves = {name: curve for part in parts for name, curve in part.curves.items() if np.isfinite(curve).all()}
        return Scores(values, curves)

    def _ahead(self, frames: np.ndarray, memory: int | None, chunk: int) -> Scores:
        footage = self.scenes.ahead
        judged = against_truth(self._views(frames), self._views(footage.frames), footage.led, memory)
        # within a chunk a model sees its own frames, not the true ones: only a chunk's first frame has a true past
        part = slice(1, None) if chunk == 1 else slice(chunk, None, chunk)
        return Scores({"control": judged.control(part), "control_frames": judged.control_frames(part)}, {})

    def _told(self, samples: Samples, memory: int | None) -> Scores:
        footage, start = self.scenes.told, self.measure.start if samples.started else 0
        views = self._views(samples.told)
        if start:
            views = views.after(self._views(footage.frames[:, :start]))
        frames = views.ids.shape[1]
        judged = against_itself(views, footage.led[:, :frames], memory)
        part = slice(max(1, start), None)
        values = {
            "control_rollout": judged.control(part),
            "valid_determined": judged.validity(part, determined=True),
            "valid_new": judged.validity(part, determined=False),
        }
        if not samples.started:
            return Scores(values, {})
        parts = [slice(b.start + start, b.stop + start) for b in self._buckets(frames - start)]
        curves = {
            "control_rollout": [judged.control(part) for part in parts],
            "valid_determined": [judged.validity(part, determined=True) for part in parts],
            "valid_new": [judged.validity(part, determined=False) for part in parts],
        }
        alike = self._told_apart(samples.told)
        return Scores(values | alike.values, curves | alike.curves)

    def _told_apart(self, clips: np.ndarray) -> Scores:
        # Control and validity ask whether a rollout agrees with itself: a closed cell does, for ever.
        real = self.scenes.told.frames[:, self.measure.start :]
        if np.array_equal(clips, real):  # the real world itself, which has no distance to itself worth printing
            return Scores({}, {})
        buckets = self._buckets(clips.shape[1])
        return Scores(
            {"frechet_told": self._distance(clips, real), "motion_told": _over(motion(clips), motion(real))},
            {
                "frechet_told": [self._distance(clips[:, b], real[:, b]) for b in buckets],
                "motion_told": [_over(motion(clips[:, b]), motion(real[:, b])) for b in buckets],
            },
        )

    def _free(self, clips: np.ndarray) -> Scores:
        real, buckets = self.scenes.reference, self._buckets(clips.shape[1])
        valid = self._views(clips).valid
        values = {
            "valid_free": float(valid.mean()),
            "frechet_free": self._distance(clips, real),
            "diversity_free": _over(*(sum(self._apart(each[:, b]) for b in buckets) for each in (clips, real))),
            "motion_free": _over(motion(clips), motion(real)),
        }
        curves = {
            "valid_free": [float(valid[:, b].mean()) for b in buckets],
            "frechet_free": [self._distance(clips[:, b], real[:, b]) for b in buckets],
            "diversity_free": [_over(self._apart(clips[:, b]), self._apart(real[:, b])) for b in buckets],
            "motion_free": [_over(motion(clips[:, b]), motion(real[:, b])) for b in buckets],
        }
        return Scores(values, curves)

    def _nothing(self, clips: np.ndarray) -> Scores:
        real, prompts = self.scenes.nothing.frames, self.scenes.nothing.prompts
        views = self._views(clips)
        return Scores(
            {
                "prompt": recognised(views, self._views(real), prompts),
                "valid_nothing": float(views.valid.mean()),
                "frechet_nothing": self._distance(clips, real),
                "diversity_nothing": _over(self._varied(clips), self._varied(real)),
                "motion_nothing": _over(motion(clips), motion(real)),
            },
            {},
        )

    def _views(self, frames: np.ndarray) -> Views:
        return Views.read(frames, self.measure.valid)

    def _distance(self, clips: np.ndarray, real: np.ndarray) -> float:
        return frechet(self.features.of(clips), self.features.of(real))

    def _apart(self, clips: np.ndarray) -> float:
        # clips from the same start lie side by side
        groups = clips[:, -1:].reshape(-1, self.measure.forks, *clips[:, -1:].shape[1:])
        return float(np.mean([diversity(group) for group in groups]))

    def _varied(self, clips: np.ndarray) -> float:
        prompts = np.array(self.scenes.nothing.prompts)
        groups = [clips[prompts == prompt, -1:] for prompt in sorted(set(prompts))]
        apart = [diversity(group) for group in groups if len(group) > 1]
        return float(np.mean(apart)) if apart else math.nan

    def _buckets(self, frames: int) -> list[slice]:
        size = self.measure.bucket
        return [slice(at, at + size) for at in range(0, frames - size + 1, size)]


def _over(made: float, real: float) -> float:
    return made / real if real else math.nan
