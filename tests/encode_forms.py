"""Ways to cut ``encode`` into programs that small shapes would not take by themselves."""

from sparsesteer.kernels.tiling import ceil_div
from sparsesteer.kernels.tiling_encode import SelectTiling, StreamTiling

CHUNK = 2  # tokens


def stream(tokens, rows):
    return lambda n, n_features, narrow: StreamTiling(tokens, rows, 32, 4)


def roomy(n, n_features, k, width, tiling):
    """Room for all features, of which every fourth block is the sample where that is large enough for k."""
    return _select(n_features, k, tiling.rows, n_features)


def cramped(n, n_features, k, width, tiling):
    """As little room as is legal: many tokens are computed again, their buffers cut over and over."""
    return _select(n_features, k, tiling.rows, (k or width) + tiling.rows)


def _select(n_features, k, rows, room):
    blocks = ceil_div(n_features, rows)
    sampled = ceil_div(blocks, 4) * rows
    if k == 0:
        return SelectTiling(0, 0, room, CHUNK)
    if sampled - rows < k:
        return SelectTiling(1, blocks * rows, blocks * rows, CHUNK)
    return SelectTiling(4, sampled, max(room, sampled), CHUNK)


FORMS = {
    "roomy": (stream(16, 16), roomy),
    "cramped": (stream(16, 16), cramped),
    "wide": (stream(16, 128), roomy),
    "one_token": (stream(1, 16), cramped),
}


def force(monkeypatch, module, name):
    """Gives the launchers of ``encode`` the tilings of a form."""
    tilings = dict(zip(("stream_tiling", "select_tiling"), FORMS[name], strict=True))
    for function, tiling in tilings.items():
        if hasattr(module, function):
            monkeypatch.setattr(module, function, tiling)
