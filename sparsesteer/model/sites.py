"""From the name of a place in a model ("blocks.16.hook_resid_post", "model.layers.16", 16) to its module."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from sparsesteer.model.hook_points import FAMILIES, family
from sparsesteer.model.places import Place, Side, argument_names, without_compile_wrapper, without_compile_wrappers
from sparsesteer.site import Site

SiteName = int | str | Site

_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_RESIDUAL: dict[str, Side] = {"hook_resid_pre": "input", "hook_resid_post": "output"}
_SWITCHES = {  # of TransformerLens, for hook points that are passed by otherwise
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_attn_in": "use_attn_in",
    "hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
}
_AS_WIDE_AS_THE_STREAM = ("hook_attn_out", "hook_resid_mid", "hook_mlp_in", "hook_mlp_out", "mlp.hook_in")


@dataclass(frozen=True)
class CallSource:
    """The modules whose hooks follow the forward calls."""

    shows: nn.Module  # is called with the tokens, the attention mask and the cache
    around: tuple[nn.Module, ...] = ()  # what else is called with token ids, the inner ones first
    is_called_whole: bool = True  # every place runs inside of its call; else after it has begun


@dataclass(frozen=True)
class ModelSites:
    """The modules of a model by path, as if nothing were wrapped by ``torch.compile``, and its list of blocks."""

    root: nn.Module
    modules: dict[str, nn.Module]
    blocks: tuple[str, ...]
    root_is_compiled: bool

    @classmethod
    def of(cls, model: nn.Module) -> "ModelSites":
        """Raises TypeError for what is not a torch module."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"steer: model should be a torch.nn.Module, got {type(model).__name__}")
        root = without_compile_wrapper(model)
        modules: dict[str, nn.Module] = {}
        for path, module in root.named_modules(remove_duplicate=False):
            # The wrapper of a compiled submodule comes before the submodule and keeps the path: hooks on it run
            # outside the compiled code.
            modules.setdefault(without_compile_wrappers(path), module)
        return cls(root, modules, _block_paths(root, modules), root_is_compiled=root is not model)

    def read_and_written(self, site: SiteName) -> tuple[Place, Place]:
        """The places where a plan's x is read and where its edit is written; they differ for a transcoder.

        Raises:
            ValueError, TypeError: as ``resolve``; a place to write at that can only be read.
        """
        read = written = self.resolve(site)
        if isinstance(site, Site) and site.hook_name_out not in (None, site.hook_name):
            written = self.resolve(cast(str, site.hook_name_out))
        if written.read_only:
            raise ValueError(
                f"steer: {written.path} can be read and not written: the model goes on with other numbers than these"
            )
        return read, written

    def resolve(self, site: SiteName) -> Place:
        """The place that a name or a block's number means; of a ``Site`` the one it reads.

        Raises:
            ValueError: no such place, with what the model has.
            TypeError: neither a site, a name nor a number.
        """
        if isinstance(site, Site):
            if site.hook_name is None:
                raise ValueError("steer: the plan knows no site; name one: ss.steer(model, {15: plan})")
            return self.resolve(site.hook_name)
        if isinstance(site, int) and not isinstance(site, bool):
            return self._block(site)
        if not isinstance(site, str):
            raise TypeError(
                f"steer: a site is a block's number, a name such as 'blocks.3.hook_resid_post' or a module path, "
                f"got {site!r}"
            )
        place = self._lens_point(site) or self._module(site) or self._named_point(site)
        if place is None:
            raise ValueError(f"steer: {type(self.root).__name__} has no place {site!r}; {self._what_exists(site)}")
        return place

    def source_of(self, place: Place) -> "CallSource":
        """Where the calls that reach a place show their tokens and the attention mask.

        The nearest module around the place that takes ``input_ids``; of a compiled model the outermost, whose hooks
        run outside the compiled code.
        """
        lens = _lens_source(self.root)
        if lens is not None:
            return lens
        parts = place.path.split(".")
        around = [self.modules.get(".".join(parts[:end])) for end in range(len(parts), -1, -1)]
        takers = [module for module in around if module is not None and "input_ids" in argument_names(module)]
        if not takers:
            return CallSource(self.root)
        shows, *others = takers[-1:] if self.root_is_compiled else takers
        return CallSource(shows, tuple(others))

    def _block(self, index: int, side: Side = "output") -> Place:
        if not self.blocks:
            raise ValueError(
                f"steer: {type(self.root).__name__} has no list of blocks that can be told from others; "
                f"name a module's path instead of block {index}; {self._what_exists(str(index))}"
            )
        if not 0 <= index < len(self.blocks):
            raise ValueError(f"steer: there is no block {index}; {self._what_exists('')}")
        path = self.blocks[index]
        return Place(path, self.modules[path], side, self._width())

    def _lens_point(self, name: str) -> Place | None:
        """The hook point that a model of TransformerLens has under a name; its aliases are not paths of modules."""
        point = getattr(self.root, "hook_dict", {}).get(name)
        if point is None:
            return None
        switch = _SWITCHES.get(name.rpartition(".")[2])
        if switch is not None and not getattr(self.root.cfg, switch, False):
            raise ValueError(f"steer: {name} does nothing unless it is switched on; call model.set_{switch}(True)")
        # A TransformerBridge around a transformers model shows some tensors without going on with what hooks make of
        # them: a norm's inside, and the residual amid a block, which is there the input of what reads it.
        bridged = hasattr(self.root, "original_model")
        amid_block = bridged and name.endswith("hook_resid_mid")
        inside_norm = bridged and name.endswith(("hook_normalized", "hook_scale"))
        return Place(name, point, "stream" if amid_block else "output", read_only=inside_norm)

    def _module(self, name: str) -> Place | None:
        """A module's output by its path, or with ``.input`` or ``.output`` behind the path."""
        path, side = self._find(name), "output"
        if path is None:
            name, _, side = name.rpartition(".")
            path = self._find(name) if side in ("input", "output") else None
        if path is None:
            return None
        return Place(path, self.modules[path], cast(Side, side), self._width() if path in self.blocks else None)

    def _find(self, name: str) -> str | None:
        """The path of a module, also where the model is a part of the named one or is wrapped by another."""
        if name in self.modules and name:
            return name
        wrapped = [path for path in self.modules if path.endswith("." + name)]
        if len(wrapped) == 1:
            return wrapped[0]
        inner = name.partition(".")[2]
        return inner if inner in self.modules and inner else None

    def _named_point(self, name: str) -> Place | None:
        """A hook point of TransformerLens in a model of transformers."""
        if name == "hook_embed" and hasattr(self.root, "get_input_embeddings"):
            return Place(name, cast(Callable, self.root.get_input_embeddings)(), width=self._width())
        found = _IN_BLOCK.fullmatch(name)
        if found is None:
            return None
        index, point = int(found[1]), found[2]
        block = self._block(index, _RESIDUAL.get(point, "output"))
        if point in _RESIDUAL:
            return block
        where = FAMILIES.get(family(_text_config(self.root)), {}).get(point)
        if where is None:
            return None
        child, _, side = where.rpartition(".")
        path = f"{block.path}.{child}"
        width = self._width() if point in _AS_WIDE_AS_THE_STREAM else None
        return Place(path, self.modules[path], cast(Side, side), width, read_only=side == "normalized")

    def _width(self) -> int | None:
        return getattr(_text_config(self.root), "hidden_size", None)

    def _what_exists(self, name: str) -> str:
        parts = []
        if self.blocks:
            last = len(self.blocks) - 1
            parts.append(
                f"it has blocks 0 to {last}: a number, 'blocks.0.hook_resid_pre' to 'blocks.{last}.hook_resid_post', "
                f"or module paths '{self.blocks[0]}' to '{self.blocks[last]}' and those inside, "
                "whose inputs are '<path>.input'"
            )
        if _IN_BLOCK.fullmatch(name):
            kind = family(_text_config(self.root))
            points = ", ".join(FAMILIES.get(kind, {}))
            parts.append(f"inside its blocks it has {points}" if points else f"hook points of {kind} are not known")
        close = difflib.get_close_matches(name, [path for path in self.modules if path], n=3)
        if close:
            parts.append("close module paths are " + ", ".join(map(repr, close)))
        elif not self.blocks:
            parts.append("its modules begin with " + ", ".join(repr(path) for path in list(self.modules)[1:9]))
        return "; ".join(parts)


def _lens_source(root: nn.Module) -> CallSource | None:
    """Of a TransformerBridge the model inside; of a HookedTransformer its first block, which gets the mask it made.

    A HookedTransformer often calls its own forward past all hooks on itself.
    """
    if not hasattr(root, "hook_dict"):
        return None
    if hasattr(root, "original_model"):
        return CallSource(cast(nn.Module, root.original_model))
    return CallSource(cast(nn.ModuleList, root.blocks)[0], (root,), is_called_whole=False)


def _text_config(model: nn.Module) -> object:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _block_paths(root: nn.Module, modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """The paths of the model's blocks in order; empty where the list of blocks cannot be told from others."""
    n_blocks = getattr(_text_config(root), "num_hidden_layers", None)
    lists = [
        path
        for path, module in modules.items()
        if isinstance(module, nn.ModuleList) and len(module) and n_blocks in (None, len(module))
    ]
    outermost = [path for path in lists if not any(path.startswith(other + ".") for other in lists)]
    encodes_first = getattr(getattr(root, "config", None), "is_encoder_decoder", False)
    if len(outermost) > 1 and hasattr(root, "get_decoder") and not encodes_first:  # an image model has as many blocks
        decoder = cast(Callable, root.get_decoder)()
        outermost = [path for path in outermost if any(modules[path] is module for module in decoder.modules())]
    if len(outermost) != 1:
        return ()
    prefix = outermost[0] + "." if outermost[0] else ""
    return tuple(f"{prefix}{i}" for i in range(len(modules[outermost[0]])))  # type: ignore[arg-type]
