"""Photos and rendered text, as arrays; split by source into calibration and held-out."""

from __future__ import annotations

import ast
import io
import re
import warnings
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from . import fetch

# (package, file): whole photos, each used on one side only.
PHOTOS = {
    "calibration": (
        ("scikit-image", "skimage/data/astronaut.png"),
        ("scikit-image", "skimage/data/coffee.png"),
        ("scikit-image", "skimage/data/camera.png"),
        ("scikit-image", "skimage/data/brick.png"),
        ("scikit-image", "skimage/data/gravel.png"),
        ("scikit-image", "skimage/data/hubble_deep_field.jpg"),
        ("scikit-image", "skimage/data/ihc.png"),
        ("scikit-image", "skimage/data/coins.png"),
        ("scikit-learn", "sklearn/datasets/images/china.jpg"),
        ("matplotlib", "matplotlib/mpl-data/sample_data/grace_hopper.jpg"),
    ),
    "heldout": (
        ("scikit-image", "skimage/data/chelsea.png"),
        ("scikit-image", "skimage/data/rocket.jpg"),
        ("scikit-image", "skimage/data/motorcycle_left.png"),
        ("scikit-image", "skimage/data/retina.jpg"),
        ("scikit-image", "skimage/data/grass.png"),
        ("scikit-image", "skimage/data/moon.png"),
        ("scikit-image", "skimage/data/clock_motion.png"),
        ("scikit-image", "skimage/data/cell.png"),
        ("scikit-learn", "sklearn/datasets/images/flower.jpg"),
        ("matplotlib", "matplotlib/mpl-data/sample_data/Minduka_Present_Blue_Pack.png"),
    ),
}
FONTS = {
    "calibration": ("DejaVuSans", "DejaVuSansMono", "DejaVuSerif-Bold", "STIXGeneralItalic"),
    "heldout": ("DejaVuSans-Bold", "DejaVuSerif", "DejaVuSans-Oblique", "STIXGeneral"),
}
PROSE = {"calibration": ("scikit-image", "scikit-learn"), "heldout": ("numpy",)}


@cache
def photo(package: str, member: str) -> Image.Image:
    """The photo as RGB."""
    return Image.open(io.BytesIO(fetch.read(package, member))).convert("RGB")


def crops(side: str, size: int, count: int, seed: int) -> np.ndarray:
    """u8[count, size, size, 3]: square crops of one side's photos, the central one of each first."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        image = photo(*PHOTOS[side][i % len(PHOTOS[side])])
        edge = float(min(image.size))
        left, top = (image.width - edge) / 2, (image.height - edge) / 2
        if i >= len(PHOTOS[side]):
            edge *= rng.uniform(0.5, 0.9)
            left, top = rng.uniform(0, image.width - edge), rng.uniform(0, image.height - edge)
        box = (left, top, left + edge, top + edge)
        crop = image.resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=3.0)
        rows.append(np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i % 4 == 3 else crop))
    return np.stack(rows)


@cache
def docstrings(package: str) -> tuple[str, ...]:
    """Docstrings of functions and classes in the package's wheel, each once, in order of file and line."""
    found: dict[str, None] = {}
    for member in fetch.members(package):
        if member.endswith(".py") and "/tests/" not in member and "/_vendor/" not in member:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # newer Pythons frown at some of the escapes
                tree = ast.parse(fetch.read(package, member))
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    found[ast.get_docstring(node) or ""] = None
    return tuple(text for text in found if len(text) > 100)


def phrases(side: str, count: int, longest: int, seed: int) -> list[str]:
    """`count` runs of words out of docstrings, letters, digits and plain punctuation only."""
    rng = np.random.default_rng(seed)
    texts = [text for package in PROSE[side] for text in docstrings(package)]
    result: list[str] = []
    while len(result) < count:
        words = re.findall(r"[A-Za-z0-9][A-Za-z0-9,.;:()%+=-]*", texts[rng.integers(len(texts))])
        start, phrase = int(rng.integers(max(1, len(words) - 8))), ""
        for word in words[start : start + int(rng.integers(1, 5))]:
            if len(f"{phrase} {word}") <= longest:
                phrase = f"{phrase} {word}".strip()
        if len(phrase) >= 3:
            result.append(phrase)
    return result


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib's (DejaVu, STIX), with Pillow's own layout, so that no system library matters."""
    data = io.BytesIO(fetch.read("matplotlib", f"matplotlib/mpl-data/fonts/ttf/{name}.ttf"))
    return ImageFont.truetype(data, size, layout_engine=ImageFont.Layout.BASIC)


Colour = tuple[int, int, int]


def colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Ink and paper, RGB, with a contrast that can be read: dark on light or, less often, light on dark."""
    dark, light = rng.integers(0, 90, 3), rng.integers(170, 256, 3)
    ink, paper = (light, dark) if rng.random() < 0.3 else (dark, light)
    return (int(ink[0]), int(ink[1]), int(ink[2])), (int(paper[0]), int(paper[1]), int(paper[2]))


def text_line(text: str, side: str, rng: np.random.Generator, height: int = 48) -> np.ndarray:
    """u8[height, w, 3]: one line of text, random font and colours, a little tilt, blur and noise."""
    face = font(str(rng.choice(FONTS[side])), int(height * rng.uniform(0.58, 0.72)))
    ink, paper = colours(rng)
    left, top, right, bottom = face.getbbox(text)
    image = Image.new("RGB", (int(right - left) + 16, height), paper)
    place = (8 - left, (height - (bottom - top)) / 2 - top + rng.uniform(-2, 2))
    ImageDraw.Draw(image).text(place, text, fill=ink, font=face)
    image = image.rotate(rng.uniform(-0.7, 0.7), Image.Resampling.BICUBIC, fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
    return noisy(np.asarray(image), rng, 6)


def noisy(image: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """The u8 image with Gaussian noise of up to that standard deviation."""
    noise = rng.normal(0, rng.uniform(0, deviation), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)
