"""Every on-disk format of an SAE, and live sae_lens objects, to ``SAE``."""

import os

from sparsesteer import explanations
from sparsesteer.loaders.formats import format_of
from sparsesteer.loaders.saelens import from_pretrained, from_saelens
from sparsesteer.loaders.source import Source
from sparsesteer.sae import SAE
from sparsesteer.site import Site

__all__ = ["from_pretrained", "from_saelens", "load_from_disk"]


def load_from_disk(path: str | os.PathLike, *, site: Site | None = None, k: int | None = None) -> SAE:
    """Read an SAE or transcoder of any known format (docs/formats.md), told by what is there.

    Matrices stay on disk until they are needed, and are then read in part where a part is enough. Nothing in a file is
    ever executed.

    Args:
        path: a folder, or one file.
        site: what the files and their path do not tell of model and hooks.
        k: of a TopK SAE whose files and path do not tell it.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: no known format; a damaged or hostile file; weights that disagree with each other or with their
            configuration; a ``site`` or ``k`` that contradicts what the files tell. The message names the file.
    """
    source = Source.of(path, site, k)
    sae = format_of(source).read(source)
    if (source.folder / explanations.FILE_NAME).is_file():
        sae.explanations = explanations.load_for(source.inside(explanations.FILE_NAME), sae.d_sae)
    return sae
