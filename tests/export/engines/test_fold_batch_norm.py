"""Batch normalisation gives the same results, but no node for it remains in the graph."""

import onnx
import pytest
import torch
from rcnn_export.detector.zero_eps import allow_zero_eps
from rcnn_export.engines.fold_batch_norm import to_foldable
from torch import nn
from torchvision.ops import FrozenBatchNorm2d


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(5),
        nn.BatchNorm2d(5, eps=0.0),
        nn.BatchNorm2d(5, affine=False),
        FrozenBatchNorm2d(5),
        FrozenBatchNorm2d(5, eps=0.0),
    ],
)
def test_the_exporter_folds_it(norm: nn.Module) -> None:
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2)
    block = nn.Sequential(nn.Conv2d(2, 5, 3, bias=False), norm, nn.ReLU()).eval()
    allow_zero_eps(block)
    before = [tensor.clone() for tensor in block.state_dict().values()]
    folded, x = to_foldable(block), torch.randn(2, 2, 6, 7)
    torch.testing.assert_close(folded(x), block(x), atol=1e-5, rtol=1e-5)
    assert all(map(torch.equal, before, block.state_dict().values()))
    program = torch.onnx.export(folded, (x,), dynamo=True, verbose=False)
    assert program is not None
    graph: onnx.GraphProto = program.model_proto.graph
    assert [node.op_type for node in graph.node] == ["Conv", "Relu"]
