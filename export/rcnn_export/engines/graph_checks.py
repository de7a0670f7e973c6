"""Cleans an exported graph, and refuses operators that TensorRT does not support or whose shapes depend on data."""

import ast

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rcnn_export.errors import ExportError

# Operators whose output shape depends on the data, and control flow.
DATA_DEPENDENT = frozenset(
    {"NonZero", "NonMaxSuppression", "Unique", "Compress", "If", "Loop", "Scan", "SequenceMap"}
)
# Operators for which TensorRT needs a plugin, and those that rcnn_backend runs between the engines.
NOT_IN_AN_ENGINE = frozenset({"RoiAlign", "MaxRoiPool", "StringNormalizer", "ImageDecoder", "Optional"})
MODULE_SCOPES = "pkg.torch.onnx.name_scopes"


def clean_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Folds constants, splits means, removes unused nodes, sorts the nodes and checks the result.

    Raises:
        ExportError: the graph contains an operator that cannot be part of an engine.
    """
    modules = {node.name: _module_of(node) for node in model.graph.node}
    axes = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    graph = gs.import_onnx(model)
    graph.fold_constants(error_ok=False)
    split_means(graph)
    graph.cleanup().toposort()
    check_graph(graph, modules)
    cleaned: onnx.ModelProto = gs.export_onnx(graph)
    cleaned.ir_version = model.ir_version
    for value in (*cleaned.graph.input, *cleaned.graph.output):
        value.CopyFrom(axes[value.name])
    onnx.checker.check_model(cleaned, full_check=True)
    return cleaned


def split_means(graph: gs.Graph) -> None:
    """Splits each mean over several axes (global average pooling) into one mean per axis.

    ONNX Runtime sums a whole plane one value after another. Over 150x150 similar values, as in
    padding, that loses 2e-5 of the mean in FP32. Row by row it loses 4e-7, as torch does.
    """
    for node in list(graph.nodes):
        axes = node.inputs[1] if node.op == "ReduceMean" and len(node.inputs) == 2 else None
        if not isinstance(axes, gs.Constant) or axes.values.size < 2 or not node.attrs.get("keepdims", 1):
            continue
        *first, last = sorted(axes.values.tolist(), reverse=True)  # the innermost axis first
        for axis in first:
            mean = gs.Variable(f"{node.name}_over_{axis}", dtype=node.inputs[0].dtype)
            inputs = [node.inputs[0], gs.Constant(f"{mean.name}_axes", np.array([axis]))]
            graph.nodes.append(gs.Node("ReduceMean", mean.name, dict(node.attrs), inputs, [mean]))
            node.inputs[0] = mean
        node.inputs[1] = gs.Constant(f"{node.name}_axes", np.array([last]))


def check_graph(graph: gs.Graph, modules: dict[str, str]) -> None:
    """Refuses the operators named above; ``modules`` maps a node's name to its torch module."""
    for node in graph.nodes:
        where = f"node {node.name!r} of module {modules.get(node.name, '') or '(the top)'!r}"
        if node.op in DATA_DEPENDENT:
            raise ExportError(
                f"operator {node.op} ({where}): the shape of its output depends on the data, which no "
                "engine takes. Replace it in that module by operators of fixed output shape"
            )
        if node.op in NOT_IN_AN_ENGINE or node.domain not in (None, "", "ai.onnx"):
            raise ExportError(
                f"operator {node.domain or ''}{'::' if node.domain else ''}{node.op} ({where}): TensorRT has no "
                "such operator without a plugin. Replace it in that module by standard operators"
            )
        for output in node.outputs:
            if output.dtype in (np.float64, np.complex64, np.complex128):
                raise ExportError(
                    f"operator {node.op} ({where}) computes in {np.dtype(output.dtype)}: TensorRT has no such "
                    "type. Cast to float32 in that module"
                )


def _module_of(node: onnx.NodeProto) -> str:
    """The torch module a node came from, as the exporter noted it."""
    for prop in node.metadata_props:
        if prop.key == MODULE_SCOPES:
            scopes = ast.literal_eval(prop.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return ""
