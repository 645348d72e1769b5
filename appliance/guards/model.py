"""A guard model at work: verified files, one onnxruntime session, texts to logits.

Windows run one by one: what is said of a text never depends on which others are judged at the same time, and nothing
is spent on padding. onnxruntime and tokenizers release the interpreter's lock, so threads may share one model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from appliance.errors import GuardModelError
from appliance.guards.features import Pieces, PieceTokenizer, Window, batch_of, windows
from appliance.guards.manifest import Manifest, read_manifest, verified

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WindowResult:
    """What the model said of one window: its outputs by name, without the row axis and the special tokens."""

    window: Window
    outputs: dict[str, Array]


@dataclass(frozen=True, slots=True)
class TextResult:
    """What the model said of one text."""

    pieces: Pieces
    windows: list[WindowResult]


class GuardModel:
    """One loaded guard model."""

    def __init__(self, folder: Path, *, threads: int = 1, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        """Raises GuardModelError if the manifest is wrong, a file is not what it says, or the graph does not fit it."""
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        weights = verified(folder, self.manifest, "model.onnx")
        self.tokenizer = _tokenizer(verified(folder, self.manifest, "tokenizer.json"), folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # The graph was fused by hand where that pays, see guard_models/pipeline/export.py; more fusing makes it slower.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        # Threads that wait in a circle take the processor from the engines.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(weights, options, providers=list(providers))
        except Exception as failure:
            raise GuardModelError(f"{folder / 'model.onnx'}: onnxruntime cannot load it: {failure}") from failure
        self._inputs = {item.name for item in self._session.get_inputs()}
        if unknown := self._inputs - {"ids", "mask", "shapes"}:
            raise GuardModelError(
                f"{folder / 'model.onnx'}: unknown inputs {', '.join(sorted(unknown))}; known are ids, mask, shapes"
            )
        self._outputs = [detector.output for detector in self.manifest.detectors.values()]
        known = {item.name for item in self._session.get_outputs()}
        if missing := [name for name in self._outputs if name not in known]:
            raise GuardModelError(f"{folder / 'model.onnx'}: has no output {missing[0]!r}, which its manifest names")

    def run(self, text: str) -> TextResult:
        """The logits of every window of `text`, whatever its length and whatever is in it."""
        return self.run_pieces(self.tokenizer.pieces(text))

    def run_pieces(self, pieces: Pieces) -> TextResult:
        reading = self.manifest.reading
        parts = windows(len(pieces), size=reading.window, overlap=reading.overlap)
        return TextResult(pieces, [self._window(pieces, part) for part in parts])

    def _window(self, pieces: Pieces, part: Window) -> WindowResult:
        batch = batch_of(self.tokenizer, [(pieces, part)])
        shapes = batch.shapes if self.manifest.reading.shapes else np.zeros_like(batch.shapes)
        feed = {"ids": batch.ids, "mask": batch.mask, "shapes": shapes}
        found = self._session.run(self._outputs, {name: feed[name] for name in self._inputs})
        outputs = {}
        for name, value in zip(self._outputs, found, strict=True):
            row = value[0]
            outputs[name] = row[1:-1] if row.ndim == 2 else row
        return WindowResult(part, outputs)

    def run_pair(self, first: str, second: str) -> list[Array]:
        """The logits of each pair of a window of `first` and the whole of `second` (cut to half a window)."""
        reading = self.manifest.reading
        left, right = self.tokenizer.pieces(first), self.tokenizer.pieces(second)
        tail = Window(0, min(len(right), reading.window // 2))
        room = reading.window - tail.end - 1
        results = []
        for part in windows(len(left), size=room, overlap=min(reading.overlap, room // 4)):
            ids = [
                self.tokenizer.begin,
                *left.ids[part.start : part.end],
                self.tokenizer.end,
                *right.ids[: tail.end],
                self.tokenizer.end,
            ]
            size = part.end - part.start
            segments = [0] * (size + 2) + [1] * (len(ids) - size - 2)
            feed = {
                "ids": np.array([ids], np.int64),
                "mask": np.ones((1, len(ids)), np.int64),
                "shapes": np.array([segments], np.int64),
            }
            results.append(self._session.run(self._outputs, {name: feed[name] for name in self._inputs})[0][0])
        return results


def _tokenizer(data: bytes, folder: Path) -> PieceTokenizer:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tokenizer.json"
        path.write_bytes(data)
        try:
            return PieceTokenizer(path)
        except GuardModelError as failure:
            raise GuardModelError(failure.message.replace(str(path), str(folder / "tokenizer.json"))) from failure
