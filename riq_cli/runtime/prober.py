"""Weights of a few layers → deviation, in one session for all candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from riq_cli.model import SessionForm
from riq_cli.runtime.deviation import Array, compared
from riq_cli.runtime.sessions import DEFAULT_RUNTIME, LARGE, Runtime, Samples, explained, fed_runner, nbytes, ortvalue


class Prober:
    """Runs many candidates that differ in a few layers, in one session that takes the layers as inputs."""

    def __init__(
        self,
        form: SessionForm,
        weights: Sequence[Array],
        measured: Sequence[str],
        samples: Samples,
        runtime: Runtime = DEFAULT_RUNTIME,
    ) -> None:
        """Start the session and keep the outputs of the original weights, which differ a little from other forms'.

        Args:
            form: a probe form of the model.
            weights: the original data of each layer, in storage type.
            measured: tensors to compare, all float.
            samples: feeds and the number of rows in each.

        Raises:
            ModelError: onnxruntime cannot run the model in this form.
        """
        self._measured, self._samples = list(measured), samples
        with explained():
            self._fed = fed_runner(form, runtime, large=nbytes(weights) > LARGE)
        self._values = {number: ortvalue(weight) for number, weight in enumerate(weights)}
        self._reference = list(self._run({}))

    def deviations(self, changed: Mapping[int, Array]) -> list[float]:
        """Mean deviation at each measured tensor when the layers of these numbers hold other weights."""
        rows = [rows for _, rows in self._samples]
        found = compared(self._measured, self._reference, self._run(changed), rows)
        return [tensor.mean for tensor in found.tensors]

    def _run(self, changed: Mapping[int, Array]) -> Iterator[list[Array]]:
        values = self._values | {number: ortvalue(weight) for number, weight in changed.items()}
        with explained():
            for feed, _ in self._samples:
                yield self._fed(self._measured, feed, values)
