"""Prompts and responses in the frame of the tokenizer's chat template, with the generic task."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from star_jax.config import FormatConfig
from star_jax.data.examples import Example, Prompt
from star_jax.data.loading import load_prompts
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.errors import ConfigError


def generic(tokenizer, **fields):
    return get_task("generic", FormatConfig(**fields), tokenizer)


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' and not_allowed is defined %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ message.role }}> {{ message.content }} </{{ message.role }}> "
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chatty(template=TEMPLATE):
    """A tokenizer that puts `<s>` before every text, with a template that writes it too, as Llama 3 has both."""
    names = [
        "<s>",
        "</s>",
        "<unk>",
        "<user>",
        "</user>",
        "<system>",
        "</system>",
        "<assistant>",
        "Why?",
        "so",
        "Brief.",
    ]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<assistant>"]})
    fast.chat_template = template
    return fast


@pytest.mark.parametrize("system", [None, "Brief."])
def test_chat_prompts_begin_with_one_mark_of_the_beginning(system):
    tokenizer = chatty()
    task = generic(tokenizer, prompt="{{ q }}", response="{{ a }}", chat=True, system=system)
    row = {"q": "Why?", "a": "so"}
    before = "" if system is None else "<system> Brief. </system> "
    assert task.prompt(row) == f"<s>{before}<user> Why? </user> <assistant>"
    encoder = Encoder(tokenizer, task, Limits(20, 5))
    prompt = Prompt("p", task.prompt(row))
    (alone,) = encoder.prompts([prompt])
    (both,) = encoder.examples([Example(prompt, task.response(row))])
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": "Why?"})
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    np.testing.assert_array_equal(alone, expected)
    assert alone.tolist().count(tokenizer.bos_token_id) == 1
    assert tokenizer.convert_ids_to_tokens(both.tokens[both.prompt_length :].tolist()) == ["so", "</s>"]
    np.testing.assert_array_equal(both.tokens[: both.prompt_length], alone)


def test_a_response_ends_where_the_template_ends_a_turn():
    """As Gemma's does, with a token that is not the tokenizer's end-of-sequence."""
    tokenizer = chatty()
    row = {"q": "Why?", "a": "so"}
    ends = {}
    for special in (False, True):
        if special:
            tokenizer.add_special_tokens({"additional_special_tokens": ["<assistant>", "</assistant>"]})
        task = generic(tokenizer, prompt="{{ q }}", response="{{ a }}", chat=True)
        encoder = Encoder(tokenizer, task, Limits(20, 5))
        (both,) = encoder.examples([Example(Prompt("p", task.prompt(row)), task.response(row))])
        assert both.tokens[-1] == encoder.eos_id
        ends[special] = tokenizer.convert_ids_to_tokens(encoder.eos_id)
    assert ends == {False: "</s>", True: "</assistant>"}
    assert encoder.text(both.tokens[both.prompt_length :]) == "so"


BETWEEN = {
    "": ("", ""),
    " ": ("", " "),
    "\n\n": ("", "\n\n"),
    "ends in a blank": ("<assistant> ", ""),
    "<think> </think>": ("", "<think> </think>"),
}


@pytest.mark.parametrize("system", [None, "Brief."])
@pytest.mark.parametrize(("between", "parts"), BETWEEN.items())
def test_blanks_between_message_and_answer_are_the_templates_own(between, parts, system):
    """As Mistral's templates have a blank before an answer that their opening for it does not have."""
    opening, before = parts
    tokenizer = chatty(
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
        + opening + "{{ " + repr(before) + " }}{{ message.content }}</s>"
        + "{% else %}[{{ message.content }}]{% endif %}{% endfor %}"
        + "{% if add_generation_prompt %}" + opening + "{% endif %}"
    )  # fmt: skip
    task = generic(tokenizer, prompt="{{ q }}\n", response=" {{ a }} ", chat=True, system=system)
    closed = generic(tokenizer, prompt="{{ q }}", response=" {{ a }}", chat=True, answers=("so", "no"))
    row = {"q": "Why?", "a": "so"}
    blanks = before if not before.strip() else ""
    blanks = " " if opening else blanks
    assert task.prompt(row) == f"<s>{'' if system is None else '[Brief.]'}[Why?]{opening.strip()}"
    assert task.response(row) == task.written("so") == f"{blanks}so"
    assert closed.candidates == (f"{blanks}so", f"{blanks}no")
    if not before.strip():
        turns = [*([] if system is None else [{"role": "system", "content": system}])]
        turns += [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "so"}]
        assert tokenizer.apply_chat_template(turns, tokenize=False) == task.prompt(row) + task.response(row) + "</s>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for message in messages %}{% if message.role == 'assistant' %}{{ raise_exception('no answers') }}"
         "{% endif %}{{ message.content }}{% endfor %}", "no answers"),
        ({"rag": TEMPLATE, "tools": TEMPLATE}, "default"),
    ],
)  # fmt: skip
def test_a_chat_template_that_cannot_be_used_is_a_config_error(template, reason):
    with pytest.raises(ConfigError, match=rf"the model's chat template cannot be filled in \((?s:.*){reason}"):
        generic(chatty(template), chat=True)


def test_of_several_chat_templates_the_default_is_used():
    tokenizer = chatty({"default": TEMPLATE, "tools": "{{ raise_exception('not this') }}"})
    assert generic(tokenizer, chat=True).prompt({"prompt": "Why?"}) == "<s><user> Why? </user> <assistant>"


@pytest.mark.parametrize("response", ["{{ label }}", "The answer is {{ label }}.", " {{ label }} m"])
def test_a_person_and_a_row_of_the_pool_say_the_same(response):
    task = generic(chatty(), prompt="{{ q }}: ", response=response, chat=True)
    assert task.written("42") == task.response({"q": "How many?", "label": "42"})


def test_without_chat_the_tokenizer_adds_its_own():
    encoder = Encoder(chatty(), generic(None, prompt="{{ q }}"), Limits(20, 5))
    assert encoder.prompts([Prompt("p", "Why?")])[0].tolist() == [0, 8]


def test_a_chat_template_that_refuses_the_message_is_a_config_error():
    tokenizer = chatty("{% set not_allowed = true %}" + TEMPLATE)
    assert generic(tokenizer, chat=True).prompt({"prompt": "Why?"}).endswith("<assistant>")
    with pytest.raises(ConfigError, match=r"chat template cannot be filled in \(no system\); does it take a system"):
        generic(tokenizer, chat=True, system="Brief.")


def test_chat_templates_are_told_the_same_day_every_day():
    asks = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }} {% endif %}"
    tokenizer = chatty(asks + "{{ messages[0].content }}")
    assert generic(tokenizer, chat=True).prompt({"prompt": "Why?"}) == "26 Jul 2024 Why?"


def test_a_person_reads_the_message_without_the_frame(tmp_path):
    """Nor the system's words, which are the same everywhere; the model reads all of it."""
    (tmp_path / "pool.jsonl").write_text('{"q": " Why? "}\n')
    task = generic(chatty(), prompt="{{ q }}: ", chat=True, system="Brief.")
    (prompt,) = load_prompts(task, str(tmp_path / "pool.jsonl"), "train")
    assert prompt.readable == "Why? :"
    assert prompt.text == "<s><system> Brief. </system> <user>  Why? : </user> <assistant>"
    plain = generic(None, prompt="{{ q }}: ")
    (prompt,) = load_prompts(plain, str(tmp_path / "pool.jsonl"), "train")
    assert prompt.readable == prompt.text == " Why? :"
