"""Which features are watched where: from what the user says to plans that are read and never applied."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import nn

from sparsesteer.activations import ReLU
from sparsesteer.edits import Edit
from sparsesteer.model.places import Place
from sparsesteer.model.sites import CallSource, ModelSites, SiteName
from sparsesteer.plans import SteeringPlan
from sparsesteer.sae import SAE
from sparsesteer.site import Site

Features = Iterable[int] | Edit | SteeringPlan


@dataclass(frozen=True)
class WatchedFeature:
    """One column of a recording."""

    site: str
    feature: int

    def __str__(self) -> str:
        return f"feature {self.feature} at {self.site}"


@dataclass(frozen=True)
class WatchedSite:
    """A place and the plan whose activations are read there."""

    name: str
    place: Place
    plan: SteeringPlan
    features: tuple[int, ...]  # in the order asked for; those of the plan rise

    @property
    def columns(self) -> tuple[WatchedFeature, ...]:
        """Its columns of the recording."""
        return tuple(WatchedFeature(self.name, feature) for feature in self.features)


def site_name(site: SiteName) -> str:
    """A site as recordings name it: a block's number is the residual after it."""
    if isinstance(site, int) and not isinstance(site, bool):
        return f"blocks.{site}.hook_resid_post"
    return str(site.hook_name if isinstance(site, Site) else site)


@contextmanager
def named_record() -> Iterator[None]:
    """Errors of what recording shares with steering, in the name of ``record``."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("steer: ", "record: ", 1)) from error


def watched_sites(model: nn.Module, sae: Any, features: Any) -> tuple[CallSource, list[WatchedSite]]:
    """(the modules whose calls show the tokens, the sites that ``record`` reads).

    Raises:
        TypeError, ValueError: arguments that do not fit each other or the model.
    """
    with named_record():
        sites = ModelSites.of(model)
        found = [_watched_site(sites, *each) for each in _by_site(sae, features)]
    sources = {sites.source_of(site.place) for site in found}
    if len(sources) > 1:
        raise ValueError("record: these sites read different tokens (an encoder's and a decoder's); record one of them")
    return sources.pop(), found


def order_of(sites: Sequence[WatchedSite]) -> list[int] | None:
    """Where the plans' columns, one site after the other, have the features; None if in their order."""
    order: list[int] = []
    for site in sites:
        places = {feature: len(order) + i for i, feature in enumerate(site.plan.features.tolist())}
        order += [places[feature] for feature in site.features]
    return None if order == sorted(order) else order


def _by_site(sae: Any, features: Any) -> list[tuple[SiteName, SAE, Features]]:
    """(site, SAE, features) of each site."""
    of_saes, of_features = (each if isinstance(each, Mapping) else None for each in (sae, features))
    if of_saes is not None and of_features is not None and of_saes.keys() != of_features.keys():
        raise ValueError(
            f"record: the SAEs are for sites {list(of_saes)}, the features for {list(of_features)}; name the same ones"
        )
    keys = of_features if of_saes is None else of_saes
    if keys is None:
        if isinstance(sae, SAE) and sae.site.hook_name is None:
            raise ValueError("record: the SAE knows no site; name one: ss.record(model, {15: sae}, features)")
        keys = {sae.site.hook_name: None} if isinstance(sae, SAE) else {"": None}
    if not keys:
        raise ValueError("record: no site was given")
    return [
        (site, sae if of_saes is None else of_saes[site], features if of_features is None else of_features[site])
        for site in keys
    ]


def _watched_site(sites: ModelSites, site: SiteName, sae: object, features: Features) -> WatchedSite:
    if not isinstance(sae, SAE):
        raise TypeError(f"record: sae should be an SAE or {{site: SAE}}, got {type(sae).__name__}")
    place = sites.resolve(site)
    if place.width not in (None, sae.d_in):
        raise ValueError(
            f"record: the SAE has width {sae.d_in}, the model has width {place.width} at {place.path}; "
            "was the SAE made for this model?"
        )
    if isinstance(features, SteeringPlan):
        plan = _plan_of_plan(sae, features)
        numbers = tuple(plan.features.tolist())
    else:
        numbers = features.features if isinstance(features, Edit) else _numbers(features)
        plan = sae.plan(Edit.ablate(numbers))
    if not numbers:
        raise ValueError(f"record: no feature was given to watch at {site}")
    return WatchedSite(site_name(site), place, plan, numbers)


def _numbers(features: object) -> tuple[int, ...]:
    if isinstance(features, torch.Tensor):
        features = features.tolist()
    if isinstance(features, str) or not isinstance(features, Iterable):
        raise TypeError(f"record: features should be a list of features, an Edit or a plan, got {features!r}")
    numbers = list(features)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise TypeError(f"record: a feature is a whole number, got {number!r}")
    twice = {number for number in numbers if numbers.count(number) > 1}
    if twice:
        raise ValueError(f"record: feature {min(twice)} is named twice")
    return tuple(int(number) for number in numbers)


def _plan_of_plan(sae: SAE, plan: SteeringPlan) -> SteeringPlan:
    """A plan whose rows are those of all features that ``plan`` edits, its constant ones too."""
    if plan.encoder.shape[1] != sae.d_in:
        raise ValueError(f"record: the plan is of width {plan.encoder.shape[1]}, the SAE of width {sae.d_in}")
    if plan.sae is None:
        if plan.sae_digest not in (None, sae.digest):
            raise ValueError("record: the plan was made from another SAE than the one given")
        plan = replace(plan, sae=sae if plan.needs_sae else None)
    sae = plan.sae or sae
    constant = plan.constant_features.tolist()
    if not constant:
        return plan
    activation = ReLU() if sae.k and not plan.k else None  # a plan without its SAE's TopK
    rest = sae.plan(Edit.ablate(constant), activation=activation, reconstruct=plan.reconstruct)
    rest = replace(rest.to(plan.device, plan.encoder.dtype), sae_digest=plan.sae_digest)
    bare = replace(
        plan, constant_features=plan.constant_features[:0], delta_bias=None, scale_rule=rest.scale_rule, gap=0.0,
        preserve_norm=False,
    )  # fmt: skip
    return bare | rest
