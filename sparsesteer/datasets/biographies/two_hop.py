"""A world of chains of two relations: "Who is the mentor of the cousin of Ada? Basil Celia".

The cousin of Ada is Basil, and the mentor of Basil is Celia; a model answers with both names. At the end of the prompt
the first relation is asked for, behind the first name the second.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sparsesteer.datasets.biographies import names
from sparsesteer.datasets.biographies.questions import PROMPT, Question

RELATIONS = (
    "friend", "colleague", "neighbor", "cousin", "classmate", "boss", "mentor", "rival", "tenant", "landlord", "tutor",
    "pupil", "doctor", "patient", "driver", "partner", "guest", "host", "debtor", "heir",
)  # fmt: skip
MOST_ENTITIES = len(names.FIRST)
CHAIN_SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}  # shares of the chains


@dataclass(frozen=True)
class TwoHop:
    """Entities, each with one other for every relation, and the chains of two relations divided into splits."""

    entities: tuple[str, ...]
    facts: Mapping[tuple[str, str], str]  # (relation, entity) -> entity
    splits: Mapping[tuple[str, str, str], str]  # (entity, first relation, second relation) -> split
    concepts: tuple[str, ...] = RELATIONS

    def statements(self) -> list[str]:
        """A sentence for each fact."""
        return [f"The {relation} of {entity} is {other}." for (relation, entity), other in self.facts.items()]

    def questions(self, hop: int, split: str | None = None) -> list[Question]:
        """The question of every chain, up to where a hop is answered.

        Args:
            hop: 1, the prompt, whose answer is the first name; 2, with that name behind it, whose answer is the second.
            split: of the chains; all by default.

        Raises:
            ValueError: another hop, or no such split.
        """
        if hop not in (1, 2) or (split is not None and split not in CHAIN_SPLITS):
            raise ValueError(f"two_hop: hop is 1 or 2 and split one of {', '.join(CHAIN_SPLITS)}, got {hop}, {split!r}")
        found = []
        for (entity, first, second), own in self.splits.items():
            if split in (None, own):
                prompt = PROMPT.format(question=f"Who is the {second} of the {first} of {entity}?")
                middle = self.facts[first, entity]
                about = entity if hop == 1 else middle
                answers = tuple(self.facts[relation, about] for relation in self.concepts)
                concept = self.concepts.index(first if hop == 1 else second)
                shown = prompt if hop == 1 else f"{prompt} {middle}"
                found.append(Question(shown, concept, answers, about, own))
        return found


def two_hop(n_entities: int = 40, n_chains: int | None = None, seed: int = 42) -> TwoHop:
    """A world of entities with 20 relations: 800 facts of 40 entities, as in the released data.

    Args:
        n_chains: how many of the chains, drawn by chance; all of them, n_entities x 400, by default.

    Raises:
        ValueError: fewer than 2 entities, or more than there are names for, 40; no chains, or more than there are.
    """
    if not isinstance(n_entities, int) or isinstance(n_entities, bool) or not 2 <= n_entities <= MOST_ENTITIES:
        raise ValueError(f"two_hop: n_entities should be from 2 to {MOST_ENTITIES}, got {n_entities!r}")
    every = n_entities * len(RELATIONS) ** 2
    n_chains = every if n_chains is None else n_chains
    if not 1 <= n_chains <= every:
        raise ValueError(f"two_hop: n_chains should be from 1 to {every}, got {n_chains!r}")
    random = np.random.RandomState(seed)
    entities = names.FIRST[:n_entities]
    facts = {}
    for relation in RELATIONS:
        for place, entity in enumerate(entities):
            step = random.randint(1, n_entities)  # nobody is his own cousin
            facts[relation, entity] = entities[(place + step) % n_entities]
    ends = np.round(np.cumsum(list(CHAIN_SPLITS.values())) * n_chains)
    splits = {}
    for rank, place in enumerate(random.permutation(every)[:n_chains].tolist()):
        entity, first, second = np.unravel_index(place, (n_entities, len(RELATIONS), len(RELATIONS)))
        split = list(CHAIN_SPLITS)[int((rank >= ends).sum())]
        splits[entities[entity], RELATIONS[first], RELATIONS[second]] = split
    return TwoHop(entities, facts, splits)
