"""Where the tests of Triton kernels run: on a CUDA device, or on CPU tensors in Triton's interpreter.

The interpreter needs a process of its own: TRITON_INTERPRET=1 must stand before the kernels are imported, and the op
must not be native. It multiplies bf16 wrongly, so that bf16 is for CUDA alone.
"""

import os

import pytest
import torch

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("SPARSESTEER_BACKEND") == "triton"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 SPARSESTEER_BACKEND=triton", allow_module_level=True)

DEVICE = "cpu" if INTERPRETED else "cuda"
HALVES = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)

# NumPy warns of infinities that a GPU meets in silence and tl.where drops
pytestmark = [pytest.mark.triton, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
