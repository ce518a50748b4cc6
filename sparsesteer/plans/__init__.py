"""Plans: what the kernels read; files, the hub and llama.cpp's control vectors."""

from sparsesteer.plans.plan import SteeringPlan

__all__ = ["SteeringPlan"]
