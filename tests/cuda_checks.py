"""What the tests on a CUDA device share: types, and calls held by a CUDA graph."""

import pytest
import torch

ON_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
BESIDE_ROUNDING = 1e-4  # of an element, over the size of its row's edit; the rounding of the result itself is free
# of x and of the rows
PAIRS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
]


def replays(call, change) -> bool:
    """True if a CUDA graph of ``call`` gives, after ``change``, the bits that the call itself gives."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # compiles outside the graph
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = call()
    change()
    graph.replay()
    return torch.equal(held, call())
