"""Per-request steering inside vLLM: each request of a continuous batch follows a spec of its own."""

from sparsesteer.serving.doses import measured_stream_norms
from sparsesteer.serving.registration import register, remove, status
from sparsesteer.serving.served_spec import ServedSpec
from sparsesteer.serving.spec_store import SpecStore

__all__ = ["ServedSpec", "SpecStore", "measured_stream_norms", "register", "remove", "status"]
