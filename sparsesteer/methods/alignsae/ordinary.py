"""What an SAE without slots has in their place: the features that respond most to each concept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsesteer import reference
from sparsesteer.edits import Edit
from sparsesteer.methods.alignsae.measures import Binding, mean_codes
from sparsesteer.methods.alignsae.states import States
from sparsesteer.methods.spare.measuring import codes_of
from sparsesteer.plans import SteeringPlan
from sparsesteer.sae import SAE


@dataclass(frozen=True)
class OrdinaryFeatures:
    """For each of R concepts the n features whose mean activation on it exceeds that on the others most.

    Attributes:
        features: int64 [R, n], by falling difference.
        means: [R, F], mean activations by concept.
    """

    sae: SAE
    features: Tensor
    means: Tensor

    @classmethod
    def fit(cls, sae: SAE, states: States, n_concepts: int, n: int = 1) -> "OrdinaryFeatures":
        """From labelled states. Raises ValueError for more features than the SAE has."""
        if not 1 <= n <= sae.d_sae:
            raise ValueError(f"AlignSAE: n should be from 1 to the SAE's {sae.d_sae} features, got {n}")
        means = mean_codes(sae, states, n_concepts)
        counts = torch.bincount(states.labels, minlength=n_concepts).double()[:, None]
        others = ((counts * means).sum(0) - counts * means) / (counts.sum() - counts)
        return cls(sae, (means - others).topk(n, dim=-1).indices, means)

    @torch.no_grad()
    def binding(self, states: States) -> Binding:
        """The concept whose features respond most, each as a share of its mean there."""
        own = self.means.gather(1, self.features).clamp(min=1e-12)  # [R, n]
        predicted = []
        for part in states.in_order():
            codes = codes_of(self.sae, reference.read_input(part.h, None), 0, self.sae.d_sae).double()
            predicted.append((codes[:, self.features] / own).mean(-1).argmax(-1))
        return Binding.of(torch.cat(predicted), states.labels, len(self.features))

    def plan(self, source: int, target: int, alpha: float, reconstruct: bool = False) -> SteeringPlan:
        """The swap of AlignSAE on these features: the source's become 0, the target's alpha times their mean there."""
        wanted = self.features[target].tolist()
        removed = [feature for feature in self.features[source].tolist() if feature not in wanted]
        values = {feature: alpha * float(self.means[target, feature]) for feature in wanted}
        return self.sae.plan(Edit.set({**dict.fromkeys(removed, 0.0), **values}), reconstruct=reconstruct)
