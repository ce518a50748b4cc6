"""Recording what features do while a model runs, and showing it."""

from sparsesteer.recording.recorder import Recorder, record
from sparsesteer.recording.recording import Recording

__all__ = ["Recorder", "Recording", "record"]
