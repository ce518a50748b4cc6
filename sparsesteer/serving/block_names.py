"""The names of the places that are steered while serving: the residual stream after a block."""

import re

from sparsesteer.site import Site

_HOOK_POINT = re.compile(r"blocks\.(\d{1,5})\.hook_resid_(pre|post)")
_MODULE_PATH = re.compile(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d{1,5})")


def block_of(place: object) -> int:
    """The number of the block after which a place is: a number, a hook point, or the path of a block's module.

    Raises:
        ValueError: any other place; serving has the residual stream alone.
    """
    if isinstance(place, Site):
        if place.hook_name_out not in (None, place.hook_name):
            raise ValueError(f"{place} is a transcoder's, with two places; while serving one place is read and written")
        place = place.hook_name
    if isinstance(place, int) and not isinstance(place, bool) and place >= 0:
        return place
    if isinstance(place, str):
        point, path = _HOOK_POINT.fullmatch(place), _MODULE_PATH.fullmatch(place)
        if point and (point[2] == "post" or int(point[1])):
            return int(point[1]) - (point[2] == "pre")
        if path:
            return int(path[1])
    raise ValueError(
        f"{place!r} is no place that can be steered while serving; the residual after a block is: its number, "
        "'blocks.3.hook_resid_post', or the block's path 'model.layers.3'"
    )


def name_of(block: int) -> str:
    """The place after a block, as it stands in specs."""
    return f"blocks.{block}.hook_resid_post"
