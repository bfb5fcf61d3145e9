"""The skills benchmark: right answers, disjoint sets, regimes in the stated proportions, same seed same items."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from seeds import seed_of

from star_jax.benchmarks.skills import exercises
from star_jax.benchmarks.skills import generator as skills
from star_jax.benchmarks.skills.task import SKILLS
from star_jax.data.examples import Prompt
from star_jax.errors import ConfigError, DataError


def texts(examples):
    return [example.prompt.text for example in examples]


def counts(examples):
    return Counter(skills.skill_of(text) for text in texts(examples))


def insertion_sorted(digits):
    out = []
    for digit in digits:
        place = 0
        while place < len(out) and out[place] <= digit:
            place += 1
        out.insert(place, digit)
    return out


def operate(keyword, digits):
    """One list operation, written out by index."""
    n = len(digits)
    ascending = insertion_sorted(digits)
    if keyword == "copy":
        return [digits[i] for i in range(n)]
    if keyword == "rev":
        return [digits[n - 1 - i] for i in range(n)]
    if keyword == "sort":
        return ascending
    if keyword == "max":
        return [ascending[n - 1]]
    if keyword == "min":
        return [ascending[0]]
    if keyword == "rotl":
        return [digits[(i + 1) % n] for i in range(n)]
    if keyword == "inc":
        return [0 if digits[i] == 9 else digits[i] + 1 for i in range(n)]
    if keyword == "cnt":
        return [sum(1 for i in range(1, n) if digits[i] == digits[0])]
    if keyword == "first":
        return [digits[0]]
    if keyword == "desc":
        return [ascending[n - 1 - i] for i in range(n)]
    if keyword == "second":
        return [ascending[n - 2]]
    if keyword == "swap":
        return [digits[n - 1] if i == 0 else digits[0] if i == n - 1 else digits[i] for i in range(n)]
    if keyword == "rinc":
        return operate("inc", operate("rev", digits))
    if keyword == "rot2":
        return operate("rotl", operate("rotl", digits))
    if keyword == "mininc":
        return operate("inc", operate("min", digits))
    raise AssertionError(keyword)


def reference(text):
    """The answer by another route than the module's, one token at a time."""
    *tokens, mark = text.split(" ")
    assert mark == "="
    keywords = [token for token in tokens if len(token) > 1]
    arguments = [token for token in tokens if len(token) == 1]
    assert tokens == keywords + arguments
    width = len(arguments) // 2
    if keywords == ["add"]:
        assert len(arguments) in (4, 5, 6)
        return " ".join(str(int(arguments[0]) + int(arguments[i]))[-1] for i in range(1, len(arguments)))
    if keywords in (["lt"], ["ge"]):
        assert len(arguments) in (2, 4)
        # Equal widths: the order of the numbers is that of their digits, and of the characters.
        less = "".join(arguments[:width]) < "".join(arguments[width:])
        return "T" if less == (keywords == ["lt"]) else "F"
    if keywords == ["chain"]:
        assert len(arguments) == 7
        wanted = arguments[6]
        while wanted.isalpha():
            wanted = next(arguments[i + 1] for i in (0, 2, 4) if arguments[i] == wanted)
        return wanted
    assert len(keywords) in (1, 2)
    assert len(arguments) in (3, 4, 5)
    digits = [int(token) for token in arguments]
    for keyword in reversed(keywords):
        digits = operate(keyword, digits)
    return " ".join(str(digit) for digit in digits)


@pytest.fixture(scope="module")
def seed(request):
    return seed_of(request)


@pytest.fixture(scope="module")
def corpus(seed):
    return skills.pretraining_items(seed, 20_000)


@pytest.fixture(scope="module")
def labels(seed):
    return skills.balanced_labels(seed, 2_000)


@pytest.fixture(scope="module")
def held_out():
    return skills.test_examples()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("rev 3 1 4 =", "4 1 3"),
        ("sort rev 3 1 4 =", "1 3 4"),
        ("first inc 9 1 4 =", "0"),
        ("add 7 3 1 9 =", "0 8 6"),
        ("lt 0 9 1 2 =", "T"),
        ("lt 4 4 =", "F"),
        ("ge 4 4 =", "T"),
        ("ge 1 9 2 0 =", "F"),
        ("chain b 4 d b a 7 d =", "4"),
        ("chain c 8 a c b a b =", "8"),
        ("cnt 5 2 5 5 =", "2"),
        ("second 7 7 1 =", "7"),
        ("mininc 9 9 9 =", "0"),
        ("rot2 1 2 3 4 5 =", "3 4 5 1 2"),
    ],
)
def test_worked_examples(text, answer):
    assert skills.solve(text) == answer
    assert reference(text) == answer


def test_every_response_is_right(corpus, labels, held_out, seed):
    items = corpus + skills.replay_items(seed, 2_000)
    items += [(example.prompt.text, example.response) for example in labels + held_out]
    seen = set()
    for text, response in items:
        assert response == reference(text) == skills.solve(text), text
        seen.add(skills.skill_of(text))
    assert seen >= {*skills.KNOWN_KEYWORDS, *skills.TESTED_SKILLS}
    assert seen >= {f"{outer}.{inner}" for outer, inner in skills.PRETRAINED_PAIRS}


@pytest.mark.parametrize(
    "text",
    ["", "rev", "rev =", "=", "3 1 4 =", "rev 3 1 4", "turn 3 1 4 =", "rev inc ="],
)
def test_a_text_of_another_form_has_no_skill(text):
    with pytest.raises(DataError, match="is not a keyword of the skills benchmark"):
        skills.skill_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "noise 3 1 4 =",
        "rev noise 3 1 4 =",
        "add rev 3 1 4 =",
        "add x 3 1 4 =",
        "lt 3 =",
        "chain a 3 b a c d c =",
        "rev 3 =",
        "rev a b c =",
        "rev 3 1 44 =",
    ],
)
def test_a_prompt_without_an_answer_is_refused(text):
    with pytest.raises(DataError, match="asks for nothing that has an answer"):
        skills.solve(text)


def test_trivial_and_held_out_pairs_are_those_the_docstrings_name(rng):
    lists = [rng.integers(10, size=rng.integers(3, 6)).tolist() for _ in range(300)]

    def same(first, second):
        return all(first(digits) == second(digits) for digits in lists)

    def composed(outer, inner):
        return lambda digits: operate(outer, operate(inner, digits))

    pairs = [(outer, inner) for outer in skills.OUTER_KEYWORDS for inner in skills.INNER_KEYWORDS]
    trivial = {
        (outer, inner)
        for outer, inner in pairs
        if same(composed(outer, inner), lambda digits, outer=outer: operate(outer, digits))
        or same(composed(outer, inner), lambda digits: digits)
    }
    assert trivial == skills.TRIVIAL_PAIRS
    list_skills = [skill for skill in skills.NEW_SKILLS if skill != "ge"]
    new = {
        (outer, inner)
        for outer, inner in pairs
        if any(
            same(composed(outer, inner), lambda digits, skill=skill: operate(skill, digits)) for skill in list_skills
        )
    }
    assert new == skills.HELD_OUT_PAIRS
    assert set(skills.PRETRAINED_PAIRS) == set(pairs) - trivial - new


def test_the_vocabulary_is_closed_and_the_lengths_are_exact(corpus, labels, held_out, seed):
    noise = skills.pool_examples("R3", seed, 500)
    items = corpus + [(example.prompt.text, example.response) for example in labels + held_out + noise]
    prompts, responses = ([pair[side].split(" ") for pair in items] for side in (0, 1))
    assert skills.VOCABULARY[:2] == ("<pad>", ".")
    assert len(set(skills.VOCABULARY)) == len(skills.VOCABULARY)
    used = {token for tokens in prompts + responses for token in tokens}
    assert used | {skills.PAD, skills.EOS} == set(skills.VOCABULARY)
    assert max(map(len, prompts)) == skills.MAX_PROMPT_TOKENS <= 10
    assert max(map(len, responses)) + 1 == skills.MAX_RESPONSE_TOKENS <= 6
    assert min(map(len, responses)) == 1


def test_the_test_set_is_uniform_distinct_and_stays_the_same(held_out):
    assert counts(held_out) == dict.fromkeys(skills.TESTED_SKILLS, skills.TEST_PER_SKILL)
    assert len(set(texts(held_out))) == len(held_out) == len({example.id for example in held_out})
    assert held_out[0].id == "test-rev-000"
    assert held_out[-1].id == "test-mininc-059"
    assert skills.test_examples() == held_out
    # The shipped base model has never read these prompts; another set would break that promise without a sign.
    digest = hashlib.sha256("\n".join(texts(held_out)).encode()).hexdigest()
    assert digest == "df05d9eed2de54e4a645d9c7c4cbc2844e0974d4c90f2333a3a9890c1774ba74"


def test_no_set_shares_a_prompt_with_the_test_set(corpus, labels, held_out, seed):
    excluded = set(texts(held_out))
    assert excluded.isdisjoint(text for text, _ in corpus + skills.replay_items(seed, 20_000))
    assert excluded.isdisjoint(texts(labels))
    for regime in skills.REGIMES:
        assert excluded.isdisjoint(texts(skills.pool_examples(regime, seed, 1_500)))


def test_a_crowded_skill_still_stays_out_of_the_test_set(held_out, monkeypatch, rng):
    """With lists of one length there are 1,000 prompts, and a draw meets a test prompt all the time."""
    monkeypatch.setattr(exercises, "LIST_LENGTHS", (3,))
    excluded = set(texts(held_out))
    short = {text for text in excluded if text.startswith("rev ") and len(text.split()) == 5}
    assert short
    drawn = skills._draw_distinct(rng, {"rev": 990 - len(short)}, excluded)["rev"]
    assert len(set(drawn)) == 990 - len(short)
    assert excluded.isdisjoint(drawn)
    with pytest.raises(ConfigError, match=r"skill rev .* ask for fewer \(data\.pool_size\)"):
        skills._draw_distinct(rng, {"rev": 1_001 - len(short)}, excluded)


def test_pretraining_holds_no_new_keyword_and_the_stated_shares(corpus):
    count = Counter(skills.skill_of(text) for text, _ in corpus)
    pairs = {f"{outer}.{inner}" for outer, inner in skills.PRETRAINED_PAIRS}
    assert set(count) == set(skills.KNOWN_KEYWORDS) | pairs
    singles = sum(count[keyword] for keyword in skills.KNOWN_KEYWORDS)
    assert singles / len(corpus) == pytest.approx(skills.SINGLE_SHARE, abs=0.02)
    for keyword in skills.KNOWN_KEYWORDS:
        weights = {name: skills.SINGLE_WEIGHTS.get(name, 1) for name in skills.KNOWN_KEYWORDS}
        assert count[keyword] / singles == pytest.approx(weights[keyword] / sum(weights.values()), abs=0.02)
    for pair in pairs:
        assert count[pair] / (len(corpus) - singles) == pytest.approx(1 / len(pairs), abs=0.02)


@pytest.mark.parametrize("regime", skills.REGIMES)
def test_a_pool_has_distinct_prompts_and_ids_that_tell_nothing(regime, seed):
    pool = skills.pool_examples(regime, seed, 700)
    assert [example.id for example in pool] == [f"pool-{place:06d}" for place in range(700)]
    assert len(set(texts(pool))) == 700
    assert texts(pool) == texts(skills.pool_examples(regime, seed, 700))
    # Shuffled: the mean place of each skill is that of the pool, within five standard errors.
    places = np.arange(700)
    for skill, count in counts(pool).items():
        own = [place for place, text in enumerate(texts(pool)) if skills.skill_of(text) == skill]
        assert abs(np.mean(own) - places.mean()) < 5 * places.std() / np.sqrt(count)


def test_balanced_pools_and_labels_have_equal_shares(seed, labels):
    for size in (1_200, 1_205):
        count = counts(skills.pool_examples("R0", seed, size))
        assert set(count) == set(skills.TESTED_SKILLS)
        assert sum(count.values()) == size
        assert set(count.values()) <= {100, 101}
    assert set(counts(labels)) == set(skills.TESTED_SKILLS)
    assert set(counts(labels).values()) <= {166, 167}
    assert len(set(texts(labels))) == len(labels)


def test_zipf_pools_follow_the_law_in_an_order_that_depends_on_the_seed(seed):
    orders = set()
    weights = [rank**-1.2 for rank in range(1, 13)]
    for offset in range(4):
        count = counts(skills.pool_examples("R1", seed + offset, 1_500)).most_common()
        for (_, number), weight in zip(count, weights, strict=True):
            assert abs(number - 1_500 * weight / sum(weights)) <= 1
        orders.add(tuple(skill for skill, _ in count))
    assert len(orders) == 4


def test_mostly_known_pools(seed):
    count = counts(skills.pool_examples("R2", seed, 700))
    assert all(abs(count[skill] - 0.8 * 700 / 5) <= 1 for skill in skills.KNOWN_SKILLS)
    assert all(abs(count[skill] - 0.2 * 700 / 7) <= 1 for skill in skills.NEW_SKILLS)
    assert sum(count[skill] for skill in skills.TESTED_SKILLS) == 700


def test_unlearnable_fifth(seed):
    pool = skills.pool_examples("R3", seed, 3_000)
    count = counts(pool)
    assert count == dict.fromkeys(skills.TESTED_SKILLS, 200) | {"noise": 600}
    digits = Counter()
    for example in pool:
        if skills.skill_of(example.prompt.text) != "noise":
            assert example.response == reference(example.prompt.text)
            continue
        answer = example.response.split(" ")
        assert len(answer) == len(example.prompt.text.split(" ")) - 2
        digits.update(answer)
    assert set(digits) == set(skills.DIGITS)
    # Each digit of about 2,400 turns up a tenth of the time: six standard errors.
    total = sum(digits.values())
    assert all(abs(number / total - 0.1) < 6 * np.sqrt(0.09 / total) for number in digits.values())


def test_fewer_initial_labels_see_the_same_zipf_pool(seed):
    assert skills.pool_examples("R4", seed, 300) == skills.pool_examples("R1", seed, 300)


def test_a_set_is_a_function_of_its_seed_and_no_two_streams_agree(seed):
    def draws(number):
        yield skills.pretraining_items(number, 200)
        yield skills.replay_items(number, 200)
        yield texts(skills.balanced_labels(number, 200))
        for regime in ("R0", "R1", "R2", "R3"):
            yield texts(skills.pool_examples(regime, number, 200))

    first, again, other = (list(draws(number)) for number in (seed, seed, seed + 1))
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))
    assert first[0] != first[1]
    assert set(first[2]) != set(first[3])


def test_impossible_requests_are_refused():
    with pytest.raises(ConfigError, match=r"data\.regime is 'R9'; choose from R0, R1, R2, R3, R4"):
        skills.pool_examples("R9", 0, 10)


def test_numbers_compare_over_both_outcomes_and_both_widths(labels, corpus):
    asked = [text for text in texts(labels) + [text for text, _ in corpus] if text[:3] in ("ge ", "lt ")]
    outcomes = Counter(skills.solve(text) for text in asked)
    assert min(outcomes.values()) > 0.3 * len(asked)
    assert {len(text.split()) for text in asked} == {4, 6}
    assert any(text.split()[1:3] == text.split()[3:5] for text in asked)


def test_task_reads_rows_and_judges_answers():
    row = {"question": "  rev  3 1 4 = ", "answer": " 4 1  3 . "}
    assert SKILLS.prompt(row) == "rev 3 1 4 ="
    assert SKILLS.response(row) == "4 1 3"
    assert SKILLS.response({"question": "rev 3 1 4 ="}) is None
    assert SKILLS.group(Prompt("x", "first rev 3 1 4 =")) == "first.rev"
    assert SKILLS.parse("4  1 3. 5 5") == "4 1 3"
    assert SKILLS.parse(" . 4") is None
    assert SKILLS.is_correct("4 1 3 . 7", "4 1 3")
    assert not SKILLS.is_correct("4 1", "4 1 3")
    assert not SKILLS.is_correct("", "4 1 3")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "4"}, "field 'question' is missing"),
        ({"question": 3, "answer": "4"}, "field 'question' is 3; it must be a string"),
        ({"question": "turn 3 1 =", "answer": "4"}, "field 'question' is 'turn 3 1 ='; expected a keyword"),
    ],
)
def test_task_refuses_prompts_of_another_form(row, message):
    with pytest.raises(DataError, match=message):
        SKILLS.prompt(row)


def test_task_refuses_an_empty_answer():
    with pytest.raises(DataError, match=r"field 'answer' is ' \.'; expected tokens before '\.'"):
        SKILLS.response({"question": "rev 3 1 4 =", "answer": " ."})
