"""PP-OCR: text recognition, detection and direction, on rendered text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from PIL import Image, ImageDraw

from . import fetch
from .pictures import FONTS, colours, crops, font, noisy, phrases, text_line
from .recipe import Arrays, Recipe, Run, batched, runner, write_samples

PPOCR = "rapidocr_onnxruntime/models"


def _signed(images: np.ndarray) -> np.ndarray:
    """u8[n,h,w,3] RGB -> f32[n,3,h,w] BGR in [-1, 1], as PP-OCR takes them."""
    return np.ascontiguousarray((images[..., ::-1].astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, previous = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
    return row[-1]


def character_accuracy(texts: list[str], truths: list[str]) -> float:
    """1 - edit distance over characters, spaces and case aside, at least 0."""
    read, meant = ([text.replace(" ", "").lower() for text in side] for side in (texts, truths))
    wrong = sum(min(edit_distance(a, b), len(b)) for a, b in zip(read, meant, strict=True))
    return 1 - wrong / sum(map(len, meant))


def ctc(indices: np.ndarray, characters: np.ndarray) -> str:
    """Greedy CTC: equal neighbours are one character, 0 is the blank."""
    kept = indices[np.diff(indices, prepend=-1) != 0]
    return "".join(characters[i] for i in kept if i)


# --- PP-OCR recognition: f32[n,3,48,w] -> probabilities f32[n,w/8,6625]

WIDTH = 320


def _lines(side: str, count: int, width: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """f32[count,3,48,width], padded with 0 on the right, and the texts."""
    rng = np.random.default_rng(seed)
    images, texts = np.zeros((count, 3, 48, width), np.float32), phrases(side, count, 22, seed)
    for i, text in enumerate(texts):
        line = Image.fromarray(text_line(text, side, rng))
        line = line.resize((min(line.width, width), 48), Image.Resampling.BILINEAR)
        images[i, :, :, : line.width] = _signed(np.asarray(line)[None])[0]
    return images, texts


def _build_rec(folder: Path) -> None:
    data = fetch.read("rapidocr-onnxruntime", f"{PPOCR}/ch_PP-OCRv4_rec_infer.onnx")
    (folder / "model.onnx").write_bytes(data)
    listed = next(p.value for p in onnx.load_from_string(data).metadata_props if p.key == "character")
    heldout, texts = _lines("heldout", 64, WIDTH, seed=12)
    write_samples(
        folder,
        {"x": _lines("calibration", 32, WIDTH, seed=11)[0]},
        {"x": heldout},
        {"texts": np.array(texts), "characters": np.array(["", *listed.splitlines(), " "])},
    )


def _score_rec(run: Run, heldout: Arrays, task: Arrays) -> float:
    indices = batched(run, "x", heldout["x"]).argmax(2)
    return character_accuracy([ctc(row, task["characters"]) for row in indices], list(task["texts"]))


# --- PP-OCR direction: f32[n,3,48,192] -> probabilities of (upright, upside down) f32[n,2]


def _turned(side: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """f32[count,3,48,192] and which of them stand on their heads: every other one."""
    images, _ = _lines(side, count, 192, seed)
    labels = np.arange(count) % 2
    images[labels == 1] = images[labels == 1, :, ::-1, ::-1]
    return images, labels


def _build_cls(folder: Path) -> None:
    data = fetch.read("rapidocr-onnxruntime", f"{PPOCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx")
    (folder / "model.onnx").write_bytes(data)
    heldout, labels = _turned("heldout", 96, seed=22)
    write_samples(folder, {"x": _turned("calibration", 32, seed=21)[0]}, {"x": heldout}, {"labels": labels})


def _score_cls(run: Run, heldout: Arrays, task: Arrays) -> float:
    return float(np.mean(batched(run, "x", heldout["x"]).argmax(1) == task["labels"]))


# --- PP-OCR detection: f32[n,3,h,w] -> probability of text per pixel f32[n,1,h,w]

PAGE, THRESHOLD = 320, 0.3


def _pages(side: str, count: int, seed: int) -> np.ndarray:
    """f32[count,3,320,320]: lines of text, half of them on photos, half on plain paper."""
    rng = np.random.default_rng(seed)
    pages = crops(side, PAGE, count, seed)
    for i in range(count):
        ink, paper = colours(rng)
        image = Image.fromarray(pages[i]) if i % 2 else Image.new("RGB", (PAGE, PAGE), paper)
        draw, top = ImageDraw.Draw(image), float(rng.uniform(8, 40))
        for text in phrases(side, 8, 24, seed + 1000 + i):
            size = int(rng.integers(14, 34))
            if top + 1.3 * size > PAGE:
                break
            face = font(str(rng.choice(FONTS[side])), size)
            place = (rng.uniform(6, 60), top)
            if i % 2:
                ink, paper = colours(rng)
                draw.text(place, text, fill=ink, font=face, stroke_width=2, stroke_fill=paper)
            else:
                draw.text(place, text, fill=ink, font=face)
            top += size * rng.uniform(1.4, 2.6)
        pages[i] = noisy(np.asarray(image.rotate(rng.uniform(-3, 3), Image.Resampling.BICUBIC)), rng, 6)
    return _signed(pages)


def _build_det(folder: Path) -> None:
    data = fetch.read("rapidocr-onnxruntime", f"{PPOCR}/ch_PP-OCRv4_det_infer.onnx")
    (folder / "model.onnx").write_bytes(data)
    calibration, heldout = _pages("calibration", 32, seed=31), _pages("heldout", 32, seed=32)
    mask = batched(runner(data), "x", heldout, 4) > THRESHOLD
    write_samples(folder, {"x": calibration}, {"x": heldout}, {"mask": np.packbits(mask)})


def _score_det(run: Run, heldout: Arrays, task: Arrays) -> float:
    """Pixels called text by both over pixels called text by either."""
    found = batched(run, "x", heldout["x"], 4) > THRESHOLD
    truth = np.unpackbits(task["mask"], count=found.size).reshape(found.shape).astype(bool)
    return float(np.sum(found & truth) / np.sum(found | truth))


RECIPES = {
    "ppocr4-rec": Recipe(_build_rec, "character accuracy", _score_rec),
    "ppocr4-det": Recipe(_build_det, "text mask IoU with full precision", _score_det),
    "ppocr4-cls": Recipe(_build_cls, "top-1", _score_cls),
}
