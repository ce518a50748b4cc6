"""What a study has to be given: questions by what they are for, the numbers that are tried, how SAEs are trained."""

from collections.abc import Sequence
from dataclasses import dataclass

from sparsesteer.datasets.biographies import Question
from sparsesteer.methods.alignsae import LossWeights, Recipe

SLOT_ALPHAS = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
ORDINARY_ALPHAS = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)
DIRECTION_ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
TOP_FEATURES = (1, 8, 32)
# ten to a hundred times fewer steps than published, so that binding and orthogonality have to count for more
RECIPE = Recipe(
    n_free=1024,
    stage_one=5,
    stage_two=40,
    batch_size=128,
    learning_rate=2e-3,
    weights=LossWeights(binding=10.0, orthogonality=1.0),
)


@dataclass(frozen=True)
class Sets:
    """Questions by what they are for: training the SAE, choosing, and testing."""

    train: Sequence[Question]
    validation: Sequence[Question]
    test: dict[str, Sequence[Question]]
    concepts: tuple[str, ...]

    def named(self) -> dict[str, Sequence[Question]]:
        """All of them."""
        return {"train": self.train, "validation": self.validation, **self.test}
