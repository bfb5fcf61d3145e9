"""What an experiment is: frozen dataclasses, validated on construction.

Every number a run depends on lives here, so that the resolved configuration in a run folder *is* the
experiment. Flags are read in `cli` alone, and environment variables for JAX's own settings in
`environment`. A value that makes no sense raises `ConfigError` with one sentence naming the field.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any, Literal

from star_jax.errors import ConfigError

DropoutMode = Literal["off", "shared", "tied", "per_token"]
Answers = Literal["generated", "candidates", "reference"]
Reduction = Literal["sum", "mean", "max"]
TooLong = Literal["error", "drop", "truncate-left"]
OnBadRow = Literal["error", "skip"]
Match = Literal["exact", "numeric", "choice"]


LEAST_DROPOUT = 1e-6
"""Least probability other than 0 that masks are drawn with, and that of 1 less the greatest."""

SKIP = "[skip]"
"""What is written instead of a label where an example cannot be labelled, unless `labels.skip` says otherwise."""

AUTO = "auto"
"""Of `strategies` and `annotator`: what fits the pool."""

SEEDS = 2**32
"""Seeds are smaller than this: JAX's keys would be those of smaller ones again."""


MOST_EPOCHS, MOST_SAMPLES, MOST_BINS = 10_000, 10_000, 10_000
"""More epochs, Monte-Carlo samples or bins than anybody has use for; a slip of the finger would take years."""

WHOLE = 2**31
"""Whole numbers of a configuration are smaller than this, for counts on devices have 32 bits."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_finite(section: str, config: Any) -> None:
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if isinstance(value, float) and not math.isfinite(value):
            otherwise = ", or none" if "None" in str(entry.type) else ""
            raise ConfigError(f"{section}.{entry.name} is {value}; it must be a finite number{otherwise}")


def _require_whole(section: str, config: Any) -> None:
    """Refuses whole numbers that are larger than any count."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if isinstance(value, int) and value >= WHOLE:
            said = str(value) if value < 10**20 else "of more than 20 digits"
            raise ConfigError(f"{section}.{entry.name} is {said}; it must be less than {WHOLE}")


@dataclass(frozen=True)
class ModelConfig:
    """The frozen base model."""

    path: str = "embedded:skills"
    """Hugging Face folder or hub name; `embedded:skills` is the small model that ships with the package."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights and of products; softmax, norms, losses and the adapter's own copy are float32."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Of the frozen projections, made when they are loaded; the adapter on top is not quantised (QLoRA)."""
    ignored_fields: tuple[str, ...] = ()
    """Fields of the model's config.json that are not known here and known to you to be harmless, comma separated."""
    adapter: str | None = None
    """PEFT folder of a LoRA to start from: base and adapter together are then the model that is scored first, and each
    training continues from it instead of a fresh adapter. Rank, alpha, targets and init are the folder's. Weight decay
    pulls towards the bare base all the same; set training.decay_b and training.l2_b to 0 to keep what it knows."""


@dataclass(frozen=True)
class LoraConfig:
    """The adapter: W x + (alpha / rank) B A dropout(x).

    Example:
      >>> LoraConfig(rank=8, targets=("q_proj", "v_proj")).alpha
      16.0
    """

    rank: int = 64
    """Inner width r of the two factors."""
    alpha: float = 16.0
    """Numerator of the scale alpha / rank."""
    dropout: float = 0.1
    """Probability that an entry of A's input is dropped."""
    training_dropout: DropoutMode = "per_token"
    """Masks in training: off, one per token (as PEFT), one per row shared by its tokens (tied), or one per step shared
    by its rows. Projections that read the same input share its mask."""
    rslora: bool = False
    """Scale alpha / sqrt(rank) instead of alpha / rank (rsLoRA)."""
    targets: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter, comma separated: all-linear, names or ends of paths (q_proj, layers.3.mlp.up_proj),
    or regular expressions for whole paths."""
    init: Literal["kaiming_uniform", "gaussian"] = "kaiming_uniform"
    """Initial A: PEFT's default U(-1/sqrt(in), 1/sqrt(in)), or Gaussian with variance 1/rank. B always starts at 0."""

    def __post_init__(self) -> None:
        _require_finite("lora", self)
        _require(self.rank >= 1, f"lora.rank is {self.rank}; it must be at least 1")
        _require(self.alpha > 0, f"lora.alpha is {self.alpha}; it must be positive")
        _require(
            self.dropout == 0 or LEAST_DROPOUT <= self.dropout <= 1 - LEAST_DROPOUT,
            f"lora.dropout is {self.dropout}; it must be 0 for none, or from {LEAST_DROPOUT} to {1 - LEAST_DROPOUT}",
        )
        _require(bool(self.targets), "lora.targets is empty; name at least one module, or all-linear")


@dataclass(frozen=True)
class TrainingConfig:
    """Fine-tuning of one fresh adapter on everything labelled so far.

    Example:
      >>> TrainingConfig(epochs=1, confidence_penalty=0.1).learning_rate
      0.00015
    """

    learning_rate: float = 1.5e-4
    """Peak rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls to 0, over the steps really taken."""
    warmup_fraction: float = 0.0
    """Share of the steps over which the rate rises from 0."""
    decay_fraction: float = 1.0
    """Share of the steps, at the end, over which the rate falls; as far as the warm-up leaves them."""
    epochs: int = 3
    """Passes over the labelled set."""
    batch_size: int = 8
    """Labelled rows a step, over all devices."""
    rematerialise: bool = False
    """Whether the backward pass computes each layer anew instead of keeping what it needs of it: less memory, more
    time."""
    adam_b1: float = 0.9
    """Decay of Adam's first moment."""
    adam_b2: float = 0.999
    """Decay of Adam's second moment."""
    gradient_clip: float | None = 1.0
    """Largest global norm of the gradient; none to switch clipping off."""
    decay_a: float = 0.0
    """Decoupled weight decay on A (AdamW)."""
    decay_b: float = 0.5
    """Decoupled weight decay on B (AdamW), the released code's form of L2 on B."""
    l2_b: float = 0.0
    """Weight beta of the explicit loss term beta * ||B||^2."""
    confidence_penalty: float = 0.0
    """Weight of the entropy, in nats, that is subtracted from the loss (Pereyra et al. 2017)."""
    entropy_floor: float | None = None
    """Hinge form: only entropy missing below this many nats is penalised; none for the plain form."""
    label_smoothing: float = 0.0
    """Share of the target mass spread evenly over the vocabulary."""
    validation_fraction: float = 0.0
    """Share of the labelled set that is held out of training and measured on; an example stays on its side."""
    replay: str | None = None
    """JSONL of already mastered rows mixed into each batch; `embedded:skills` for the shipped file."""
    replay_rows: int = 0
    """Replay rows a step; they are not labels and are not counted as such."""

    def __post_init__(self) -> None:
        _require_finite("training", self)
        _require(self.learning_rate > 0, f"training.learning_rate is {self.learning_rate}; it must be positive")
        _require(self.epochs >= 1, f"training.epochs is {self.epochs}; it must be at least 1")
        _require(self.epochs <= MOST_EPOCHS, f"training.epochs is {self.epochs}; it must be at most {MOST_EPOCHS}")
        _require(self.batch_size >= 1, f"training.batch_size is {self.batch_size}; it must be at least 1")
        for name in ("adam_b1", "adam_b2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"training.{name} is {value}; it must be in [0, 1)")
        for name in ("warmup_fraction", "decay_fraction"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"training.{name} is {value}; it must be in [0, 1]")
        clip, floor = self.gradient_clip, self.entropy_floor
        _require(clip is None or clip > 0, f"training.gradient_clip is {clip}; it must be positive, or none")
        _require(floor is None or floor > 0, f"training.entropy_floor is {floor}; it must be positive, or none")
        _require(
            floor is None or self.confidence_penalty > 0,
            "training.entropy_floor does nothing at training.confidence_penalty 0; set both or neither",
        )
        for name in ("decay_a", "decay_b", "l2_b", "confidence_penalty"):
            value = getattr(self, name)
            _require(value >= 0, f"training.{name} is {value}; it must not be negative")
        for name in ("label_smoothing", "validation_fraction"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"training.{name} is {value}; it must be in [0, 1)")
        _require(self.replay_rows >= 0, f"training.replay_rows is {self.replay_rows}; it must not be negative")
        _require(
            (self.replay_rows > 0) == (self.replay is not None),
            "training.replay and training.replay_rows go together; set both or neither",
        )


@dataclass(frozen=True)
class ScoringConfig:
    """How the pool is scored.

    Example:
      >>> ScoringConfig(mc_samples=5).answers
      'generated'
    """

    answers: Answers = "generated"
    """What is scored: the model's own greedy response, a closed answer set, or gold (an oracle)."""
    mc_samples: int = 3
    """Monte-Carlo dropout passes K for the strategies that average over them."""
    dropout: Literal["shared", "tied", "per_token"] = "shared"
    """Masks of the MC passes: shared makes each pass one sample of A's weights for the whole pool, tied one for each
    example, per_token none."""
    batch_size: int = 16
    """Prompts with a response, or with every answer of a closed set, that a device scores at once."""

    def __post_init__(self) -> None:
        _require(self.mc_samples >= 1, f"scoring.mc_samples is {self.mc_samples}; it must be at least 1")
        _require(
            self.mc_samples <= MOST_SAMPLES,
            f"scoring.mc_samples is {self.mc_samples}; it must be at most {MOST_SAMPLES}",
        )
        _require(self.batch_size >= 1, f"scoring.batch_size is {self.batch_size}; it must be at least 1")


@dataclass(frozen=True)
class GenerationConfig:
    """How responses are generated, on the pool and on the test set."""

    batch_size: int = 64
    """Prompts that a device answers at once."""

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, f"generation.batch_size is {self.batch_size}; it must be at least 1")


@dataclass(frozen=True)
class AcquisitionConfig:
    """Overrides of the parts of a strategy; none keeps the strategy's own.

    Example:
      >>> AcquisitionConfig(schedule="linear", selection="power").power
      1.0
    """

    reduction: Reduction = "sum"
    """Over the tokens of a response: sum as in the paper, mean or max."""
    normaliser: Literal["minmax", "zscore", "rank", "released"] | None = None
    """Scale on which base and full uncertainty are blended; released is that of the released code: base on [0, 1], full
    as raw sum."""
    schedule: Literal["released", "linear", "constant", "cosine"] | None = None
    """lambda(t), the weight of the base model."""
    constant: float = 0.5
    """Value of lambda under the constant schedule."""
    selection: Literal["top_k", "power"] | None = None
    """Most uncertain first, or log-score plus Gumbel noise (PowerBALD)."""
    power: float = 1.0
    """Coldness of the power selection; larger is closer to top_k."""

    def __post_init__(self) -> None:
        _require_finite("acquisition", self)
        _require(0 <= self.constant <= 1, f"acquisition.constant is {self.constant}; it must be in [0, 1]")
        _require(self.power > 0, f"acquisition.power is {self.power}; it must be positive")


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

    def __post_init__(self) -> None:
        for name in ("initial_labels", "labels_per_round", "rounds"):
            value = getattr(self, name)
            _require(value >= 1, f"loop.{name} is {value}; it must be at least 1")

    @property
    def budget(self) -> int:
        """Labels bought over the whole run."""
        return self.initial_labels + (self.rounds - 1) * self.labels_per_round


@dataclass(frozen=True)
class DataConfig:
    """Pool, test set and limits."""

    task: str = "skills"
    """Template, parser and correctness, by name; generic is what the format section describes."""
    train: str | None = None
    """The pool: JSONL, CSV or Parquet file, or a hub name; the task's own generator when none (skills)."""
    test: str | None = None
    """The test set, likewise."""
    regime: Literal["R0", "R1", "R2", "R3", "R4"] = "R1"
    """Pool of the skills benchmark: R0 balanced, R1 Zipf, R2 mostly known, R3 a fifth unlearnable, R4 as R1, meant for
    loop.initial_labels 20."""
    pool_size: int = 1500
    """Items the skills generator puts into the pool."""
    pool_limit: int | None = None
    """Use at most this many pool examples, drawn with the seed."""
    test_limit: int | None = None
    """Use at most this many test examples, drawn with a fixed seed."""
    max_prompt_tokens: int = 128
    """Longest prompt, tokens."""
    max_response_tokens: int = 256
    """Longest response trained on, generated and scored, tokens, end-of-sequence included."""
    too_long: TooLong = "error"
    """Prompts over the limit: refuse, leave the example out, or cut on the left; responses: refuse, or cut on the right
    (both), but for the answers of a closed set (scoring.answers candidates), which are always refused."""
    on_bad_row: OnBadRow = "error"
    """Rows that cannot be read, lack a field or repeat an id: refuse, or leave them out and count them. A pool row
    whose response cannot be used is left out as well: with skip, labels have a say in what the pool is."""

    def __post_init__(self) -> None:
        for name in ("pool_size", "pool_limit", "test_limit", "max_prompt_tokens", "max_response_tokens"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"data.{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class FormatConfig:
    """Prompt and response of data.task generic, from the columns of a row; the other tasks have their own.

    Example:
      >>> FormatConfig(prompt="{{ question }}\\n", answers=("yes", "no")).match
      'exact'
    """

    prompt: str = "{{ prompt }}\n"
    """Jinja template over the row's columns; row['A name'] is a column whose name is no single word. It should end in a
    blank or a line break, where the response begins."""
    response: str = "{{ response }}"
    """Jinja template of what the model is to write after the prompt; a row in which one of the columns it prints is
    absent or empty is unlabelled."""
    id: str = "id"
    """Column of ids, unique in a file; rows are named by their line where the file has no column id."""
    group: str | None = None
    """Column whose values the reports of what was picked are grouped by; none for one group."""
    chat: bool = False
    """Whether the prompt becomes the user's message in the tokenizer's chat template, and the response the answer to
    it."""
    system: str | None = None
    """System message before it; none for none."""
    answers: tuple[str, ...] = ()
    """All possible answers where there are only a few; a label must be one of them, and it is what the model is
    trained to write. Empty for free answers. A comma in an answer needs a file."""
    match: Match = "exact"
    """When a prediction is right: the same text but for blanks and capitals, the same last number, or the same choice
    named by its letter or its text."""

    def __post_init__(self) -> None:
        for name in ("prompt", "response", "id", "group"):
            value = getattr(self, name)
            _require(value is None or bool(value.strip()), f"format.{name} is empty; give it a text or leave it out")
        _require(self.system is None or self.chat, "format.system is set and format.chat is false; set both or neither")
        _require(len(self.answers) != 1, "format.answers names only one; name at least two, or none for free answers")
        for answer in self.answers:
            _require(
                bool(answer) and answer == answer.strip(),
                f"format.answers holds {answer!r}; leave out the blanks around an answer, and where one must stand "
                "before it let format.prompt end in it",
            )
        most = len(ascii_uppercase)
        _require(
            self.match != "choice" or 2 <= len(self.answers) <= most,
            f"format.match is choice and format.answers names {len(self.answers)}; name 2 to {most} answers",
        )


@dataclass(frozen=True)
class LabelsConfig:
    """How a person is asked for labels.

    Example:
      >>> LabelsConfig(skip="n/a").columns
      ()
    """

    skip: str = SKIP
    """What is written instead of a label where an example cannot be labelled; capitals and blanks do not matter."""
    columns: tuple[str, ...] = ()
    """Columns of the pool that labels.csv shows beside the prompt, comma separated; * for all of them."""

    def __post_init__(self) -> None:
        _require(bool(self.skip.strip()), "labels.skip is empty; give it a text, such as [skip]")


@dataclass(frozen=True)
class EvaluationConfig:
    """How the fine-tuned model is judged after each round."""

    confidence: Literal["sequence", "mean_token"] = "sequence"
    """Probability read as confidence: of the whole response, or its geometric mean a token."""
    bins: int = 15
    """Bins of the expected calibration error."""

    def __post_init__(self) -> None:
        _require(self.bins >= 1, f"evaluation.bins is {self.bins}; it must be at least 1")
        _require(self.bins <= MOST_BINS, f"evaluation.bins is {self.bins}; it must be at most {MOST_BINS}")


def check_format(task: str, format: FormatConfig) -> None:
    """Refuses a format section beside a task that does not read it.

    Raises:
      ConfigError: `format` differs from the default and the task is not generic.
    """
    _require(
        task == "generic" or format == FormatConfig(),
        f"format is the section of data.task generic, and data.task is {task}; leave it out, or change the task",
    )


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
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _require(bool(self.output_dir.strip()), "output_dir is empty; name a folder, for example runs/mine")
        _require(bool(self.strategies), "strategies is empty; name at least one, for example star")
        _require(
            AUTO not in self.strategies or len(self.strategies) == 1,
            "strategies names auto beside others; name auto alone, or the strategies",
        )
        _require(bool(self.seeds), "seeds is empty; give at least one, for example 0")
        _require(len(set(self.strategies)) == len(self.strategies), "strategies names one twice; name each once")
        _require(len(set(self.seeds)) == len(self.seeds), "seeds names one twice; name each once")
        _require(all(0 <= seed < SEEDS for seed in self.seeds), f"seeds must be from 0 to {SEEDS - 1}")
        for section in dataclasses.fields(self):
            if dataclasses.is_dataclass(getattr(self, section.name)):
                _require_whole(section.name, getattr(self, section.name))
        check_format(self.data.task, self.format)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionary, ready for YAML."""
        return dataclasses.asdict(self)
