"""Features by their Neuronpedia ids and addresses; nothing is asked of the network."""

import functools
import re
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from sparsesteer.sae import SAE

_ID = re.compile(
    r"(?:(?:https?://)?(?:www\.)?neuronpedia\.org/(?:api/feature/)?)?"
    r"(?P<model>[\w.-]+)/(?:(?P<layer>\d+)-)?(?P<sae_set>[\w.-]+)/(?P<feature>\d+)/?(?:[?#].*)?",
    re.ASCII | re.IGNORECASE,
)
_EXAMPLE = "gpt2-small/8-res-jb/123 or https://www.neuronpedia.org/gpt2-small/8-res-jb/123"


@dataclass(frozen=True)
class NeuronpediaFeature:
    """A feature as Neuronpedia names it: model, set of SAEs, layer, number.

    ``layer`` is Neuronpedia's count, not always the block's: gpt2-small/12-res-jb is the residual after block 11. It is
    None for the few sets that have none.
    """

    model: str
    sae_set: str
    layer: int | None
    feature: int

    @classmethod
    def parse(cls, text: str) -> "NeuronpediaFeature":
        """From an id ("gpt2-small/8-res-jb/123") or an address. Raises ValueError for anything else."""
        found = _ID.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is no feature of Neuronpedia; one reads {_EXAMPLE}")
        layer = found["layer"]
        return cls(found["model"], found["sae_set"], None if layer is None else int(layer), int(found["feature"]))

    @property
    def sae(self) -> str:
        """The SAE's id, "gpt2-small/8-res-jb"."""
        return f"{self.model}/{self.sae_set}" if self.layer is None else f"{self.model}/{self.layer}-{self.sae_set}"

    def __str__(self) -> str:
        return f"{self.sae}/{self.feature}"

    def in_sae_lens(self) -> tuple[str, str]:
        """(release, sae_id) for ``SAE.from_pretrained``, out of the list that sae-lens ships.

        Raises:
            ImportError: sae-lens is not installed.
            ValueError: its list does not have the SAE.
        """
        known = _published_saes()
        if self.sae not in known:
            raise ValueError(f"the list of the installed sae-lens does not have Neuronpedia's SAE {self.sae}")
        return known[self.sae]

    def in_sae(self, sae: "SAE") -> int:
        """The feature's number, once it is certain that it is one of this SAE.

        Raises:
            ValueError: it is another SAE's, or the SAE does not say which of Neuronpedia's it is.
        """
        known = sae.site.neuronpedia_id
        if known is None:
            raise ValueError(
                f"{self}: this SAE does not say which of Neuronpedia's it is; give the number {self.feature} if it is "
                f'{self.sae}, or say so: sae.site = dataclasses.replace(sae.site, neuronpedia_id="{self.sae}")'
            )
        if known != self.sae:
            raise ValueError(f"{self} is a feature of another SAE; this one is {known} on Neuronpedia")
        return self.feature


def is_id(name: str) -> bool:
    """True for what is written like an id or address, rather than like a word."""
    return name.count("/") >= 2 or "neuronpedia.org" in name.lower()


@functools.lru_cache(maxsize=1)
def _published_saes() -> dict[str, tuple[str, str]]:
    """Neuronpedia's id -> (release, sae_id)."""
    # the package is only located: importing it would load all of transformer-lens
    package = util.find_spec("sae_lens")
    if package is None or not package.submodule_search_locations:
        raise ImportError("Neuronpedia's ids are looked up in sae-lens's list: pip install sparsesteer[lens]")
    listed = Path(package.submodule_search_locations[0]) / "pretrained_saes.yaml"
    releases = yaml.load(listed.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {
        entry["neuronpedia"]: (release, entry["id"])
        for release, published in releases.items()
        for entry in published["saes"]
        if entry.get("neuronpedia")
    }
