"""Whose tokenizer and chat template go with a merged model, for every way in which two folders can have them."""

import json

import pytest

from star_jax.checkpoints.companions import copy_companions, together, tokenizer_files

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
CHAT = ("chat_template.jinja", "additional_chat_templates/tool.jinja")


def folder(place, names):
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(json.dumps({"of": place.name}))
    (place / "config.json").parent.mkdir(exist_ok=True)
    (place / "config.json").write_text("{}")
    return place


@pytest.mark.parametrize(
    ("base", "adapter", "from_base", "from_adapter", "said"),
    [
        (TOKENIZER, (), TOKENIZER, (), "the base model's tokenizer"),
        ((*TOKENIZER, *CHAT), (), (*TOKENIZER, *CHAT), (), "the base model's tokenizer"),
        ((), TOKENIZER, (), TOKENIZER, "the adapter's tokenizer"),
        ((*TOKENIZER, *CHAT), TOKENIZER, CHAT, TOKENIZER, "the adapter's tokenizer"),
        (
            ("tokenizer.model", *CHAT),
            (*TOKENIZER, CHAT[0]),
            (),
            (*TOKENIZER, CHAT[0]),
            "the adapter's tokenizer and chat template",
        ),
        (
            (*TOKENIZER, *CHAT),
            CHAT[:1],
            TOKENIZER,
            CHAT[:1],
            "the base model's tokenizer with the adapter's chat template",
        ),
        ((), (), (), (), "no tokenizer, for neither has one"),
        # Settings alone are no tokenizer.
        (TOKENIZER, ("tokenizer_config.json",), TOKENIZER, (), "the base model's tokenizer"),
    ],
)
def test_the_adapters_go_before_the_bases_and_are_not_mixed(tmp_path, base, adapter, from_base, from_adapter, said):
    found, whose = together(folder(tmp_path / "base", base), folder(tmp_path / "adapter", adapter))
    assert whose == said
    (tmp_path / "out").mkdir()
    copy_companions(found, tmp_path / "out")
    copied = {
        path.relative_to(tmp_path / "out").as_posix(): json.loads(path.read_text())["of"]
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert copied == dict.fromkeys(from_base, "base") | dict.fromkeys(from_adapter, "adapter")


def test_a_template_inside_the_settings_is_one(tmp_path):
    adapter = folder(tmp_path / "adapter", TOKENIZER)
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    found, whose = together(folder(tmp_path / "base", (*TOKENIZER, *CHAT)), adapter)
    assert whose == "the adapter's tokenizer and chat template"
    assert set(found) == set(TOKENIZER)
    assert set(tokenizer_files(adapter)) == set(TOKENIZER)
