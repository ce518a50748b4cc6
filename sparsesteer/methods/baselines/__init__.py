"""What SPARE is compared with, each from its published definition."""

from sparsesteer.methods.baselines.control import Control, LastTokenControl, SpareControl

__all__ = ["Control", "LastTokenControl", "SpareControl"]
