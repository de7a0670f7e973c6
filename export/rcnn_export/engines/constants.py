"""The values that a traced network computes from its parameters alone, and the parameters that a changed graph keeps."""

from typing import Any

import torch
from torch import Tensor, fx, nn


class Constants:
    """The tensors of a traced network.

    Args:
        traced: the graph may change later; its existing tensors must not.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        self._traced = traced
        self._values: dict[fx.Node, Tensor | None] = {}

    def value(self, argument: object) -> Tensor | None:
        """The value of a node that depends on no input, or of a number; None for any other argument."""
        if isinstance(argument, (int, float)):
            return torch.tensor(argument, dtype=torch.float64)
        if not isinstance(argument, fx.Node):
            return None
        if argument not in self._values:
            self._values[argument] = self._evaluate(argument)
        return self._values[argument]

    def add(self, name: str, value: Tensor) -> str:
        """Adds a tensor under this name, or with a number appended if the name is taken; returns the name."""
        unique, number = name, 1
        while hasattr(self._traced, unique):
            unique, number = f"{name}_{number}", number + 1
        self._traced.register_parameter(unique, nn.Parameter(value, requires_grad=False))
        return unique

    def used_module(self) -> fx.GraphModule:
        """The traced network with the tensors that its graph uses, and no others."""
        graph = self._traced.graph
        nodes = graph.find_nodes(op="get_attr")
        for node in nodes:
            if not node.users:
                graph.erase_node(node)
        names = {str(node.target) for node in nodes if node.users}
        return fx.GraphModule({name: self._find(name) for name in names}, graph)

    def _find(self, name: str) -> Any:
        found: Any = self._traced
        for part in name.split("."):
            found = getattr(found, part)
        return found

    def _evaluate(self, node: fx.Node) -> Tensor | None:
        if node.op == "get_attr":
            found = self._find(str(node.target))
            return found.detach() if isinstance(found, Tensor) else None
        is_pure = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
        if node.op != "call_function" or not is_pure or not node.all_input_nodes:
            return None
        if any(self.value(each) is None for each in node.all_input_nodes):
            return None
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), self.value)
        result = node.target(*arguments, **keywords)  # type: ignore[operator]
        return result if isinstance(result, Tensor) else None
