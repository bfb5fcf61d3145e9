"""This decoder, its adapters and their training against transformers, PEFT and torch, on fresh random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import PROJECTIONS
from tiny_models import greedy, torch_logits

from star_jax.checkpoints.huggingface import load_model, save_model
from star_jax.checkpoints.peft import load_adapter, save_adapter
from star_jax.config import LoraConfig, TrainingConfig
from star_jax.inference.generation import PromptBatch, Stop, generate
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lm_head import output_head
from star_jax.models.lora import Adapter
from star_jax.models.projections import PROJECTION_PATHS
from star_jax.models.sequences import SequenceInputs, hidden_states, next_tokens, response_mask
from star_jax.models.transformer import LanguageModel
from star_jax.training.losses import objective, token_losses
from star_jax.training.optimizers import direction
from star_jax.training.trainer import Fixed, TrainBatch, TrainState, train_step

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM

pytestmark = [
    pytest.mark.parity,
    # PEFT asks transformers for an attribute by its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

VOCABULARY, LONGEST = 97, 12
TOLERANCE = 1e-4
NEAR_TIE = 1e-4
"""Two best logits closer than this may be ordered differently by another order of additions."""

Forward = Callable[..., jax.Array]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def llama(seed: int, tied: bool) -> LlamaForCausalLM:
    """A random Llama with grouped-query attention; the deviation of its weights gives logits of a few units."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
        initializer_range=0.3,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        parameter.requires_grad_(False)
    return model


@pytest.fixture
def model(llama: LlamaForCausalLM, tmp_path: Path) -> LanguageModel:
    llama.save_pretrained(tmp_path / "model")
    return load_model(str(tmp_path / "model"))


@pytest.fixture
def rows(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded random tokens `4×12` and their lengths."""
    lengths = np.asarray([LONGEST, 3, *rng.integers(4, LONGEST, 2)], np.int32)
    tokens = rng.integers(1, VOCABULARY, (4, LONGEST)).astype(np.int32)
    return np.where(np.arange(LONGEST) < lengths[:, None], tokens, 0), lengths


def assert_same_logits(got: jax.Array, want: torch.Tensor, lengths: np.ndarray) -> None:
    real = np.arange(got.shape[1]) < lengths[:, None]
    expected = want.detach().numpy()[real]
    assert expected.std() > 0.5
    np.testing.assert_allclose(np.asarray(got)[real], expected, rtol=0, atol=TOLERANCE)


# The base model.


def test_logits(
    llama: LlamaForCausalLM, model: LanguageModel, forward: Forward, rows: tuple[np.ndarray, np.ndarray], tied: bool
) -> None:
    assert model.config.tie_word_embeddings is tied
    assert_same_logits(forward(model, None, *rows), torch_logits(llama, *rows), rows[1])


def test_saved_models_are_read_by_transformers(
    make_model: Callable[[TransformerConfig], LanguageModel],
    model: LanguageModel,
    forward: Forward,
    rows: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    from transformers import LlamaForCausalLM

    ours = make_model(model.config)
    save_model(ours, tmp_path / "ours")
    theirs, info = LlamaForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert_same_logits(forward(ours, None, *rows), torch_logits(theirs.eval(), *rows), rows[1])


def decided_prompts(
    llama: LlamaForCausalLM, rng: np.random.Generator, width: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Prompts of different lengths whose greedy continuation rounding cannot change, and that continuation."""
    prompts, responses = [], []
    for length in (1, 4, 7, LONGEST):
        for _ in range(10):
            prompt = rng.integers(1, VOCABULARY, length).astype(np.int32)
            response, lead = greedy(llama, prompt, width)
            if lead > NEAR_TIE:
                break
            print(f"prompt {prompt.tolist()} is drawn again: the two best tokens of a step are {lead:.1e} apart")
        else:
            pytest.fail("ten prompts in a row met near ties; no comparison of tokens is possible")
        prompts.append(prompt)
        responses.append(response)
    return prompts, responses


def test_greedy_tokens(llama: LlamaForCausalLM, model: LanguageModel, rng: np.random.Generator) -> None:
    width = 64
    prompts, want = decided_prompts(llama, rng, width)
    assert all(len(response) == width for response in want)
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    tokens = np.stack([np.pad(prompt, (0, LONGEST - len(prompt))) for prompt in prompts])
    run = jax.jit(lambda eos: generate(model, None, PromptBatch(tokens, lengths), Stop(width, eos)))
    got, count, _ = run(-1)
    assert count.tolist() == [width] * len(prompts)
    np.testing.assert_array_equal(got, np.stack(want))

    # A token that one continuation holds ends every row at its first place, and nowhere else.
    eos = int(want[0][10])
    got, count, _ = run(eos)
    for row, response in enumerate(want):
        places = np.flatnonzero(response == eos)
        end = places[0] + 1 if len(places) else width
        assert count[row] == end
        assert got[row].tolist() == response[:end].tolist() + [0] * (width - end)


# Adapters.


def peft_adapter(llama: LlamaForCausalLM, targets: tuple[str, ...] = PROJECTIONS) -> PeftModel:
    """The model with a PEFT adapter whose A is PEFT's own and whose B is random."""
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    config = PeftLoraConfig(
        r=5, lora_alpha=12, lora_dropout=0.1, target_modules=list(targets), bias="none", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(llama, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapted


@pytest.mark.parametrize("targets", [PROJECTIONS, ("q_proj", "down_proj")], ids=["all", "two"])
def test_adapters_of_peft_are_read(
    llama: LlamaForCausalLM,
    model: LanguageModel,
    forward: Forward,
    rows: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    targets: tuple[str, ...],
) -> None:
    adapted = peft_adapter(llama, targets)
    adapted.save_pretrained(tmp_path / "adapter")
    adapter, raw = load_adapter(tmp_path / "adapter", model.config)
    assert set(adapter.weights["layers"]) == set(targets)
    assert raw["r"] == 5
    want = torch_logits(adapted, *rows)
    with adapted.disable_adapter():
        assert (want - torch_logits(adapted, *rows)).abs().max() > 0.1
    assert_same_logits(forward(model, adapter, *rows), want, rows[1])


def test_saved_adapters_are_read_by_peft(
    llama: LlamaForCausalLM,
    model: LanguageModel,
    make_adapter: Callable[..., Adapter],
    forward: Forward,
    rows: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
) -> None:
    from peft import PeftModel

    adapter = make_adapter(model.config, rank=3)
    save_adapter(adapter, tmp_path / "adapter", base_model=str(tmp_path / "model"), dropout=0.1)
    adapted = PeftModel.from_pretrained(llama, tmp_path / "adapter").eval()
    assert_same_logits(forward(model, adapter, *rows), torch_logits(adapted, *rows), rows[1])


# Training.


def torch_loss(adapted: PeftModel, inputs: SequenceInputs) -> torch.Tensor:
    """Cross-entropy of the response tokens, a mean over the tokens of the batch."""
    import torch

    tokens, prompt_lengths, lengths = (np.asarray(part) for part in inputs)
    log_probs = torch_logits(adapted, tokens, lengths).log_softmax(-1)
    chosen = [
        log_probs[row, place - 1, int(tokens[row, place])]
        for row in range(len(tokens))
        for place in range(prompt_lengths[row], lengths[row])
    ]
    return -torch.stack(chosen).mean()


def factors_of(adapted: PeftModel, part: Callable[[torch.nn.Parameter], torch.Tensor]) -> dict[str, Any]:
    """`part` of PEFT's factors in the tree of an adapter's weights."""
    layers = adapted.get_base_model().model.layers

    def stack(path: str, factor: str) -> np.ndarray:
        modules = [getattr(layer.get_submodule(path), factor)["default"] for layer in layers]
        return np.stack([part(module.weight).detach().numpy().T for module in modules])

    return {
        "layers": {
            name: {factor[-1].lower(): stack(PROJECTION_PATHS[name], factor) for factor in ("lora_A", "lora_B")}
            for name in PROJECTIONS
        }
    }


@pytest.fixture
def inputs(rng: np.random.Generator, rows: tuple[np.ndarray, np.ndarray]) -> SequenceInputs:
    tokens, lengths = rows
    return SequenceInputs(tokens, rng.integers(1, lengths).astype(np.int32), lengths)


@pytest.mark.parametrize("tied", [False], indirect=True, ids=["untied"])
def test_gradient_of_the_adapter(
    llama: LlamaForCausalLM, model: LanguageModel, inputs: SequenceInputs, tmp_path: Path
) -> None:
    adapted = peft_adapter(llama)
    adapted.save_pretrained(tmp_path / "adapter")
    adapter, _ = load_adapter(tmp_path / "adapter", model.config)

    @jax.jit
    @jax.value_and_grad
    def loss(weights: Any) -> jax.Array:
        hidden = hidden_states(model, Adapter(weights, adapter.scale), inputs, None)
        targets, mask, config = next_tokens(inputs), response_mask(inputs), TrainingConfig()
        return objective(token_losses(hidden, targets, mask, output_head(model), config), weights, config)

    value, gradient = loss(adapter.weights)
    expected = torch_loss(adapted, inputs)
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=TOLERANCE)
    for name, factors in factors_of(adapted, lambda parameter: parameter.grad)["layers"].items():
        for factor, want in factors.items():
            error = np.linalg.norm(np.asarray(gradient["layers"][name][factor]) - want)
            assert np.linalg.norm(want) > 0
            assert error <= TOLERANCE * np.linalg.norm(want), f"{factor} of {name}"


@pytest.mark.parametrize("tied", [True], indirect=True, ids=["tied"])
def test_steps_of_training(
    llama: LlamaForCausalLM, model: LanguageModel, inputs: SequenceInputs, tmp_path: Path
) -> None:
    """Three steps of clipped AdamW with a linear schedule, decay on B alone and a penalty on its norm."""
    import torch

    adapted = peft_adapter(llama)
    adapted.save_pretrained(tmp_path / "adapter")
    adapter, _ = load_adapter(tmp_path / "adapter", model.config)
    config = TrainingConfig(learning_rate=1e-3, decay_b=0.5, l2_b=0.02, gradient_clip=0.5)
    lora = LoraConfig(rank=5, alpha=12.0, training_dropout="off")
    steps = 3

    trained = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    of_b = [value for name, value in trained.items() if "lora_B" in name]
    groups = [
        {"params": [value for name, value in trained.items() if "lora_A" in name], "weight_decay": config.decay_a},
        {"params": of_b, "weight_decay": config.decay_b},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)

    weights = jax.tree.map(jnp.copy, adapter.weights)
    state = TrainState(weights, direction(config).init(weights), jnp.zeros((), jnp.int32))
    batch = TrainBatch(inputs, np.ones(len(inputs.tokens), bool), np.arange(len(inputs.tokens)))
    for _ in range(steps):
        cross_entropy = torch_loss(adapted, inputs)
        loss = cross_entropy + config.l2_b * sum(value.square().sum() for value in of_b)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), config.gradient_clip)
        optimizer.step()
        schedule.step()
        state, info = train_step(
            Fixed(model, adapter.scale, jax.random.key(0), jnp.asarray(steps)),
            state,
            batch,
            capacity=int(inputs.lengths.sum()),
            lora=lora,
            config=config,
        )
        assert norm > config.gradient_clip
        got = [float(part) for part in (info.loss, info.cross_entropy, info.gradient_norm)]
        assert got == pytest.approx([loss.item(), cross_entropy.item(), norm.item()], rel=1e-3)
    for name, factors in factors_of(adapted, lambda parameter: parameter)["layers"].items():
        for factor, want in factors.items():
            moved = np.abs(want - np.asarray(adapter.weights["layers"][name][factor]))
            error = np.abs(np.asarray(state.weights["layers"][name][factor]) - want)
            # A mean: Adam divides by the size of the gradient, so an entry whose gradient is all rounding may go
            # either way. A decay that was left out, or given to A, changes a factor by a tenth of what it moves.
            assert moved.mean() > config.learning_rate
            assert error.mean() < 1e-3 * moved.mean(), f"{factor} of {name}"
