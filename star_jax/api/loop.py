"""Active learning from a notebook: ask what to label, tell the labels, and go on after the kernel was restarted."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from star_jax.acquisition.settings import check_closed, check_groups, check_strategy_settings
from star_jax.acquisition.strategy import get_strategy
from star_jax.active import ask_tell
from star_jax.active.ask_tell import AskTellState, TellInfo
from star_jax.active.loop import init
from star_jax.active.pool import PoolState
from star_jax.active.query import FIRST
from star_jax.active.state import LoopState, Problem, base_features, base_measures
from star_jax.annotators.annotator import Answer, Request
from star_jax.annotators.oracle import SimulatedOracle
from star_jax.api.checks import check_choice, check_fits, check_replaceable, check_training, check_whole
from star_jax.api.model import Model, TunedAdapter
from star_jax.api.pool import ExamplePool, TokenLimits, Tokens, tokenize
from star_jax.api.training import Evaluation, Prediction, evaluate, predict, step_shapes
from star_jax.checkpoints.fingerprints import fingerprint_like
from star_jax.config import AcquisitionConfig, ExperimentConfig, LoopConfig, LoraConfig, ScoringConfig, TrainingConfig
from star_jax.data.examples import Example
from star_jax.data.skips import is_skip
from star_jax.data.targets import load_targets
from star_jax.errors import ConfigError, DataError
from star_jax.models.lora import Adapter
from star_jax.runs.files import plain, read_json, replace_folder_atomic, write_json_atomic
from star_jax.runs.run_settings import FIT_TO_MEMORY, differences

Answers = Mapping[str, str | None] | Sequence[Answer]

_STATE, _ARRAYS = "loop.json", "loop.npz"


class ActiveLoop:
    """A loop of asking, labelling and training that the caller drives.

    Attributes:
      model: the frozen base model.
      pool: the examples.

    Example:
      >>> import star_jax as sj
      >>> rows = [{"question": f"desc {a} {b} 5 ="} for a in range(4) for b in range(3)]
      >>> training = sj.TrainingConfig(epochs=1)
      >>> loop = sj.ActiveLoop(
      ...     sj.load_model("embedded:skills"), sj.read_pool(rows, "skills"), strategy="entropy", training=training
      ... )
      >>> requests = loop.ask(3)
      >>> info = loop.tell({requests[0].id: "5 2 1", requests[1].id: sj.SKIP})
      >>> info.labelled, info.skipped, info.unanswered
      (1, 1, 1)
      >>> loop.labelled, loop.unlabelled
      (1, 10)
    """

    def __init__(
        self,
        model: Model,
        pool: ExamplePool,
        *,
        strategy: str = "star",
        key: int = 0,
        rounds: int = 10,
        initial: str = "random",
        lora: LoraConfig | None = None,
        training: TrainingConfig | None = None,
        scoring: ScoringConfig | None = None,
        acquisition: AcquisitionConfig | None = None,
        limits: TokenLimits | None = None,
        start: TunedAdapter | None = None,
    ) -> None:
        """A loop before its first question; labels that the pool has already count from the beginning.

        Args:
          model: the frozen base model.
          pool: the examples.
          strategy: name of a strategy, the package's own or a registered one.
          key: seed of everything that is left to chance.
          rounds: trainings that are planned, for schedules that depend on it; more may be made.
          initial: how the first question picks, before there is an adapter: `random`, or by what the base model makes
            of the examples, `typiclust`, `k_center` or `base_uncertainty`.
          lora: rank, scale, dropout and targets of the adapters.
          training: how each is trained.
          scoring: dropout samples, and how many examples are scored at once.
          acquisition: parts of the strategy to replace.
          limits: of tokens.
          start: an adapter to start from, part of the base model and of every training's beginning.

        Raises:
          ConfigError, DataError: something that you can put right.
        """
        acquisition = acquisition or AcquisitionConfig()
        self.model, self.pool = model, pool
        check_whole("key", key)
        check_choice("initial", initial, ("random", *FIRST))
        self._strategy = get_strategy(strategy, acquisition)
        self._config = ExperimentConfig(
            strategies=(strategy,),
            seeds=(key,),
            lora=lora or LoraConfig(),
            training=training or TrainingConfig(),
            scoring=scoring or ScoringConfig(),
            acquisition=acquisition,
            loop=LoopConfig(rounds=check_whole("rounds", rounds), initial=initial),  # type: ignore[arg-type]
        )
        check_training(self._config.training, held_out=True)
        check_fits(model.weights.config, self._config.training, None if start else self._config.lora)
        if self._config.scoring.answers != "generated":
            raise ConfigError(
                f"scoring.answers is {self._config.scoring.answers}; leave it out, for the answers that the format "
                "names are what is scored, and the model's own where it names none"
            )
        check_strategy_settings(self._strategy, self._config)
        check_groups(self._strategy, pool.task)
        check_closed(self._strategy, pool.task)
        self._key = jax.random.key(key)
        self._limits, self._start = limits, start
        self._problem = _problem(model, pool, self._config, limits, start)
        place = {prompt.id: index for index, prompt in enumerate(pool.prompts)}
        self._state = ask_tell.start(len(pool), {place[name]: text for name, text in pool.labels.items()})

    @property
    def labelled(self) -> int:
        """Labels so far."""
        return len(self._state.loop.labels)

    @property
    def unlabelled(self) -> int:
        """Examples that may still be asked for."""
        return int(np.sum(np.asarray(self._state.loop.pool.labelled_in) == -1))

    @property
    def labels(self) -> dict[str, str]:
        """Id -> response, of everything labelled so far."""
        return {self.pool.prompts[index].id: response for index, response in self._state.loop.labels.items()}

    @property
    def requests(self) -> list[Request]:
        """What was asked last and has not been told yet."""
        return list(self._state.open)

    @property
    def adapter(self) -> TunedAdapter:
        """The adapter of the last training.

        Raises:
          ConfigError: nothing has been trained yet.
        """
        if self._state.loop.adapter is None:
            raise ConfigError("nothing has been trained yet; tell the loop some labels first")
        lora = self._config.lora
        rslora = lora.rslora if self._start is None else self._start.rslora
        root = self.model.weights.config.module_root
        return TunedAdapter(self._state.loop.adapter, self.model.name, lora.dropout, rslora, root)

    def ask(self, count: int) -> list[Request]:
        """The examples to label next, the first pick first; before the first training as `initial` says.

        Where the pool had labels from the beginning, the first question trains on them.

        Raises:
          ConfigError: there are not so many unlabelled examples.
          ScoreError: a score is not finite; the ids are named.
        """
        count = check_whole("count", count)
        ask_tell.check_count(self._state, count)
        if self._state.loop.adapter is None and self._state.loop.labels:
            self.tell({})
        self._state, requests = ask_tell.ask(self._config, self._strategy, self._problem, self._state, self._key, count)
        return requests

    def tell(self, answers: Answers) -> TellInfo:
        """Takes the labels that there are, and trains a fresh adapter on all of them where there is a new one.

        Args:
          answers: id -> label; `SKIP` for an example that cannot be labelled, None or nothing for one that has no
            answer yet, which goes back into the pool. Or a list of `Answer`.

        Raises:
          DataError: an id is not in the pool, or a label is none of the task; nothing is taken over then.
          FloatingPointError: training diverged.
        """
        checked = self._checked(answers)
        self._state, info = ask_tell.tell(self._config, self._problem, self._state, checked, self._key)
        return info

    def _checked(self, answers: Answers) -> list[Answer]:
        if isinstance(answers, Mapping):
            answers = [Answer(name, text) for name, text in answers.items() if text is not None]
        elif not isinstance(answers, Sequence) or not all(isinstance(answer, Answer) for answer in answers):
            raise DataError("answers must be a dictionary, id -> label, or a list of Answer")
        prompts = {prompt.id: prompt for prompt in self.pool.prompts}
        checked = []
        for answer in answers:
            if answer.response is None or answer.id not in prompts:
                checked.append(answer)
                continue
            if isinstance(answer.response, str) and is_skip(answer.response):
                checked.append(dataclasses.replace(answer, response=None))
                continue
            if not isinstance(answer.response, str):
                raise DataError(f"the label of {answer.id!r} is {answer.response!r}; it must be a text")
            try:
                written = self.pool.task.written(answer.response)
                self._problem.encoder.examples([Example(prompts[answer.id], written)], counted=True)
            except DataError as error:
                raise DataError(f"the label of {answer.id!r} cannot be used: {error}") from error
            checked.append(dataclasses.replace(answer, response=written))
        return checked

    def evaluate(self, test: ExamplePool) -> Evaluation:
        """How good the last adapter is on labelled examples; arguments and errors as those of `star_jax.evaluate`."""
        return evaluate(self.model, test, self.adapter, limits=self._limits)

    def predict(self, pool: ExamplePool | None = None) -> list[Prediction]:
        """The last adapter's answers, to everything that is unlabelled where no pool is given."""
        if pool is None:
            unlabelled = np.asarray(self._state.loop.pool.labelled_in) == -1
            rest = [prompt for prompt, free in zip(self.pool.prompts, unlabelled, strict=True) if free]
            pool = ExamplePool(tuple(rest), self.pool.task, {})
        return predict(self.model, pool, self.adapter, limits=self._limits)

    def save(self, folder: str | Path) -> Path:
        """Keeps everything that the loop knows in a folder; what `save` wrote there before is replaced.

        Raises:
          ConfigError: something else is there, or in the folder.
        """
        path = Path(folder).expanduser()
        check_replaceable(folder, path, (_STATE, _ARRAYS))
        replace_folder_atomic(path, self._write)
        return path

    def load(self, folder: str | Path) -> ActiveLoop:
        """Takes up what `save` kept, in a loop made with the same model, pool and settings; returns the loop.

        Labels are those that were saved, not those of the pool.

        Raises:
          ConfigError: there is no such folder, or it is from another pool, model, targets or settings.
          DataError: a file is damaged.

        Example:
          >>> import star_jax as sj
          >>> from tempfile import mkdtemp
          >>> model, pool = sj.load_model("embedded:skills"), sj.read_pool([{"question": "rev 3 1 4 ="}], "skills")
          >>> path = sj.ActiveLoop(model, pool).save(mkdtemp())
          >>> sj.ActiveLoop(model, pool).load(path).labelled
          0
        """
        path = Path(folder).expanduser()
        if not (path / _STATE).is_file():
            raise ConfigError(f"{folder} holds no loop that was saved; check the path")
        kept = read_json(path / _STATE)
        try:
            changed = self._changed(kept)
            state = None if changed else _read_state(path, kept, self._problem)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); take an earlier copy") from error
        if state is None:
            raise ConfigError(
                f"{folder} was saved by another loop (not the same: {', '.join(changed)}); make the loop as it was then"
            )
        self._state = state
        return self

    def _identity(self) -> dict[str, Any]:
        """What a loop must find again, besides its settings."""
        targets = self._problem.targets
        found = {
            "strategy": self._strategy.name,
            "key": self._config.seeds[0],
            "pool": self.pool.fingerprint,
            "format": [self.pool.task.name, self.pool.task.candidates],
            "model": self.model.folder.fingerprint,
            "limits": dataclasses.asdict(self._limits or TokenLimits()),
            "start": None if self._start is None else _fingerprint(self._start.weights),
            "targets": _fingerprint([np.asarray([len(row) for row in targets]), *targets]) if targets else None,
        }
        return dict(plain(found))

    def _changed(self, kept: Mapping[str, Any]) -> list[str]:
        found = self._identity()
        found["model"] = fingerprint_like(kept["model"], self.model.folder.path, found["model"])
        # What was saved before targets were noted had those that its settings name.
        changed = [name for name, value in found.items() if {"targets": value, **kept}[name] != value]
        settings = differences(kept["settings"], self._config.to_dict())
        return changed + [name for name in settings if name not in FIT_TO_MEMORY]

    def _write(self, folder: Path) -> None:
        state = self._state
        arrays: dict[str, Any] = {"labelled_in": np.asarray(state.loop.pool.labelled_in)}
        arrays |= {f"base/{name}": np.asarray(values) for name, values in base_measures(state.loop).items()}
        if state.loop.adapter is not None:
            for kind, tree in (("weights", state.loop.adapter.weights), ("scale", state.loop.adapter.scale)):
                for name, leaves in tree["layers"].items():
                    arrays |= {f"{kind}/{name}/{part}": np.asarray(leaf) for part, leaf in leaves.items()}
        np.savez(folder / _ARRAYS, **arrays)
        fields = ("id", "rank", "score", "strategy", "uncertainty", "guess", "picked_by")
        asked = [{name: getattr(one, name) for name in fields} for one in state.open]
        numbers = {"round": state.loop.round, "asks": state.asks, "skipped": state.skipped}
        known = {"settings": self._config.to_dict(), "labels": self.labels, "open": asked}
        write_json_atomic(folder / _STATE, {**self._identity(), **numbers, **known})


def _fingerprint(arrays: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _read_state(path: Path, kept: Mapping[str, Any], problem: Problem) -> AskTellState:
    place = {prompt.id: index for index, prompt in enumerate(problem.prompts)}
    trees: dict[str, dict[str, dict[str, jax.Array]]] = {"weights": {}, "scale": {}}
    base: dict[str, jax.Array] = {}
    # Opened here, for NumPy leaves a file open that it cannot read.
    with (path / _ARRAYS).open("rb") as file, np.load(file) as arrays:
        for name in arrays.files:
            kind, *rest = name.split("/")
            if kind in trees:
                trees[kind].setdefault(rest[0], {})[rest[1]] = jax.numpy.asarray(arrays[name])
            elif kind == "base":
                base[rest[0]] = jax.numpy.asarray(arrays[name])
        pool = PoolState(jax.numpy.asarray(arrays["labelled_in"]))
    adapter = None
    if trees["weights"]:
        adapter = Adapter({"layers": trees["weights"]}, {"layers": trees["scale"]})
    labels = {place[name]: text for name, text in kept["labels"].items()}
    loop: LoopState = init(len(place))._replace(
        round=kept["round"], pool=pool, labels=dict(sorted(labels.items())), adapter=adapter, base=base_features(base)
    )
    asked = tuple(
        Request(
            problem.prompts[place[one["id"]]],
            *(one.get(name) for name in ("rank", "score", "strategy", "uncertainty", "guess", "picked_by")),
        )
        for one in kept["open"]
    )
    return AskTellState(loop, kept["asks"], asked, kept["skipped"])


def _problem(
    model: Model,
    pool: ExamplePool,
    config: ExperimentConfig,
    limits: TokenLimits | None,
    start: TunedAdapter | None,
) -> Problem:
    tokens: Tokens = tokenize(model, pool, limits, config.scoring.batch_size)
    shapes = step_shapes(tokens, pool, config.training)
    return Problem(
        model.weights,
        tokens.encoder,
        pool.prompts,
        tokens.prompts,
        tokens.batches(pool),
        shapes,
        SimulatedOracle({}),
        start=None if start is None else start.weights,
        read=pool.task.parse,
        group=pool.task.group,
        targets=load_targets(tokens.encoder, pool.task, config.acquisition.target_file),
    )
