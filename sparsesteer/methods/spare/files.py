"""A fitted SPARE as one safetensors file; the SAEs are named by their digests."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsesteer.files import DescribedTensors
from sparsesteer.methods.spare.selection import Selection
from sparsesteer.methods.spare.statistics import FeatureStatistics
from sparsesteer.sae import SAE
from sparsesteer.site import Site

_FILE = DescribedTensors("sparsesteer.spare", "a fitted SPARE", "spare.save(path)", version=1)


def save(
    path: str | os.PathLike,
    saes: Mapping[Any, SAE],
    statistics: Mapping[Any, FeatureStatistics],
    selection: Selection,
    about: Mapping[str, Any],
) -> Path:
    """Write the file; returns the path."""
    sites = [{"site": as_json(site), "sae_digest": sae.digest} for site, sae in saes.items()]
    tensors = {
        f"{place}.{name}": tensor
        for place, site in enumerate(saes)
        for name, tensor in statistics[site].tensors().items()
    }
    return _FILE.save(path, {"sites": sites, "selection": vars(selection), "about": dict(about)}, tensors)


def load(
    path: str | os.PathLike, saes: Mapping[Any, SAE]
) -> tuple[dict[Any, FeatureStatistics], Selection, dict[str, Any]]:
    """(statistics by site, selection, about). Raises ValueError; see ``SPARE.load``."""
    description, tensors = _FILE.load(path)
    try:
        places = {_key(each["site"]): (place, each["sae_digest"]) for place, each in enumerate(description["sites"])}
        selection, about = Selection(**description["selection"]), dict(description["about"])
        names = FeatureStatistics.__dataclass_fields__
        vectors = [[tensors[f"{place}.{name}"] for name in names] for place in range(len(places))]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a complete fitted SPARE: {error!r}") from error
    given = {_key(as_json(site)): site for site in saes}
    if given.keys() != places.keys():
        raise ValueError(
            f"{path} is of the sites {_listed(places)}, the SAEs given are for {_listed(given)}; "
            "null stands for an SAE that is given alone"
        )
    statistics = {}
    for name, (place, digest) in places.items():
        sae = saes[given[name]]
        if isinstance(sae, SAE) and sae.digest != digest:
            raise ValueError(f"{path} was made with another SAE than the one given for {name}")
        statistics[given[name]] = FeatureStatistics.checked(sae, *vectors[place])
    return statistics, selection, about


def as_json(site: Any) -> Any:
    """A site as it stands in a file: a block's number, a name, the fields of a Site, None for the SAE's own."""
    return vars(site) if isinstance(site, Site) else site


def _key(site: Any) -> str:
    return json.dumps(site, sort_keys=True)


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
