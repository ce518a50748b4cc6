"""A fixture for tests of compiled kernels: every test of a module that imports it runs on each instruction set."""

import pytest

from sparsesteer import _native


@pytest.fixture(params=("portable", "avx2", "avx512", "avx512_bf16"), autouse=True)
def simd(request):
    """The instruction set of the kernels; the test is skipped where this machine lacks it."""
    before = _native.build_info()["simd"]
    try:
        _native.extension.set_simd_level(request.param)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    yield request.param
    _native.extension.set_simd_level(before)
