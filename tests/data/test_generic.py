"""The task that a configuration describes: templates, labels and answers; its chat is in test_chat.py."""

import pytest
from data_files import write_csv, write_lines, write_parquet

from star_jax.config import DataConfig, FormatConfig
from star_jax.data.examples import Example, Prompt
from star_jax.data.loading import load_examples, load_pool_and_test, load_prompts
from star_jax.data.tasks import get_task
from star_jax.errors import ConfigError, DataError


def generic(**fields):
    return get_task("generic", FormatConfig(**fields))


# Templates


def test_columns_named_prompt_and_response_need_no_format():
    task = get_task("generic")
    row = {"prompt": "How many?", "response": 3}
    assert (task.prompt(row), task.response(row)) == ("How many?\n", "3")


def test_templates_stand_as_they_are_but_for_blanks_at_the_end():
    row = {"question": "  How many? ", "label": "three \n", "The context": "Tom has pens."}
    task = generic(prompt="{{ row['The context'] }}\n{{ question }}\nAnswer:\n", response="\n{{ label }}")
    assert task.prompt(row) == "Tom has pens.\n  How many? \nAnswer:\n"
    assert task.response(row) == "\nthree"
    assert generic(prompt="{{ question }}").prompt(row) == "  How many? "


@pytest.mark.parametrize("blanks", ["", " ", " \t "])
def test_a_blank_at_the_end_of_the_prompt_goes_to_the_response_and_to_every_candidate(blanks):
    task = generic(prompt=f"{{{{ q }}}}\nAnswer:{blanks}", response="{{ a }}", answers=("yes", "no"))
    row = {"q": "Is it?", "a": "Yes"}
    assert task.prompt(row) == "Is it?\nAnswer:"
    assert task.response(row) == f"{blanks}yes"
    assert task.candidates == (f"{blanks}yes", f"{blanks}no")
    assert generic(prompt=f"{{{{ q }}}}{blanks}", response="{{ a }}").response(row) == f"{blanks}Yes"
    assert generic(response=" {{ a }}", answers=("yes", "no")).candidates == (" yes", " no")


EMPTY = [None, "", "  ", float("nan")]


@pytest.mark.parametrize("value", [*EMPTY, "missing"])
def test_what_a_prompt_prints_must_be_there(value):
    row = {"other": "x"} | ({} if value == "missing" else {"q": value})
    said = "field 'q' is missing \\(the row has other\\)" if value == "missing" else "field 'q' is empty"
    for template in (
        "{{ q }}",
        "Q: {{ q | trim }}",
        "{{ 'Q: ' ~ q }}",
        "{{ q.strip() }}",
        "{% if q == 'x' %}{% endif %}",
    ):
        with pytest.raises(DataError, match=f"^{said}, and format.prompt needs it$"):
            generic(prompt=template).prompt(row)


@pytest.mark.parametrize("value", EMPTY)
def test_what_may_be_empty_is_asked_about(value):
    row = {"q": "Why?", "context": value}
    for part in ("{{ context or '' }}", "{% if context %}{{ context }} {% endif %}", "{{ context | default('') }}"):
        assert generic(prompt=part + "{{ q }}").prompt(row) == "Why?"
    template = "{{ q }}{% if context is defined %}{{ context }}{% endif %}"
    assert generic(prompt=template).prompt(row) == generic(prompt=template).prompt({"q": "Why?"}) == "Why?"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ many }}", "format.prompt prints \\['a', 'b'\\]; print a text or a number of it"),
        ("{{ nested }}", "format.prompt prints {'text': 'c'}; print"),
        ("{{ nested.missing }}", "has no attribute 'missing', and format.prompt needs it"),
        ("{{ many[7] }}", "has no element 7"),
        ("{{ q / 2 }}", "format.prompt cannot be filled in: unsupported operand"),
        ("{{ q.__class__.__mro__ }}", "attribute '__class__' of 'str' object is unsafe"),
        ("{% if q == 'x' %}yes{% endif %}", "the prompt is empty; fill in the fields"),
        ("{{ half }}", "the text of format.prompt holds an unpaired surrogate"),
    ],
)
def test_rows_that_a_template_fails_on(template, message):
    row = {"q": "Why?", "many": ["a", "b"], "nested": {"text": "c"}, "half": "\ud83d"}
    with pytest.raises(DataError, match=message):
        generic(prompt=template).prompt(row)


def test_parts_of_nested_columns_can_be_printed():
    row = {"choices": {"text": ["light", "sound"]}, "n": 2, "truth": True}
    template = "{% for text in choices.text %}{{ 'AB'[loop.index0] }} {{ text }}\n{% endfor %}{{ n }}{{ truth }}"
    assert generic(prompt=template).prompt(row) == "A light\nB sound\n2True"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "{{ question"}, "format.prompt is no valid Jinja template: unexpected end of template"),
        ({"prompt": "a\n{{ x }}\n{% fi %}"}, "Encountered unknown tag 'fi'. in its line 3"),
        ({"response": "{{ label | lowr }}"}, "format.response is no valid Jinja template: No filter named 'lowr'"),
        ({"prompt": "  "}, "format.prompt is empty"),
        ({"id": ""}, "format.id is empty"),
        ({"system": "Be brief."}, "format.system is set and format.chat is false"),
        ({"answers": ("yes",)}, "format.answers names only one"),
        ({"answers": ("yes", " no")}, "format.answers holds ' no'; leave out the blanks"),
        ({"answers": ("yes", "YES")}, "'yes' and 'YES', which are one and the same to format.match exact"),
        ({"answers": ("1", "one"), "match": "numeric"}, "'one', which format.match numeric cannot read"),
        ({"answers": ("1", "1.0"), "match": "numeric"}, "'1' and '1.0', which are one and the same"),
        ({"match": "choice"}, "format.match is choice and format.answers names 0; name 2 to 26"),
        ({"chat": True}, "the model's tokenizer has no chat template"),
    ],
)
def test_formats_that_cannot_be_used(fields, message):
    with pytest.raises(ConfigError, match=message):
        generic(**fields)


# Labels and answers


@pytest.mark.parametrize("value", [*EMPTY, "missing"])
def test_a_row_without_its_response_is_unlabelled(value):
    row = {"q": "Why?"} | ({} if value == "missing" else {"label": value})
    for fields in ({}, {"answers": ("yes", "no")}, {"match": "numeric"}):
        assert generic(prompt="{{ q }}", response="It is {{ label }}", **fields).response(row) is None


def test_exact_match_sees_neither_blanks_nor_capitals():
    task = generic()
    assert task.is_correct(" New \n york", "New York")
    assert not task.is_correct("New York.", "New York")
    assert not task.is_correct("", "")


def test_letters_are_the_same_however_unicode_writes_them():
    exact = generic(response="{{ a }}", match="exact")
    assert exact.is_correct("cafe\u0301", "caf\u00e9")
    assert not exact.is_correct("x2", "x\u00b2")
    closed = generic(response="{{ a }}", answers=("\ufb01ne", "\u4e0d\u597d"), match="choice")
    assert closed.parse("it is fine") == closed.parse("\ufb01ne") == "\ufb01ne"
    assert closed.parse("\u4e0d\u597d") == "\u4e0d\u597d"
    powers = generic(response="{{ a }}", answers=("x\u00b2", "x2"), match="choice")
    assert (powers.parse("x\u00b2"), powers.parse("x2")) == ("x\u00b2", "x2")


def test_numeric_match_reads_the_last_number():
    task = generic(match="numeric")
    assert task.is_correct("3 + 4 makes $7.00.", "7")
    assert not task.is_correct("7 or 8", "7")
    assert [task.response({"response": value}) for value in (7, "7,000 m", 1e-5)] == ["7", "7,000 m", "1e-05"]
    with pytest.raises(DataError, match=r"the response is 'none', with no number in it; format\.match is numeric"):
        task.response({"response": "none"})


@pytest.mark.parametrize(
    ("match", "answers", "texts", "wrong"),
    [
        ("exact", ("Yes", "Not at all"), ("yes", " not  AT all "), "no"),
        ("numeric", ("1", "2.5"), ("1.0", "+2.50 stars"), "3"),
        ("choice", ("light", "sound"), ("A", "the answer is sound"), "C"),
        ("choice", ("b", "x"), ("(b)", "X"), "a"),
    ],
)
def test_closed_answers_are_written_as_they_are_listed(match, answers, texts, wrong):
    task = generic(prompt="{{ prompt }} ", match=match, answers=answers)
    assert task.candidates == tuple(f" {answer}" for answer in answers)
    for answer, candidate, text in zip(answers, task.candidates, texts, strict=True):
        assert task.response({"response": text}) == candidate
        assert [task.is_correct(candidate, other) for other in task.candidates] == [a == answer for a in answers]
    with pytest.raises(DataError, match=f"the response is '{wrong}'; expected one of {', '.join(answers)}"):
        task.response({"response": wrong})
    assert not task.is_correct(wrong, task.candidates[0])


def test_free_answers_have_no_candidates():
    assert generic().candidates is None


# What a person writes


@pytest.mark.parametrize(
    ("fields", "text", "response"),
    [
        ({}, "42", "42"),
        ({"prompt": "{{ q }} "}, "42", " 42"),
        ({"prompt": "{{ q }} ", "response": "The answer is {{ label }}."}, "42", " The answer is 42."),
        ({"response": "\nIt is {{ row['my label'] | trim }}\n"}, "42", "\nIt is 42"),
        ({"response": "{{ '%.1f' | format(label | float) }}", "match": "numeric"}, "42", "42.0"),
        ({"prompt": "{{ q }} ", "response": "{{ label }}", "answers": ("yes", "no")}, "YES", " yes"),
        # The whole response, where it is made of several columns or does not show what its column says.
        ({"prompt": "{{ q }} ", "response": "{{ why }} So: {{ label }}"}, "It is 42", " It is 42"),
        ({"response": " {{ row[kind] }}", "prompt": "{{ q }}"}, "42", " 42"),
        ({"prompt": "{{ q }} ", "response": "{{ 'yes' if label == 1 else 'no' }}"}, "yes", " yes"),
        ({"response": "{{ label.split('#')[1] }}"}, "a # b", "a # b"),
        ({"response": "{{ {'T': 'yes', 'F': 'no'}[label] }}", "answers": ("yes", "no")}, "no", "no"),
    ],
)
def test_what_a_person_writes_becomes_the_response_of_a_row(fields, text, response):
    assert generic(**fields).written(text) == response


@pytest.mark.parametrize("response", ["{{ label }}", "The answer is {{ label }}.", " {{ label }} m", "{{ label }} "])
@pytest.mark.parametrize("match", ["exact", "numeric"])
def test_a_person_and_a_row_of_the_pool_say_the_same(response, match):
    task = generic(prompt="{{ q }}: ", response=response, match=match)
    assert task.written("42") == task.response({"q": "How many?", "label": "42"})


@pytest.mark.parametrize(
    ("fields", "text", "message"),
    [
        ({"match": "numeric"}, "many", "the response is 'many', with no number in it; format.match is numeric"),
        ({"answers": ("yes", "no")}, "maybe", "the response is 'maybe'; expected one of yes, no"),
        ({"response": "{% if a != '-' %}{{ a }}{% endif %}"}, "-", "is '-', of which format.response makes nothing"),
    ],
)
def test_what_is_no_answer_is_refused(fields, text, message):
    with pytest.raises(DataError, match=message):
        generic(**fields).written(text)


# Files


ROWS = [
    {"key": "a", "question": "2 + 3?", "kind": "sum", "label": "5"},
    {"key": "b", "question": "one, two?", "kind": "", "label": ""},
    {"key": "c", "question": "3 * 3?", "kind": "product", "label": "9"},
]
FIELDS = {"prompt": "{{ question }}\nAnswer: ", "response": "{{ label }}", "id": "key", "group": "kind"}


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("match", ["exact", "numeric"])
def test_every_format_gives_the_same_examples(tmp_path, ending, match):
    path = tmp_path / f"data{ending}"
    {".jsonl": lambda path, rows: write_lines(path, *rows), ".csv": write_csv, ".parquet": write_parquet}[ending](
        path, ROWS
    )
    task = generic(**FIELDS, match=match)
    expected = [
        Prompt("a", "2 + 3?\nAnswer:", "sum"),
        Prompt("b", "one, two?\nAnswer:"),
        Prompt("c", "3 * 3?\nAnswer:", "product"),
    ]
    assert load_prompts(task, str(path), "train") == expected
    assert [task.group(prompt) for prompt in expected] == ["sum", "none", "product"]
    with pytest.raises(
        DataError, match=r", (line|row) \d: the row has no response \(it has key, question, kind, label\)"
    ):
        load_examples(task, str(path), "train")
    labelled = load_examples(task, str(path), "train", "skip")
    assert labelled == [Example(expected[0], " 5"), Example(expected[2], " 9")]


def test_columns_that_the_format_names_must_be_there(tmp_path):
    source = write_csv(tmp_path / "data.csv", [{"question": "Why?", "key": ""}])
    for fields, message in (
        ({"id": "name"}, "field 'name', which should name the row, is missing \\(the row has question, key\\)"),
        ({"id": "key"}, "field 'key' is ''; it must be a number or a text"),
        ({"group": "kind"}, "field 'kind', of format.group, is missing"),
        ({"prompt": "{{ quest }}"}, "field 'quest' is missing \\(the row has question, key\\)"),
    ):
        with pytest.raises(DataError, match=f"^{source}, line 2: {message}"):
            load_prompts(generic(**{"prompt": "{{ question }}"} | fields), source, "train")
    assert [prompt.id for prompt in load_prompts(generic(prompt="{{ question }}"), source, "train")] == ["data-000002"]


WHY = {"prompt": "{{ q }}{% if hint %} ({{ hint }}){% endif %}", "response": "{% if why %}{{ why }} {% endif %}{{ a }}"}


def test_a_column_that_only_some_lines_have_is_empty_in_the_others(tmp_path):
    rows = [{"id": 1.0, "q": "Why?", "a": "so"}, {"q": "How?", "hint": "now", "why": "Since", "a": "so", "id": "2"}]
    source = write_lines(tmp_path / "data.jsonl", *rows, {"q": "When?", "kind": "k"})
    task = generic(**WHY, group="kind")
    assert load_prompts(task, source, "train") == [
        Prompt("1", "Why?"),
        Prompt("2", "How? (now)"),
        Prompt("data-000003", "When?", "k"),
    ]
    config = DataConfig(task="generic", train=source, test=write_lines(tmp_path / "test.jsonl", rows[1] | {"kind": 1}))
    loaded = load_pool_and_test(config, task, seed=0)
    assert loaded.labels == {"1": "so", "2": "Since so"}
    assert loaded.ids == {"1", "2", "data-000003"}


def test_a_column_that_no_line_has_is_an_error_of_the_prompt_and_no_label(tmp_path):
    source = write_lines(tmp_path / "data.jsonl", {"q": "Why?", "why": "x"}, {"q": "How?", "hint": "now"})
    said = r"data\.jsonl, line 1: field 'question' is missing \(the row has q, why, hint\), and format.prompt needs it"
    with pytest.raises(DataError, match=said):
        load_prompts(generic(prompt="{% if question %}{{ question }}{% endif %}"), source, "train")
    config = DataConfig(
        task="generic", train=source, test=write_lines(tmp_path / "t.jsonl", {"q": "?", "a": "so", "why": 1})
    )
    assert load_pool_and_test(config, generic(**WHY | {"prompt": "{{ q }}"}), seed=0).labels == {}
