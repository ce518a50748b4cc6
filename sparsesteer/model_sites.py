"""From the name of a place in a model ("blocks.16.hook_resid_post", "model.layers.16", 16) to its module."""

import difflib
import inspect
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparsesteer.site import Site

_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_COMPILED_CHILD = "_orig_mod"


@dataclass(frozen=True)
class Place:
    """A module whose output (or input, if ``before``) is steered."""

    path: str
    module: nn.Module
    before: bool = False
    width: int | None = None  # of the residual stream, where the place is on it


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
            modules.setdefault(_plain(path), module)
        return cls(root, modules, _block_paths(root, modules), root_is_compiled=root is not model)

    def resolve(self, site: Site | str | int) -> Place:
        """The place that a site, a name or a block's number means.

        Raises:
            ValueError: no such place, with what the model has.
            TypeError: neither a site, a name nor a number.
        """
        if isinstance(site, Site):
            return self.resolve(_hook_name(site))
        if isinstance(site, int) and not isinstance(site, bool):
            return self._block(site)
        if not isinstance(site, str):
            raise TypeError(
                f"steer: a site is a block's number, a name such as 'blocks.3.hook_resid_post' or a module path, "
                f"got {site!r}"
            )
        path = self._find(site)
        if path is not None:
            return Place(path, self.modules[path], width=self._width() if path in self.blocks else None)
        residual = _RESIDUAL.fullmatch(site)
        if residual is None:
            raise ValueError(f"steer: {type(self.root).__name__} has no place {site!r}; {self._what_exists(site)}")
        return self._block(int(residual[1]), before=residual[2] == "pre")

    def reader_of(self, place: Place) -> nn.Module:
        """The module whose calls show token ids and attention mask: the nearest one around the place that takes
        ``input_ids``; of a compiled model the outermost, whose hooks run outside the compiled code."""
        parts = place.path.split(".")
        around = [self.modules.get(".".join(parts[:end])) for end in range(len(parts), -1, -1)]
        readers = [module for module in around if module is not None and "input_ids" in argument_names(module)]
        if not readers:
            return self.root
        return readers[-1] if self.root_is_compiled else readers[0]

    def _block(self, index: int, before: bool = False) -> Place:
        if not self.blocks:
            raise ValueError(
                f"steer: {type(self.root).__name__} has no list of blocks that can be told from others; "
                f"name a module's path instead of block {index}; {self._what_exists(str(index))}"
            )
        if not 0 <= index < len(self.blocks):
            raise ValueError(f"steer: there is no block {index}; {self._what_exists('')}")
        path = self.blocks[index]
        return Place(path, self.modules[path], before, self._width())

    def _find(self, name: str) -> str | None:
        """The path of a module, also where the model is a part of the named one or is wrapped by another."""
        if name in self.modules and name:
            return name
        wrapped = [path for path in self.modules if path.endswith("." + name)]
        if len(wrapped) == 1:
            return wrapped[0]
        inner = name.partition(".")[2]
        return inner if inner in self.modules and inner else None

    def _width(self) -> int | None:
        return getattr(_text_config(self.root), "hidden_size", None)

    def _what_exists(self, name: str) -> str:
        parts = []
        if self.blocks:
            last = len(self.blocks) - 1
            parts.append(
                f"it has blocks 0 to {last}: a number, 'blocks.0.hook_resid_pre' to 'blocks.{last}.hook_resid_post', "
                f"or module paths '{self.blocks[0]}' to '{self.blocks[last]}' and those inside"
            )
        close = difflib.get_close_matches(name, [path for path in self.modules if path], n=3)
        if close:
            parts.append("close module paths are " + ", ".join(map(repr, close)))
        elif not self.blocks:
            parts.append("its modules begin with " + ", ".join(repr(path) for path in list(self.modules)[1:9]))
        return "; ".join(parts)


def without_compile_wrapper(module: nn.Module) -> nn.Module:
    """The module behind ``torch.compile(module)``, or the module itself."""
    return module._modules.get(_COMPILED_CHILD) or module


def argument_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the arguments of a module's forward, in order."""
    return tuple(inspect.signature(without_compile_wrapper(module).forward).parameters)


def _plain(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != _COMPILED_CHILD)


def _hook_name(site: Site) -> str:
    if site.hook_name is None:
        raise ValueError("steer: the plan knows no site; name one: ss.steer(model, {15: plan})")
    if site.hook_name_out not in (None, site.hook_name):
        raise ValueError(
            f"steer: the plan reads at {site.hook_name} and writes at {site.hook_name_out} (a transcoder); a hook "
            "steers where it reads, use ss.ops.steer(x, plan, into=w) in hooks of your own"
        )
    return site.hook_name


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
    if len(outermost) != 1:
        return ()
    prefix = outermost[0] + "." if outermost[0] else ""
    return tuple(f"{prefix}{i}" for i in range(len(modules[outermost[0]])))  # type: ignore[arg-type]
