"""A study in one folder: conflicts that the model knows, a fit, a search on dev, the test split answered once.

study.json        what was decided beforehand (``Protocol``), the model and its SAEs
conflicts.jsonl   what is asked, by split
collected/        answers and states of the split fit
spare.safetensors the fitted SPARE
trials.jsonl      every trial on dev
test.jsonl        every answer on test, by method, direction and seed
README.md, report.json, *.svg  the report
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sparsesteer.datasets import read_conflicts, write_conflicts
from sparsesteer.documents import read_document, write_document
from sparsesteer.methods.evaluation.contenders import COUNTS, Contender, Fitted
from sparsesteer.methods.evaluation.json_lines import JsonLines
from sparsesteer.methods.evaluation.prefilled import PrefilledAnswerer
from sparsesteer.methods.evaluation.prompts import behind_demonstrations, by_split
from sparsesteer.methods.evaluation.protocol import Protocol
from sparsesteer.methods.evaluation.trials import TrialLog, answers_of, searched, tried
from sparsesteer.methods.spare import SPARE
from sparsesteer.methods.spare.collection import Collection, collect
from sparsesteer.methods.spare.conflicts import Conflict
from sparsesteer.methods.spare.fitting import check_counts, places_of, statistics_of
from sparsesteer.methods.spare.measuring import Estimate
from sparsesteer.methods.spare.selection import Selection
from sparsesteer.model.sites import ModelSites
from sparsesteer.sae import SAE

Track = Callable[[Sequence, str], Iterable]


class Study:
    """The steps of a study, each of which goes on where it was interrupted.

    Args:
        folder: of the study; made by ``begin``.
        model, tokenizer: of transformers, in evaluation mode.
        saes: {block: SAE}.
        dense_sites: blocks whose states are collected besides, for methods without SAEs.

    Raises:
        FileNotFoundError: no study was begun there.
        ValueError: files that are damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        model: Any,
        tokenizer: Any,
        saes: Mapping[Any, SAE],
        dense_sites: Sequence[Any] = (),
        progress: bool = True,
    ) -> None:
        self.folder, self.model, self.tokenizer, self.progress = Path(folder), model, tokenizer, progress
        self.saes = dict(saes)
        self.dense_sites = [site for site in dense_sites if site not in self.saes]
        self.protocol = Protocol.of(read_document(self.folder / "study.json")["protocol"])
        self.answerer = PrefilledAnswerer(model, tokenizer, self.protocol.max_new_tokens)

    @staticmethod
    def begin(
        folder: str | os.PathLike, examples: Sequence[Mapping], protocol: Protocol, about: Mapping[str, Any]
    ) -> None:
        """Write what is decided and asked.

        Raises:
            ValueError: the folder holds another study already; examples that do not fill the splits.
        """
        path = Path(folder) / "study.json"
        document = json.loads(json.dumps({**about, "protocol": asdict(protocol)}))
        if path.exists():
            if read_document(path) != document:
                raise ValueError(f"{folder} holds a study of other settings; choose another folder, or remove it")
            return
        by_split(examples, protocol.draw)
        write_conflicts(path.parent / "conflicts.jsonl", examples)
        write_document(path, document)

    @cached_property
    def splits(self) -> dict[str, list[Conflict]]:
        """The conflicts that are asked, of each split."""
        found = by_split(read_conflicts(self.folder / "conflicts.jsonl"), self.protocol.draw)
        return {name: self._drawn(some, getattr(self.protocol, f"n_{name}")) for name, some in found.items()}

    @cached_property
    def pool(self) -> list[Conflict]:
        """What is demonstrated: all of the split fit."""
        return by_split(read_conflicts(self.folder / "conflicts.jsonl"), self.protocol.draw)["fit"]

    def asked(self, split: str) -> dict[int, list[Conflict]]:
        """The prompts of a split, by seed. A question of the split fit is not asked behind its own answer.

        Raises:
            ValueError: fewer conflicts than seeds that they are spread over.
        """
        seeds, conflicts = getattr(self.protocol, f"{split}_seeds"), self.splits[split]
        step = len(seeds) if self.protocol.spread else 1
        if len(conflicts) < step:
            raise ValueError(f"{len(conflicts)} conflicts of {split} cannot be spread over {step} seeds")
        return {seed: self._behind(conflicts[place % step :: step], seed) for place, seed in enumerate(seeds)}

    def collected(self, split: str = "fit") -> tuple[Collection, list[Conflict]]:
        """Answers and states of a split's prompts, of all seeds, and the prompts; kept in the folder."""
        conflicts = [conflict for some in self.asked(split).values() for conflict in some]
        sites = ModelSites.of(self.model)
        found = {**places_of(self.model, self.saes), **{site: sites.resolve(site) for site in self.dense_sites}}
        places = {site: found[site] for site in sorted(found)}  # so that a collection serves other SAEs too
        answerer = PrefilledAnswerer(self.model, self.tokenizer, self.protocol.max_new_tokens, places, most_batches=1)
        folder = self.folder / ("collected" if split == "fit" else f"collected_{split}")
        collection = collect(
            answerer, conflicts, with_losses=False, batch_size=32, folder=folder, progress=self.progress
        )
        return collection, conflicts

    def fit(self) -> Fitted:
        """SPARE and what the other methods need, from the split fit. How many features are selected is chosen later.

        Raises:
            ValueError: answers of one kind only; see ``SPARE.fit``.
        """
        found, conflicts = self.collected()
        estimate = Estimate()
        check_counts(found, estimate.n_neighbors + 1)
        path = self.folder / "spare.safetensors"
        if path.exists():
            spare = SPARE.load(path, self.saes)
        else:
            statistics = statistics_of(self.saes, found, estimate, self.progress)
            spare = SPARE(self.saes, statistics, Selection(k=COUNTS[-1]), {"answers": found.counts()})
            spare.save(path)
        return Fitted(spare, found, conflicts, self.pool, self.model.config.get_text_config().num_hidden_layers)

    @property
    def log(self) -> TrialLog:
        """The trials so far."""
        return TrialLog.opened(self.folder / "trials.jsonl")

    def sweep(self, contender: Contender, toward: str, log: TrialLog) -> None:
        """Search the settings of a method on dev, within the budget; those in the log are not tried again."""

        def score(setting: Mapping[str, Any]) -> float:
            return self.trial(contender, toward, setting, log, "search")

        searched(contender.grid, contender.start, self.protocol.budget, score)

    def scan(self, contender: Contender, toward: str, log: TrialLog) -> None:
        """All values of each axis, with the others as chosen: for pictures, and no part of the choice."""
        best = self.chosen(contender.name, toward, log)
        for axis, values in contender.grid.items():
            for value in values:
                self.trial(contender, toward, {**best, axis: value}, log, "scan")

    def trial(self, contender: Contender, toward: str, setting: Mapping[str, Any], log: TrialLog, why: str) -> float:
        """The EM that a setting reaches on dev."""
        known = log.found(contender.name, toward, setting)
        if known is None:
            control = contender.make(setting, toward)
            given = (control, self.answerer, self.dev, contender.name, toward, setting)
            known = tried(*given, in_context=self.protocol.in_context, why=why)
            log.add(known)
        elif (known.why, why) == ("scan", "search"):
            log.add(replace(known, why=why))  # it counts toward the budget
        return known.em

    @cached_property
    def dev(self) -> dict[int, list[Conflict]]:
        """The prompts of dev, by seed."""
        return self.asked("dev")

    def chosen(self, name: str, toward: str, log: TrialLog) -> dict[str, Any]:
        """The best setting of a method. Raises ValueError where the sweep has not tried any."""
        best = log.best(name, toward)
        if best is None:
            raise ValueError(f"{name} toward {toward} has no trials in {log.lines.path}; run the sweep first")
        return best.setting

    def test(self, contenders: Mapping[str, Contender], log: TrialLog, track: Track) -> list[dict]:
        """The test split under every method's chosen setting; an answer that is in the folder is not made anew.

        Raises:
            ValueError: the test split was answered with another setting before.
        """
        done = JsonLines.opened(self.folder / "test.jsonl")
        known = {(line["seed"], line["method"], line["toward"]) for line in done.rows}
        runs = [(name, side) for name, each in contenders.items() for side in each.sides]
        settings = {run: self.chosen(*run, log) for run in runs}
        for line in done.rows:
            run = line["method"], line["toward"]
            if settings.get(run, line["setting"]) != line["setting"]:
                raise ValueError(f"{done.path} has the test split under another setting of {run[0]}: it is run once")
        wanted = [(seed, *run) for seed in self.protocol.test_seeds for run in runs]
        for seed, name, toward in track([each for each in wanted if each not in known], "testing"):
            setting = settings[name, toward]
            control = contenders[name].make(setting, toward).with_seed(seed)
            answers = answers_of(control, self.answerer, self.tested[seed], toward)
            done.add({"method": name, "toward": toward, "setting": setting, "seed": seed, "answers": answers})
        return done.rows

    @cached_property
    def tested(self) -> dict[int, list[Conflict]]:
        """The prompts of test, by seed."""
        return self.asked("test")

    def _drawn(self, conflicts: list[Conflict], most: int) -> list[Conflict]:
        if len(conflicts) <= most:
            return conflicts
        places = np.random.RandomState(self.protocol.draw).choice(len(conflicts), most, replace=False)
        return [conflicts[place] for place in sorted(places)]

    def _behind(self, conflicts: Sequence[Conflict], seed: int) -> list[Conflict]:
        shown = behind_demonstrations(conflicts, self.pool, self.protocol.kinds, seed)
        demonstrated = {each.question for each in shown[0].demonstrations}
        return [conflict for conflict in shown if conflict.question not in demonstrated]
