"""A guard model at work: verified files, one onnxruntime session, texts to logits.

Windows run one by one: what is said of a text never depends on which others are judged at the same time, and nothing
is spent on padding. onnxruntime and tokenizers release the interpreter's lock, so threads may share one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from appliance.errors import GuardModelError
from appliance.guards.features import SHAPES, Pieces, PieceTokenizer, Window, batch_of, windows
from appliance.guards.manifest import Manifest, read_manifest, verified

Array = NDArray[np.float32]
Ids = NDArray[np.int64]


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
        self.tokenizer = PieceTokenizer(folder / "tokenizer.json", verified(folder, self.manifest, "tokenizer.json"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Every failure arrives as an exception; nothing is to be written to the terminal besides.
        options.log_severity_level = 4
        # The graph was fused by hand where that pays, see guard_models/pipeline/export.py; more fusing makes it slower.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        # Threads that wait in a circle take the processor from the engines.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights outside the graph have no hash: they are looked for where no file can be.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str((folder / "manifest.yaml").absolute())
        )
        try:
            self._session = onnxruntime.InferenceSession(weights, options, providers=list(providers))
        except Exception as failure:
            raise GuardModelError(f"{folder / 'model.onnx'}: onnxruntime cannot load it: {failure}") from failure
        self._inputs = {item.name for item in self._session.get_inputs()}
        if unknown := self._inputs - {"ids", "mask", "shapes"}:
            raise GuardModelError(
                f"{folder / 'model.onnx'}: unknown inputs {', '.join(sorted(unknown))}; known are ids, mask, shapes"
            )
        if self.manifest.reading.segments and "shapes" not in self._inputs:
            raise GuardModelError(
                f"{folder / 'model.onnx'}: has no input 'shapes', which its manifest's reading.segments needs"
            )
        self._outputs = [detector.output for detector in self.manifest.detectors.values()]
        known = {item.name for item in self._session.get_outputs()}
        if missing := [name for name in self._outputs if name not in known]:
            raise GuardModelError(f"{folder / 'model.onnx'}: has no output {missing[0]!r}, which its manifest names")
        self._try_full_window()

    def _try_full_window(self) -> None:
        """Run the longest window once, with the highest number of a piece and every shape, and look at what comes back.

        A graph that has fewer places, pieces or labels than its manifest says is refused now, not by the first long
        text. Raises GuardModelError."""
        size = self.manifest.reading.window
        kinds = {detector.kind for detector in self.manifest.detectors.values()}
        pieces = Pieces([self.tokenizer.highest()] * size, [place % SHAPES for place in range(size)], [(0, 0)] * size)
        feeds = []
        apart = self.manifest.reading.apart
        if kinds != {"pair"} or apart:
            feeds.append(self._text_feed(pieces, Window(0, size)))
        if "pair" in kinds and not apart:
            half = Window(0, size // 2)
            feeds.append(self._pair_feed(pieces, Window(0, size - half.end - 1), pieces, half))
        for feed in feeds:
            try:
                found = self._run(feed)
            except Exception as failure:
                raise GuardModelError(
                    f"{self.folder / 'model.onnx'}: fails on a window of {size} pieces and the special tokens, the "
                    f"manifest's reading.window: {failure}"
                ) from failure
            self._fits(found, feed["ids"].shape[1])

    def _fits(self, found: dict[str, Any], tokens: int) -> None:
        """Raises GuardModelError if an output is not [1, labels], or [1, tokens, labels] for spans, or no number."""
        for name, detector in self.manifest.detectors.items():
            value, labels = found[detector.output], len(detector.labels)
            wanted = (1, tokens, labels) if detector.kind == "spans" else (1, labels)
            if detector.kind == "pair" and self.manifest.reading.apart:
                width = value.shape[-1] if isinstance(value, np.ndarray) and value.ndim else 0
                wanted = (1, tokens, width)
            where = f"{self.folder / 'model.onnx'}: output {detector.output!r}"
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                raise GuardModelError(f"{where} is no tensor of floats")
            if value.shape != wanted:
                raise GuardModelError(
                    f"{where} has the shape {list(value.shape)} where detectors.{name}, of kind {detector.kind} with "
                    f"{labels} labels in its manifest, needs {list(wanted)}"
                )

    def run(self, text: str) -> TextResult:
        """The logits of every window of `text`, whatever its length and whatever is in it."""
        return self.run_pieces(self.tokenizer.pieces(text))

    def run_pieces(self, pieces: Pieces) -> TextResult:
        reading = self.manifest.reading
        parts = windows(len(pieces), size=reading.window, overlap=reading.overlap)
        return TextResult(pieces, [self._window(pieces, part) for part in parts])

    def _window(self, pieces: Pieces, part: Window) -> WindowResult:
        found = self._run(self._text_feed(pieces, part))
        outputs = {name: value[0] for name, value in found.items()}
        return WindowResult(part, {name: row[1:-1] if row.ndim == 2 else row for name, row in outputs.items()})

    def run_pair(self, first: str, second: str) -> list[list[dict[str, Array]]]:
        """The outputs, by name, of each window of `second` (at most half of the model's window) with each window of
        `first`: one list for each of `second`.

        Its time grows with the product of both lengths, in windows."""
        reading = self.manifest.reading
        left, right = self.tokenizer.pieces(first), self.tokenizer.pieces(second)
        half = reading.window // 2
        results = []
        for tail in windows(len(right), size=half, overlap=min(reading.overlap, half // 4)):
            room = reading.window - (tail.end - tail.start) - 1
            parts = windows(len(left), size=room, overlap=min(reading.overlap, room // 4))
            found = [self._run(self._pair_feed(left, part, right, tail)) for part in parts]
            results.append([{name: value[0] for name, value in outputs.items()} for outputs in found])
        return results

    def _text_feed(self, pieces: Pieces, part: Window) -> dict[str, Ids]:
        batch = batch_of(self.tokenizer, [(pieces, part)])
        shapes = batch.shapes if self.manifest.reading.shapes else np.zeros_like(batch.shapes)
        return {"ids": batch.ids, "mask": batch.mask, "shapes": shapes}

    def _pair_feed(self, left: Pieces, head: Window, right: Pieces, tail: Window) -> dict[str, Ids]:
        first, second = left.ids[head.start : head.end], right.ids[tail.start : tail.end]
        ids = [self.tokenizer.begin, *first, self.tokenizer.end, *second, self.tokenizer.end]
        segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        return {
            "ids": np.array([ids], np.int64),
            "mask": np.ones((1, len(ids)), np.int64),
            "shapes": np.array([segments], np.int64),
        }

    def _run(self, feed: dict[str, Ids]) -> dict[str, Any]:
        """The outputs that the manifest names, with the row axis."""
        found = self._session.run(self._outputs, {name: feed[name] for name in self._inputs})
        for name, value in zip(self._outputs, found, strict=True):
            # Such a score would be the lowest of all in every comparison.
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not np.isfinite(value).all():
                raise GuardModelError(
                    f"{self.folder / 'model.onnx'}: output {name!r} is not a finite number for a window of "
                    f"{feed['ids'].shape[1] - 2} pieces; a model in 16 bits overflows where one in 32 does not"
                )
        return dict(zip(self._outputs, found, strict=True))
