"""What compiling a training step costs, in tokens that could be trained on meanwhile."""

from __future__ import annotations

import jax

from star_jax.models.transformer import LanguageModel

PROGRAM_FLOPS = {"cpu": 5e11}
"""Platform -> what a device computes in the time that compiling a step takes. With SmolLM2-135M on two cores a program
took as long as 7 steps of 160 tokens on each of two devices."""

PROGRAM_FLOPS_ELSEWHERE = 5e15
"""The same on any other platform, assumed: a quarter of a minute of some 300 TFLOP/s."""


def program_tokens(model: LanguageModel) -> float:
    """Tokens that a device trains on in about the time that it takes to compile a step."""
    # Forwards two operations a weight and token, and two for the gradient of what the frozen weights have read.
    work = 4 * sum(leaf.size for leaf in jax.tree.leaves(model.params["layers"]))
    return PROGRAM_FLOPS.get(jax.default_backend(), PROGRAM_FLOPS_ELSEWHERE) / work
