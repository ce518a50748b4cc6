"""Hooks at a place of a model, and where ours stand among those of others."""

from collections import OrderedDict
from enum import IntEnum
from typing import Any, Protocol, cast

from torch.utils.hooks import RemovableHandle

from sparsesteer.model_sites import Place


class Stage(IntEnum):
    """The order of our hooks at one place; at one stage an outer context comes before an inner one."""

    BEFORE = 0  # reads what enters
    EDIT = 1
    AFTER = 2  # reads what the edits left


class SiteHook(Protocol):
    """What stands at a place: one of its methods is the hook."""

    stage: Stage

    def before_forward(self, module: Any, args: tuple, kwargs: dict) -> Any:
        """The hook where the place is a module's input."""

    def after_forward(self, module: Any, args: tuple, output: Any) -> Any:
        """The hook where it is a module's output."""


def install(place: Place, hook: SiteHook) -> RemovableHandle:
    """All of ours, by stage, stand before the hooks of others, which then see what the model goes on with."""
    module = place.module
    if place.before:
        handle = module.register_forward_pre_hook(hook.before_forward, with_kwargs=True)
        hooks = cast(OrderedDict, module._forward_pre_hooks)
    else:
        handle = module.register_forward_hook(hook.after_forward)
        hooks = cast(OrderedDict, module._forward_hooks)
    stages = {key: _stage_of(each) for key, each in hooks.items()}
    ours = sorted((stage, key) for key, stage in stages.items() if stage is not None)  # keys rise with time
    for _, key in reversed(ours):
        hooks.move_to_end(key, last=False)
    return handle


def _stage_of(hook: object) -> Stage | None:
    stage = getattr(getattr(hook, "__self__", None), "stage", None)
    return stage if isinstance(stage, Stage) else None
