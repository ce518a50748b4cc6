"""Specs: a steering as a document, YAML or JSON, to a model, an SAE and plans."""

from sparsesteer.specs.spec import SaeReference, Spec, load_spec

__all__ = ["SaeReference", "Spec", "load_spec"]
