"""The trained network as an ONNX graph: float for comparison, 8-bit as it ships.

The graph is written node by node: what can be fused is fused the way that is fastest on one processor core (measured,
see the model's card), and nothing else is left in it. Weights of linear layers become 8-bit with one scale an output
(7 bits of them used, so that processors without VNNI instructions do not saturate); what flows into them becomes 8-bit
in fixed steps. Embeddings are 8-bit with one scale a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from guard_models.pipeline.steps import REACH, Steps

Array = NDArray[np.float32]
CONTRIB = "com.microsoft"


@dataclass(slots=True)
class Graph:
    """A graph under construction."""

    state: Mapping[str, Array]
    steps: Mapping[str, Steps] | None
    """How the input of each linear layer becomes 8-bit; None writes a graph in 32 bits."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    used: int = 0

    def constant(self, value: NDArray[np.generic], name: str) -> str:
        if all(known.name != name for known in self.constants):
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        output: str = "",
        *,
        domain: str = "",
        outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        self.used += 1
        names = list(outputs) or [output or f"t{self.used}"]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def linear(self, source: str, layer: str, output: str = "") -> str:
        """`source` times the weights of `layer` plus its bias."""
        weight, bias = self.state[f"{layer}.weight"].T, self.state[f"{layer}.bias"]
        b = self.constant(bias, f"{layer}.bias")
        if self.steps is None:
            product = self.node("MatMul", [source, self.constant(weight, f"{layer}.weight")])
            return self.node("Add", [product, b], output)
        steps = self.steps[layer]
        weight = weight * steps.smooth[:, None]
        scale = np.maximum(np.abs(weight).max(axis=0), 1e-8) / REACH
        whole = np.clip(np.rint(weight / scale), -REACH, REACH).astype(np.int8)
        smoothed = self.node("Mul", [source, self.constant(1 / steps.smooth, f"{layer}.smooth")])
        input_step = self.constant(np.array(steps.step, np.float32), f"{layer}.input_step")
        input_zero = self.constant(np.array(steps.zero, np.uint8), f"{layer}.input_zero")
        return self.node(
            "MatMulIntegerToFloat",
            [
                self.node("QuantizeLinear", [smoothed, input_step, input_zero]),
                self.constant(whole, f"{layer}.weight"),
                input_step,
                self.constant(scale.astype(np.float32), f"{layer}.scale"),
                input_zero,
                self.constant(np.zeros(scale.shape, np.int8), f"{layer}.zero"),
                b,
            ],
            output,
            domain=CONTRIB,
        )

    def plain_linear(self, source: str, layer: str, output: str = "") -> str:
        """As `linear`, in 32 bits: the small layers that decide."""
        weight = self.constant(self.state[f"{layer}.weight"].T, f"{layer}.weight")
        product = self.node("MatMul", [source, weight])
        return self.node("Add", [product, self.constant(self.state[f"{layer}.bias"], f"{layer}.bias")], output)

    def rows(self, table: str, which: str) -> str:
        """Rows `which` of the embedding `table`."""
        weight = self.state[table]
        if self.steps is None:
            return self.node("Gather", [self.constant(weight, table), which])
        scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True), 1e-8) / 127
        whole = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
        picked = self.node("Cast", [self.node("Gather", [self.constant(whole, table), which])], to=TensorProto.FLOAT)
        return self.node(
            "Mul", [picked, self.node("Gather", [self.constant(scale.astype(np.float32), f"{table}.scale"), which])]
        )

    def norm(self, source: str, layer: str) -> str:
        weight, bias = (self.constant(self.state[f"{layer}.{kind}"], f"{layer}.{kind}") for kind in ("weight", "bias"))
        return self.node("LayerNormalization", [source, weight, bias], axis=-1, epsilon=1e-12)


def encoder(graph: Graph, *, layers: int, heads: int, width: int) -> str:
    """The encoder; the name of its output [rows, tokens, width]."""
    words = graph.rows("encoder.words.weight", "ids")
    length = graph.node("Shape", ["ids"], start=1, end=2)
    zero = graph.constant(np.array([0], np.int64), "zero")
    places = graph.node("Slice", [graph.constant(graph.state["encoder.places.weight"], "places"), zero, length, zero])
    shapes = graph.node("Gather", [graph.constant(graph.state["encoder.shapes.weight"], "shape_rows"), "shapes"])
    hidden = graph.node("Add", [graph.node("Add", [words, places]), shapes])
    hidden = graph.norm(hidden, "encoder.norm")
    mask = graph.node("Cast", ["mask"], to=TensorProto.INT32)
    thirds = graph.constant(np.array([width] * 3, np.int64), "thirds")
    for number in range(layers):
        layer = f"encoder.layers.{number}"
        parts = [f"{layer}.{part}" for part in ("query", "key", "value")]
        graph.node("Split", [graph.linear(hidden, f"{layer}.qkv"), thirds], outputs=parts, axis=-1)
        attended = graph.node("MultiHeadAttention", [*parts, "", mask], domain=CONTRIB, num_heads=heads)
        hidden = graph.norm(
            graph.node("Add", [graph.linear(attended, f"{layer}.out"), hidden]), f"{layer}.norm_attention"
        )
        inner = graph.node("Gelu", [graph.linear(hidden, f"{layer}.up")], domain=CONTRIB)
        hidden = graph.norm(graph.node("Add", [graph.linear(inner, f"{layer}.down"), hidden]), f"{layer}.norm_inner")
    return hidden


def pooled(graph: Graph, hidden: str, head: str, output: str) -> None:
    """The head `head` on the whole text, as `network.Pooled`."""
    scores = graph.plain_linear(hidden, f"{head}.score")
    one = graph.constant(np.array(1.0, np.float32), "one")
    far = graph.constant(np.array(-1e4, np.float32), "far")
    if all(node.output[0] != "mask_bias" for node in graph.nodes):
        as_float = graph.node("Cast", ["mask"], to=TensorProto.FLOAT)
        outside = graph.node("Mul", [graph.node("Sub", [one, as_float]), far])
        graph.node("Unsqueeze", [outside, graph.constant(np.array([2], np.int64), "last_axis")], "mask_bias")
    weights = graph.node("Softmax", [graph.node("Add", [scores, "mask_bias"])], axis=1)
    mixed = graph.node("MatMul", [graph.node("Transpose", [weights], perm=[0, 2, 1]), hidden])
    flat = graph.node("Flatten", [mixed], axis=1)
    graph.plain_linear(graph.node("Tanh", [graph.linear(flat, f"{head}.inner")]), f"{head}.out", output)


def finished(graph: Graph, outputs: Mapping[str, Sequence[str | int]]) -> bytes:
    """The serialised model."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"]) for name in ("ids", "mask", "shapes")
    ]
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in outputs.items()]
    made = helper.make_graph(graph.nodes, "guard", inputs, found, graph.constants)
    model = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(CONTRIB, 1)],
        producer_name="outpost",
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def guard_graph(
    state: Mapping[str, Array], steps: Mapping[str, Steps] | None, *, layers: int = 6, heads: int = 12, width: int = 384
) -> bytes:
    """The shared encoder with its three heads."""
    graph = Graph(state, steps)
    hidden = encoder(graph, layers=layers, heads=heads, width=width)
    pooled(graph, hidden, "injection", "injection")
    pooled(graph, hidden, "toxicity", "toxicity")
    graph.plain_linear(hidden, "pii", "pii")
    labels, tags = state["toxicity.out.bias"].shape[0], state["pii.bias"].shape[0]
    return finished(graph, {"injection": ["rows", 1], "toxicity": ["rows", labels], "pii": ["rows", "tokens", tags]})


def reader_graph(
    state: Mapping[str, Array], steps: Mapping[str, Steps] | None, *, layers: int = 6, heads: int = 12, width: int = 384
) -> bytes:
    """The encoder alone: a vector for each piece."""
    graph = Graph(state, steps)
    hidden = encoder(graph, layers=layers, heads=heads, width=width)
    graph.node("Identity", [hidden], "vectors")
    return finished(graph, {"vectors": ["rows", "tokens", width]})
