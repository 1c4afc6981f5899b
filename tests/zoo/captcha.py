"""ddddocr: reads captchas and finds single characters; all rendered. One of its models is int8 already."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from . import fetch
from .ocr import character_accuracy, ctc
from .pictures import FONTS, colours, crops, font, noisy
from .recipe import Arrays, Recipe, Run, runner, write_samples

# --- ddddocr: f32[1,1,64,w] in [0, 1] -> scores f32[w/8,1,8210]; declared f32[1,seqlen], an axis too few


def _captcha(text: str, side: str, rng: np.random.Generator) -> Image.Image:
    """160 x 64: letters on a slant of their own, crossing lines, noise; grey."""
    ink, paper = colours(rng)
    image = Image.new("RGB", (160, 64), paper)
    left = rng.uniform(4, 14)
    for letter in text:
        face = font(str(rng.choice(FONTS[side])), int(rng.integers(34, 44)))
        mask = Image.new("L", (56, 64))
        ImageDraw.Draw(mask).text((8, rng.uniform(4, 14)), letter, fill=255, font=face)
        mask = mask.rotate(rng.uniform(-18, 18), Image.Resampling.BICUBIC)
        image.paste(ink, (int(left) - 8, 0), mask)
        left += face.getlength(letter) + rng.uniform(-1, 4)
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        draw.line([float(v) for v in rng.uniform((0, 0, 90, 0), (70, 64, 160, 64))], fill=ink, width=1)
    return Image.fromarray(noisy(np.asarray(image), rng, 14)).convert("L")


def _captchas(side: str, count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """f32[count,1,64,160] in [0, 1], and the four characters on each."""
    rng = np.random.default_rng(seed)
    alphabet = list("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789")
    texts = ["".join(rng.choice(alphabet, 4)) for _ in range(count)]
    images = [np.asarray(_captcha(text, side, rng), np.float32) / 255 for text in texts]
    return np.stack(images)[:, None], texts


def _characters(charset: str) -> np.ndarray:
    """The 8210 characters of that name in the package's table, the blank first."""
    statements = ast.parse(fetch.read("ddddocr", "ddddocr/charsets.py")).body
    tables = {ast.unparse(s.targets[0]): s.value for s in statements if isinstance(s, ast.Assign)}
    return np.array(ast.literal_eval(tables[charset]))


def _captcha_reader(file: str, charset: str) -> Recipe:
    def build(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(fetch.read("ddddocr", f"ddddocr/{file}"))
        heldout, texts = _captchas("heldout", 64, seed=52)
        task = {"texts": np.array(texts), "characters": _characters(charset)}
        write_samples(folder, {"input1": _captchas("calibration", 32, seed=51)[0]}, {"input1": heldout}, task)

    def score(run: Run, heldout: Arrays, task: Arrays) -> float:
        indices = [run({"input1": image[None]})[0][:, 0].argmax(1) for image in heldout["input1"]]
        return character_accuracy([ctc(row, task["characters"]) for row in indices], list(task["texts"]))

    return Recipe(build, "character accuracy", score)


# --- ddddocr detection (YOLOX): f32[1,3,416,416] in 0..255, BGR -> f32[1,3549,6]: box offsets, object, class


CONFIDENT = 0.3  # object times class


def _spots(side: str, count: int, seed: int) -> np.ndarray:
    """f32[count,3,416,416]: photos with four single characters strewn over them."""
    rng = np.random.default_rng(seed)
    images = crops(side, 416, count, seed)
    for i in range(count):
        image = Image.fromarray(images[i])
        for corner in ((20, 20), (220, 30), (30, 220), (230, 240)):
            ink, paper = colours(rng)
            face = font(str(rng.choice(FONTS[side])), int(rng.integers(50, 90)))
            mask, edge = Image.new("L", (140, 140)), Image.new("L", (140, 140))
            letter = str(rng.choice(list("ABDEFGHKMNPRSTXYZ23456789")))
            ImageDraw.Draw(mask).text((35, 20), letter, fill=255, font=face)
            ImageDraw.Draw(edge).text((35, 20), letter, fill=255, font=face, stroke_width=3)
            place = (corner[0] + int(rng.integers(0, 30)), corner[1] + int(rng.integers(0, 30)))
            angle = rng.uniform(-40, 40)
            image.paste(paper, place, edge.rotate(angle))
            image.paste(ink, place, mask.rotate(angle))
        images[i] = noisy(np.asarray(image), rng, 6)
    return np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32))


def _found(run: Run, images: np.ndarray) -> np.ndarray:
    """bool[n,3549]: cells of the grid that hold an object."""
    outputs = np.concatenate([run({"images": image[None]})[0] for image in images])
    scores: np.ndarray = outputs[..., 4] * outputs[..., 5]
    return scores > CONFIDENT


def _build_spots(folder: Path) -> None:
    data = fetch.read("ddddocr", "ddddocr/common_det.onnx")
    (folder / "model.onnx").write_bytes(data)
    calibration, heldout = _spots("calibration", 32, seed=61), _spots("heldout", 32, seed=62)
    found = _found(runner(data), heldout)
    write_samples(folder, {"images": calibration}, {"images": heldout}, {"found": found})


def _score_spots(run: Run, heldout: Arrays, task: Arrays) -> float:
    """Cells found by both over cells found by either."""
    found = _found(run, heldout["images"])
    return float(np.sum(found & task["found"]) / np.sum(found | task["found"]))


RECIPES = {
    "ddddocr": _captcha_reader("common.onnx", "CHARSET_BETA"),
    "ddddocr-det": Recipe(_build_spots, "grid cell IoU with full precision", _score_spots),
    "ddddocr-old": _captcha_reader("common_old.onnx", "CHARSET_OLD"),
}
QUANTIZED = ("ddddocr-old",)
