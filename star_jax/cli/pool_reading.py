"""What `star-jax score` and `star-jax select` open before they load any weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from star_jax.cli.pool_flags import PoolFlags

if TYPE_CHECKING:
    from star_jax.data.tasks.task import Task
    from star_jax.data.tokenization import Encoder
    from star_jax.models.architecture import TransformerConfig


class Reader(NamedTuple):
    """How examples are read for a model.

    Attributes:
      task: template and answer set.
      encoder: tokenizer, template and limits.
      shape: of the model.
    """

    task: Task
    encoder: Encoder
    shape: TransformerConfig


def open_reader(config: PoolFlags) -> Reader:
    """Opens a model's tokenizer and configuration, and the task.

    Raises:
      ConfigError: one of them cannot be used, or the weights or one response do not fit the memory.
    """
    from star_jax.checkpoints.hf_config import read_config
    from star_jax.checkpoints.hub import end_tokens, load_tokenizer, resolve_folder
    from star_jax.config import MeshConfig
    from star_jax.data.tasks import get_task
    from star_jax.data.tokenization import Encoder, Limits
    from star_jax.environment import memory_bytes
    from star_jax.experiment.mesh_choice import set_mesh
    from star_jax.experiment.sizes import Demand, cache_bytes, refuse_what_does_not_fit, weight_bytes
    from star_jax.parallel.mesh import parts_of_a_model

    tokenizer = load_tokenizer(config.model)
    task = get_task(config.task, config.format, tokenizer)
    limits = Limits(config.max_prompt_tokens, config.max_response_tokens, config.too_long)
    longest = config.max_prompt_tokens + config.max_response_tokens
    shape = read_config(resolve_folder(config.model), config.dtype, longest, config.ignored_fields)
    set_mesh(MeshConfig(), shape, quantization=config.quantization)
    held = weight_bytes(shape, config.quantization, parts_of_a_model())
    weights = Demand("--model", config.model, "its weights", held)
    cache = cache_bytes(shape, 1, config.max_response_tokens)
    response = Demand("--max-response-tokens", config.max_response_tokens, "keys and values of one response", cache)
    refuse_what_does_not_fit([weights, response], memory_bytes())
    encoder = Encoder(tokenizer, task, limits, vocab_size=shape.vocab_size, end_ids=end_tokens(config.model))
    return Reader(task, encoder, shape)
