"""Layers are decoded and encoded in a real pool of processes, and executors have only so many jobs at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from riq_cli.archive import Archive
from riq_cli.decode import decode_layer, decode_layers
from riq_cli.decode.dequantize import Quantized
from riq_cli.executors import Workers, ordered
from riq_cli.model import Layer
from riq_cli.pipeline.layer_entry import encode_layer

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.mark.parametrize("name", ["student", "classes", "trellis", "raw", "two-streams"])
def test_layers_are_decoded_in_processes(name: str, pool: ProcessPoolExecutor) -> None:
    with Archive.open(GOLDENS / f"v1-{name}.riqz") as archive:
        here, there = list(decode_layers(archive)), list(decode_layers(archive, pool))
        assert [entry for entry, _ in there] == list(archive.manifest.layers)
        expected = [values.tobytes() for _, values in here]
        assert [values.tobytes() for _, values in there] == expected
        in_streams = [decode_layer(entry, sections, pool) for entry, sections in archive.layer_sections()]
        assert [values.tobytes() for values in in_streams] == expected


@pytest.mark.parametrize("coding", ["ans", "student"])
def test_layers_are_encoded_in_processes(coding: str, pool: ProcessPoolExecutor) -> None:
    rng = np.random.default_rng(0)
    symbols = np.rint(rng.standard_t(4, 4096) * 9).astype(np.int32)
    quantized, without = Quantized(symbols, 0.5), {"student"} if coding == "ans" else set[str]()
    values = quantized.restored("float32", (64, 64)).reshape(64, 64)
    layer = Layer("w", "MatMul", ("graph.initializer[0]",), "float32", values.shape, values)
    entry, sections = encode_layer(layer, quantized, pool, without)
    assert entry.coding == coding
    assert (entry, sections) == encode_layer(layer, quantized, None, without)


class One(Workers, ThreadPoolExecutor):
    """A worker: it has two jobs without a result at a time, and four in all."""

    count = 1
    submitted = 0

    def submit(self, function: Callable[..., int], /, *arguments: int, **named: int) -> Future[int]:
        self.submitted += 1
        return super().submit(function, *arguments, **named)


def test_an_executor_has_only_so_many_jobs_while_the_first_one_takes_long() -> None:
    others = Event()

    def job(number: int) -> int:
        if number == 3:
            others.set()
        return number if number or others.wait(30) else -1

    with One(2) as executor:
        for taken, result in enumerate(ordered(executor, job, range(20))):
            assert result == taken
            assert executor.submitted - taken <= 4
