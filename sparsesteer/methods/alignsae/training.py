"""Training in two stages, an epoch at a time, from a checkpoint where there is one."""

import hashlib
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress as Bar
from torch import Tensor, nn

from sparsesteer.methods.alignsae import checkpoints, losses
from sparsesteer.methods.alignsae.checkpoints import Progress
from sparsesteer.methods.alignsae.network import Codes, Network
from sparsesteer.methods.alignsae.recipe import Recipe
from sparsesteer.methods.alignsae.states import Batch, States
from sparsesteer.sae import SAE

_ONE_SEED = 1_000_003  # between the seeds of epochs of different trainings


class Trainer:
    """One network, its optimiser and its data.

    Args:
        n_concepts: R; 0 trains an ordinary SAE, of stage one alone.
        validation: states that the best epoch is chosen on; the training states where there are none, as in the
            released code.
        base: an SAE to start from.
        folder: of the checkpoint.

    Raises:
        ValueError: no states, labels outside of the concepts, a concept of one state or none, a base that does not
            fit, a checkpoint of something else.
    """

    def __init__(
        self,
        states: States,
        n_concepts: int,
        recipe: Recipe,
        *,
        names: tuple[str, ...] = (),
        validation: States | None = None,
        base: SAE | None = None,
        folder: Path | None = None,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> None:
        check_labels(states.labels, n_concepts, names)
        if validation is not None and n_concepts:
            check_range(validation.labels, n_concepts)
        self.states, self.validation, self.recipe = states, validation, recipe
        self.n_concepts, self.folder, self.device, self.show = n_concepts, folder, torch.device(device), progress
        known = states.tokens[states.tokens >= 0].unique() if n_concepts and recipe.weights.value else states.tokens[:0]
        scale, seen = _measured(states)
        network = Network.begun(
            states.width, n_concepts, scale if recipe.normalize else 1.0, known if len(known) else None, base, recipe
        )
        self.network = network.to(self.device)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.data = _data_digest(states, seen, base)
        restored = None
        if folder is not None:
            restored = checkpoints.restore(folder, network, self.optimizer, recipe, self.data)
        self.progress = restored or Progress()

    def run(self, on_epoch: Callable[[Network, dict[str, float]], None] | None = None) -> Network:
        """Train what is left; the network then has the weights of its best epoch.

        Args:
            on_epoch: called after each epoch with the network and the epoch's numbers, which it may add to.

        Raises:
            RuntimeError: a loss that is NaN or infinite; the last checkpoint stays.
        """
        total = self.recipe.epochs if self.n_concepts else self.recipe.stage_one
        with Bar(console=Console(stderr=True), disable=not (self.show and sys.stderr.isatty())) as bar:
            task = bar.add_task("training", total=total, completed=self.progress.epoch)
            while self.progress.epoch < total and not self._stale():
                numbers = self._epoch(self.progress.epoch)
                if on_epoch is not None:
                    on_epoch(self.network, numbers)
                self._keep(numbers)
                last = self.progress.epoch == total or self._stale()
                if self.folder is not None and (last or self.progress.epoch % self.recipe.checkpoint_every == 0):
                    checkpoints.save(self.folder, self.network, self.optimizer, self.progress, self.recipe, self.data)
                told = f"loss {numbers['loss']:.4f}" + (f", slots {numbers['slots']:.3f}" if "slots" in numbers else "")
                bar.update(task, advance=1, description=told)
        if self.progress.best_weights:
            self.network.load_state_dict(self.progress.best_weights)
        return self.network.eval()

    def _epoch(self, epoch: int) -> dict[str, float]:
        binds = epoch >= self.recipe.stage_one
        totals: dict[str, float] = {}
        count = 0
        self.network.train()
        for batch in self.states.shuffled(self.recipe.batch_size, self.recipe.seed * _ONE_SEED + epoch):
            found, right = self._step(batch, binds, epoch)
            for name, value in {**found, **({"slots": right} if binds else {})}.items():
                totals[name] = totals.get(name, 0.0) + value * len(batch)
            count += len(batch)
        numbers = {name: total / count for name, total in totals.items()}
        if binds and self.validation is not None:
            numbers["validation_slots"] = slot_accuracy(self.network, self.validation)
        return numbers

    def _step(self, batch: Batch, binds: bool, epoch: int) -> tuple[dict[str, float], float]:
        h = batch.h.to(self.device) / self.network.scale
        labels, tokens = batch.labels.to(self.device), batch.tokens.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            codes = self.network(h)
        codes = Codes(codes.free.float(), codes.slots.float(), codes.rebuilt.float())
        parts = self._losses(codes, h, labels, tokens, binds)
        weights = vars(self.recipe.weights)
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        broken = losses.check_finite({**parts, "loss": loss})
        if broken:
            raise RuntimeError(
                f"AlignSAE: the loss of {broken} is not finite in epoch {epoch + 1}; "
                f"{self._left_behind()}; a smaller learning_rate, clip=1.0 or fp32 helps"
            )
        self.optimizer.zero_grad()
        loss.backward()
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        right = float((codes.slots.argmax(-1) == labels).float().mean()) if binds else 0.0
        return {name: float(part.detach()) for name, part in {**parts, "loss": loss}.items()}, right

    def _losses(self, codes: Codes, h: Tensor, labels: Tensor, tokens: Tensor, binds: bool) -> dict[str, Tensor]:
        recipe, weights = self.recipe, self.recipe.weights
        found = {"reconstruction": losses.reconstruction(codes.rebuilt, h)}
        if binds or recipe.sparsity_in_stage_one:
            found["sparsity"] = losses.sparsity(codes.free)
        if not binds:
            return found
        found["binding"] = losses.binding(codes.slots, labels, recipe.bind)
        if weights.independence:
            found["independence"] = losses.independence(codes.free)
        if weights.orthogonality:
            found["orthogonality"] = losses.orthogonality(codes.slots, codes.free, recipe.orthogonality)
        if weights.invariance:
            found["invariance"] = losses.invariance(codes.slots, labels)
        heads = self.network.heads
        if weights.value and heads is not None:
            known = tokens >= 0
            answers = torch.searchsorted(heads.tokens, tokens[known])
            found["value"] = heads.loss(codes.slots[known], labels[known], answers)
        return found

    def _keep(self, numbers: dict[str, float]) -> None:
        """The best epoch has the most slots right, then the smallest loss; before stage two there is none."""
        epoch = len(self.progress.history)
        self.progress.history.append({"epoch": epoch + 1, **numbers})
        if "slots" not in numbers:
            return
        score = (numbers.get("validation_slots", numbers["slots"]), -numbers["loss"])
        if score > self.progress.best_score:
            self.progress.best_epoch, self.progress.best_score = epoch, score
            state = self.network.state_dict()
            self.progress.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def _stale(self) -> bool:
        patience, best = self.recipe.patience, self.progress.best_epoch
        return patience is not None and best >= 0 and self.progress.epoch - 1 - best >= patience

    def _left_behind(self) -> str:
        if self.folder is None:
            return "nothing was kept, because no folder was given"
        if not (self.folder / checkpoints.CHECKPOINT).exists():
            return "there was no checkpoint yet"
        return f"the last checkpoint is in {self.folder}"


@torch.no_grad()
def slot_accuracy(network: Network, states: States) -> float:
    """The share of states whose largest slot is that of their concept."""
    right = 0
    for part in states.in_order():
        device = network.W_enc.device
        slots = part.h.to(device) / network.scale @ network.W_enc[:, network.n_free :] + network.b_enc[network.n_free :]
        right += int((slots.argmax(-1).cpu() == part.labels).sum())
    return right / max(1, len(states))


def check_labels(labels: Tensor, n_concepts: int, names: tuple[str, ...] = ()) -> None:
    """Raises ValueError for no labels, labels outside of the concepts, and concepts of no state or of one."""
    if not len(labels):
        raise ValueError("AlignSAE: there are no states to train on")
    if not n_concepts:
        return
    check_range(labels, n_concepts)
    counts = torch.bincount(labels, minlength=n_concepts)
    for concept in (counts < 2).nonzero()[:, 0].tolist():
        name = f"{concept} ({names[concept]})" if names else str(concept)
        raise ValueError(
            f"AlignSAE: concept {name} has {'no example' if not counts[concept] else 'one example'}; its slot needs "
            "two at least, and some dozens to be of use"
        )


def check_range(labels: Tensor, n_concepts: int) -> None:
    """Raises ValueError for labels outside of the concepts."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < n_concepts:
        raise ValueError(
            f"AlignSAE: labels should be from 0 to {n_concepts - 1}, the places of the {n_concepts} concepts, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )


def _measured(states: States) -> tuple[float, str]:
    """(the root mean square of the states, a digest of them), in one pass."""
    total, count = 0.0, 0
    sha = hashlib.sha256()
    for part in states.in_order():
        total += float(part.h.double().pow(2).sum())
        count += part.h.numel()
        sha.update(part.h.double().sum(-1).numpy().tobytes())
    scale = math.sqrt(total / count)
    if not 0 < scale < math.inf:
        raise ValueError(f"AlignSAE: the states have the root mean square {scale}; are they all 0, or NaN?")
    return scale, sha.hexdigest()


def _data_digest(states: States, seen: str, base: SAE | None) -> str:
    sha = hashlib.sha256(seen.encode())
    sha.update(states.labels.numpy().tobytes() + states.tokens.numpy().tobytes())
    sha.update((base.digest if base is not None else "").encode())
    return sha.hexdigest()
