"""What an operator declares when the engine starts: ``additional_config={"sparsesteer": {...}}`` of vLLM."""

from dataclasses import dataclass, field, fields
from typing import Any

from sparsesteer.serving.limits import Limits


@dataclass(frozen=True)
class DeclaredSite:
    """A place that may be steered, and room for the features of all specs in use there.

    Args:
        sae: a folder that ``SAE.load_from_disk`` reads, or "release:sae_id" of sae-lens.
        site: the block, where the SAE's own site is not meant.
        features: different features at a time.
        entries: edited features of all specs, shared ones counted for each; 4 times ``features`` if not given.
        preserve_norm: plans of this kind need a bank of their own.
    """

    sae: str
    site: int | str | None = None
    features: int = 4096
    entries: int | None = None
    preserve_norm: bool = False


@dataclass(frozen=True)
class Settings:
    """All of it.

    Args:
        sites: places that may be steered; those of the specs in ``specs`` need not be declared.
        specs: a folder of specs, read at the start and written by registrations.
        slots: different specs of running requests, others wait; 1024, or as many as run at a time, if not given.
        limits: what is taken from outside.
        allow_registration: let clients of the HTTP server register and remove specs; an API key is needed too.
        v2_runner: start with vLLM's V2 runner too, where steering has never run on a GPU.
    """

    sites: tuple[DeclaredSite, ...] = ()
    specs: str | None = None
    slots: int | None = None
    limits: Limits = field(default_factory=Limits)
    allow_registration: bool = False
    v2_runner: bool = False


KEY = "sparsesteer"


def settings_of(additional_config: Any) -> Settings | None:
    """The settings in vLLM's ``additional_config``; None if there are none.

    Raises:
        ValueError: names or types that are not known, with those that are.
    """
    document = additional_config.get(KEY) if isinstance(additional_config, dict) else None
    if document is None:
        return None
    given = _known(document, Settings, f"additional_config[{KEY!r}]", also=("version",))
    given.pop("version", None)
    sites = given.get("sites", ())
    if not isinstance(sites, list | tuple):
        raise ValueError("sparsesteer: sites should be a list of {sae: ...}")
    given["sites"] = tuple(_site(each, f"sites[{i}]") for i, each in enumerate(sites))
    given["limits"] = Limits(**_known(given.get("limits", {}), Limits, "limits"))
    return Settings(**given)


def _site(document: Any, where: str) -> DeclaredSite:
    given = _known(document, DeclaredSite, where)
    if not isinstance(given.get("sae"), str):
        raise ValueError(f"sparsesteer: {where} needs the sae, a folder or 'release:sae_id'")
    return DeclaredSite(**given)


def _known(document: Any, kind: type, where: str, also: tuple[str, ...] = ()) -> dict[str, Any]:
    names = [each.name for each in fields(kind)]
    if not isinstance(document, dict):
        raise ValueError(f"sparsesteer: {where} should be a mapping with {', '.join(names)}")
    for name in document:
        if name not in (*names, *also):
            raise ValueError(f"sparsesteer: {where}: {name!r} is not known there; {', '.join(names)} are")
    return dict(document)
