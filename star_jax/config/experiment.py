"""An experiment: its sections, its budget, and which runs it consists of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from star_jax.config.checks import SEEDS, require, require_finite, require_whole
from star_jax.config.data import DataConfig, FormatConfig, LabelsConfig, check_format
from star_jax.config.label_studio import LabelStudioConfig
from star_jax.config.llm import LlmConfig
from star_jax.config.mesh import MeshConfig
from star_jax.config.model import LoraConfig, ModelConfig
from star_jax.config.scoring import AcquisitionConfig, EvaluationConfig, GenerationConfig, ScoringConfig
from star_jax.config.simulated import SimulatedConfig
from star_jax.config.stop_rule import stop_rule
from star_jax.config.training import TrainingConfig

AUTO = "auto"
"""Of `strategies` and `annotator`: what fits the pool."""


@dataclass(frozen=True)
class LoopConfig:
    """The labelling budget: initial_labels + (rounds - 1) * labels_per_round."""

    initial_labels: int = 500
    """Examples labelled before the first training."""
    labels_per_round: int = 500
    """Examples picked by the strategy before each later training."""
    rounds: int = 10
    """Number of trainings."""
    initial: Literal["random", "typiclust", "k_center", "base_uncertainty"] = "random"
    """How the examples that are labelled before the first training are chosen: at random, or by what the base model
    makes of them."""
    budget_unit: Literal["labels", "tokens", "cost"] = "labels"
    """What is bought: labels; or as many of them, at most, as budget_per_round pays for, in tokens of prompt and
    response, or in what the annotator says that a label costs."""
    budget_per_round: float | None = None
    """In tokens or cost, what a round may spend; what it leaves over or spends too much, the next has more or less."""
    stop_when: str | None = None
    """A run stops before its last round when this holds: accuracy >= 0.8, validation_accuracy >= 0.8, or
    forecast gain < 0.01, of another round's labels; none for all rounds."""

    def __post_init__(self) -> None:
        for name in ("initial_labels", "labels_per_round", "rounds"):
            value = getattr(self, name)
            require(value >= 1, f"loop.{name} is {value}; it must be at least 1")
        require_finite("loop", self)
        require(
            (self.budget_unit == "labels") == (self.budget_per_round is None),
            f"loop.budget_unit is {self.budget_unit} and loop.budget_per_round is {self.budget_per_round or 'none'}; "
            "set both, or leave out both",
        )
        require(
            self.budget_per_round is None or self.budget_per_round > 0,
            f"loop.budget_per_round is {self.budget_per_round}; it must be above 0",
        )
        if self.stop_when is not None:
            stop_rule(self.stop_when)

    @property
    def budget(self) -> int:
        """Labels bought over the whole run."""
        return self.initial_labels + (self.rounds - 1) * self.labels_per_round


@dataclass(frozen=True)
class ExperimentConfig:
    """An experiment: every strategy with every seed, each in OUTPUT_DIR/STRATEGY/seed-N."""

    output_dir: str = "runs/experiment"
    """Folder of the run folders and the report."""
    strategies: tuple[str, ...] = (AUTO,)
    """Names of strategies, comma separated; auto is star and random, and star alone where somebody has to label."""
    seeds: tuple[int, ...] = (0,)
    """One run a strategy and seed, comma separated; a seed fixes pool draw, initial set, adapters and dropout."""
    plugins: tuple[str, ...] = ()
    """Python files or modules that register strategies, tasks, annotators or trackers, comma separated; imported before
    their names are looked up."""
    annotator: str = "auto"
    """Who labels what is picked: auto is the pool's own responses where it has all, and a table for a person
    else; or the name of an annotator."""
    track: tuple[str, ...] = ()
    """Where figures go besides the run folders, comma separated."""
    after_round: str | None = None
    """Command of the shell that is run after each round, with the run folder in STAR_JAX_RUN_FOLDER: for example a copy
    to a bucket. Where it fails, the run goes on and says so."""
    mesh: MeshConfig = field(default_factory=MeshConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    acquisition: AcquisitionConfig = field(default_factory=AcquisitionConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    data: DataConfig = field(default_factory=DataConfig)
    format: FormatConfig = field(default_factory=FormatConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    simulated: SimulatedConfig = field(default_factory=SimulatedConfig)
    llm: LlmConfig = field(default_factory=LlmConfig)
    label_studio: LabelStudioConfig = field(default_factory=LabelStudioConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        require(bool(self.output_dir.strip()), "output_dir is empty; name a folder, for example runs/mine")
        require(
            self.after_round is None or bool(self.after_round.strip()), "after_round is empty; name a command, or none"
        )
        require(bool(self.strategies), "strategies is empty; name at least one, for example star")
        require(
            AUTO not in self.strategies or len(self.strategies) == 1,
            "strategies names auto beside others; name auto alone, or the strategies",
        )
        require(bool(self.seeds), "seeds is empty; give at least one, for example 0")
        require(len(set(self.strategies)) == len(self.strategies), "strategies names one twice; name each once")
        require(len(set(self.seeds)) == len(self.seeds), "seeds names one twice; name each once")
        require(all(0 <= seed < SEEDS for seed in self.seeds), f"seeds must be from 0 to {SEEDS - 1}")
        for section in dataclasses.fields(self):
            if dataclasses.is_dataclass(getattr(self, section.name)):
                require_whole(section.name, getattr(self, section.name))
        own = {"simulated": SimulatedConfig(), "llm": LlmConfig(), "label_studio": LabelStudioConfig()}
        for name, default in own.items():
            require(
                self.annotator == name or getattr(self, name) == default,
                f"{name} is the section of annotator {name}, and annotator is {self.annotator}; leave it out, or "
                "change the annotator",
            )
        require(
            not self.acquisition.per_cost or self.loop.budget_unit != "labels",
            "acquisition.per_cost is true and loop.budget_unit is labels, of which each costs the same; choose tokens "
            "or cost",
        )
        check_format(self.data.task, self.format)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionary, ready for YAML."""
        return dataclasses.asdict(self)
