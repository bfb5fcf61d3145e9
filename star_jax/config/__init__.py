"""What an experiment is: frozen dataclasses, validated on construction; a file for each subject.

Every number a run depends on lives here, so that the resolved configuration in a run folder *is* the
experiment. Flags are read in `cli` alone, and environment variables for JAX's own settings in
`environment`. A value that makes no sense raises `ConfigError` with one sentence naming the field.
"""

from star_jax.config.checks import SEEDS, WHOLE
from star_jax.config.data import SKIP, DataConfig, FormatConfig, LabelsConfig, Match, OnBadRow, TooLong, check_format
from star_jax.config.experiment import AUTO, ExperimentConfig, LoopConfig
from star_jax.config.label_studio import LabelStudioConfig
from star_jax.config.llm import LlmConfig
from star_jax.config.mesh import MeshConfig
from star_jax.config.model import LEAST_DROPOUT, DropoutMode, LoraConfig, ModelConfig
from star_jax.config.scoring import (
    MOST_BINS,
    MOST_SAMPLES,
    AcquisitionConfig,
    Answers,
    EvaluationConfig,
    GenerationConfig,
    JudgedAnswers,
    Posterior,
    Reduction,
    ScoringConfig,
)
from star_jax.config.simulated import SimulatedConfig
from star_jax.config.training import MOST_EPOCHS, TrainingConfig

__all__ = [
    "AUTO",
    "LEAST_DROPOUT",
    "MOST_BINS",
    "MOST_EPOCHS",
    "MOST_SAMPLES",
    "SEEDS",
    "SKIP",
    "WHOLE",
    "AcquisitionConfig",
    "Answers",
    "DataConfig",
    "DropoutMode",
    "EvaluationConfig",
    "ExperimentConfig",
    "FormatConfig",
    "GenerationConfig",
    "JudgedAnswers",
    "LabelStudioConfig",
    "LabelsConfig",
    "LlmConfig",
    "LoopConfig",
    "LoraConfig",
    "Match",
    "MeshConfig",
    "ModelConfig",
    "OnBadRow",
    "Posterior",
    "Reduction",
    "ScoringConfig",
    "SimulatedConfig",
    "TooLong",
    "TrainingConfig",
    "check_format",
]
