"""The parts of ``sparsesteer demo``: choose features, compare texts, measure speed, plot strength."""
