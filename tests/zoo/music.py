"""basic-pitch: the notes in two seconds of sound, on synthesised chords."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from . import fetch
from .recipe import Arrays, Recipe, Run, write_samples

RATE, LENGTH = 22050, 43844  # Hz; samples of one window, 1.99 s
LOWEST, PITCHES = 21, 88  # MIDI number of the first of the piano's keys
FILE = "basic_pitch/saved_models/icassp_2022/nmp.onnx"
INPUT = "serving_default_input_2:0"
NOTES = 1  # of the outputs onsets f32[n,172,88], notes f32[n,172,88], contours f32[n,172,264]


def tone(pitch: int, timbre: str, rng: np.random.Generator) -> np.ndarray:
    """f32[43844]: one note from a random start, played on an organ, a reed, a string or a bell."""
    start = int(rng.uniform(0.02, 0.25) * RATE)
    t = np.arange(LENGTH - start) / RATE
    f = 440 * 2 ** ((pitch - 69) / 12)
    partials = np.arange(1, max(2, min(16, int(9000 / f))))
    if timbre == "organ":
        x = sum(np.sin(2 * np.pi * f * k * t) / k for k in partials if k in (1, 2, 3, 4, 6, 8))
    elif timbre == "reed":
        x = sum(np.sin(2 * np.pi * f * k * t + rng.uniform(0, 6)) / k**1.2 for k in partials if k % 2)
        x = x * (1 + 0.1 * np.sin(2 * np.pi * 5 * t))
    elif timbre == "string":
        x = sum(np.sin(2 * np.pi * f * k * t) * np.exp(-t * (1 + 0.6 * k)) / k for k in partials)
    else:
        bend = 1.5 * np.exp(-3 * t) * np.sin(4 * np.pi * f * t)
        x = np.sin(2 * np.pi * f * t + bend) * np.exp(-1.5 * t)
    x = x * np.minimum(1, t / 0.01) * rng.uniform(0.6, 1)
    return np.concatenate([np.zeros(start), x]).astype(np.float32)


def chords(timbres: tuple[str, ...], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows f32[count,43844,1] of 2 to 5 notes each, and the keys struck, bool[count,88]."""
    rng = np.random.default_rng(seed)
    windows, struck = np.zeros((count, LENGTH, 1), np.float32), np.zeros((count, PITCHES), bool)
    for i in range(count):
        pitches = rng.choice(np.arange(40, 85), int(rng.integers(2, 6)), replace=False)
        sound = sum(tone(int(p), timbres[i % len(timbres)], rng) for p in pitches)
        sound = sound + rng.normal(0, 0.003, LENGTH)
        windows[i, :, 0] = sound / np.abs(sound).max() * rng.uniform(0.3, 0.9)
        struck[i, pitches - LOWEST] = True
    return windows, struck


def _build(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(fetch.read("basic-pitch", FILE))
    heldout, struck = chords(("string", "bell"), 48, seed=72)
    calibration, _ = chords(("organ", "reed"), 32, seed=71)
    write_samples(folder, {INPUT: calibration}, {INPUT: heldout}, {"struck": struck})


def _score(run: Run, heldout: Arrays, task: Arrays) -> float:
    """Of the notes struck, the share among the window's strongest keys, as many as there are notes."""
    hits = 0
    for window, struck in zip(heldout[INPUT], task["struck"], strict=True):
        notes = run({INPUT: window[None]})[NOTES]
        strength = notes[0].mean(axis=0)
        hits += int(struck[np.argsort(-strength)[: struck.sum()]].sum())
    return float(hits / task["struck"].sum())


RECIPES = {"basic-pitch": Recipe(_build, "note recall", _score)}
