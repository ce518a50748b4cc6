"""What an edit leaves to its SAE: names of features become numbers, values relative to a maximum become absolute."""

from dataclasses import replace
from typing import TYPE_CHECKING

from sparsesteer import neuronpedia
from sparsesteer.edits import Edit, Feature, FeatureEdit

if TYPE_CHECKING:
    from sparsesteer.sae import SAE


def resolved(edit: Edit, sae: "SAE") -> Edit:
    """The edit in numbers alone.

    Raises:
        ValueError: a feature that the SAE does not have, a name of none or of several of its features, two names of
            one feature, a relative value where the maximum is not known or not positive.
    """
    names: dict[int, Feature] = {}
    changes = []
    for change in edit.changes:
        feature = feature_of(sae, change.feature)
        if feature in names:
            raise ValueError(f"SAE.plan: feature {feature} is named twice, as {names[feature]} and as {change.feature}")
        names[feature] = change.feature
        numbered = replace(change, feature=feature)
        changes.append(numbered.absolute(_maximum(numbered, sae)) if change.relative else numbered)
    return Edit(tuple(changes))


def feature_of(sae: "SAE", name: Feature) -> int:
    """The number of a feature given by its number, by words of the SAE's explanations, or by a Neuronpedia id.

    Raises:
        ValueError: the SAE has no such feature, or several.
    """
    feature = name if isinstance(name, int) else _named(sae, name)
    if feature >= sae.d_sae:
        raise ValueError(f"SAE.plan: feature {feature} is out of range, this SAE has 0 to {sae.d_sae - 1}")
    return feature


def _named(sae: "SAE", name: str) -> int:
    if neuronpedia.is_id(name):
        return neuronpedia.NeuronpediaFeature.parse(name).in_sae(sae)
    if sae.explanations is None:
        raise ValueError(
            f"SAE.plan: feature {name!r} is named by words, and this SAE has no explanations; give its number, or set "
            "sae.explanations = ss.Explanations.load(path)"
        )
    return sae.explanations.feature(name)


def _maximum(change: FeatureEdit, sae: "SAE") -> float:
    said = f"SAE.plan: {change.rule} of feature {change.feature} to {change.said_value()}"
    if sae.feature_maximum is None:
        raise ValueError(
            f"{said}: this SAE does not know its features' maxima; give an absolute value, or set "
            "sae.feature_maximum = tensor [F] (a folder has them in feature_statistics.safetensors)"
        )
    maximum = float(sae.feature_maximum[int(change.feature)])
    if not maximum > 0:
        raise ValueError(f"{said}: the feature's maximum is {maximum}, it was never active; give an absolute value")
    return maximum
