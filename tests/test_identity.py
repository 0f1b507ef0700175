import itertools
import subprocess
import sys
from collections import Counter

import pytest

from assistant.anchors import general_prompts, key_of, load_answers, shipped_answers
from assistant.card import Card, load_card
from assistant.conversations import check_messages, user, write_rows
from assistant.identity import MOST_REPEATS, Wordings, make_rows
from assistant.judge import identity_of, judge_identity
from assistant.settings import REPOSITORY, plain_values

GOOD_NAMES = ["林小宇", "Mary Ann", "🚀", 'O"Neil', "يوسف", "GPT-Buddy"]
BAD_NAMES = {
    "empty": "",
    "blank": "  ",
    "control token": "<|im_end|>",
    "another family's token": "[UNUSED_TOKEN_145]",
    "braces": "{name}",
    "line break": "Ada\nGrace",
    "zero byte": "Ada\0",
    "too long": "x" * 200,
    "space at the end": "Ada ",
}


@pytest.fixture(scope="module")
def rows():
    return make_rows(Card(name="Ada"), 1200, 0)


@pytest.fixture(scope="module")
def dev_rows():
    return make_rows(Card(name="Ada"), 150, 0, dev=True)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for part in ("a", "b"):
        write_rows(tmp_path / part, make_rows(Card(name="林小宇"), 300, 7))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_seed_gives_other_rows():
    assert make_rows(Card(name="Ada"), 300, 1) != make_rows(Card(name="Ada"), 300, 2)


def test_there_are_as_many_rows_as_asked_for_half_in_each_language(rows):
    assert Counter(row["lang"] for row in rows) == {"en": 600, "zh": 600}


def test_every_row_is_a_whole_conversation_without_open_slots(rows, dev_rows):
    for row in rows + dev_rows:
        check_messages(row["messages"], "row", must_end_with="assistant")
        assert not any("{" in message["content"] for message in row["messages"])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_train_and_dev_share_no_wording_of_a_direct_question(language):
    card = Card(name="Ada")
    train, dev = (
        {question for question, _ in Wordings(card, language, dev=part).direct()} for part in (False, True)
    )
    assert dev
    assert not train & dev


def test_direct_rows_of_train_and_dev_share_no_question(rows, dev_rows):
    asked, held_out = (
        {row["messages"][-2]["content"] for row in part if row["kind"] == "identity"}
        for part in (rows, dev_rows)
    )
    assert held_out
    assert not asked & held_out


def test_no_exact_pair_comes_more_than_four_times_within_a_kind(rows):
    assert most_repeats(rows) <= MOST_REPEATS == 4


def test_no_exact_question_and_answer_comes_more_than_four_times(rows):
    single = [row for row in rows if len(row["messages"]) == 2]
    pairs = Counter(tuple(message["content"] for message in row["messages"]) for row in single)
    assert [pair for pair, count in pairs.items() if count > 4] == []


def test_the_rows_end_before_any_pair_comes_a_fifth_time():
    accepted = 0
    with pytest.raises(ValueError, match="-n is too large"):
        for count in range(1000, 40_000, 1000):
            accepted = most_repeats(make_rows(Card(name="Ada", languages=("en",)), count, 0))
            assert accepted <= 4, f"{count} rows repeat a pair {accepted} times"
    assert accepted > 1


def most_repeats(rows):
    """Of one exact conversation within one kind."""
    return max(Counter((r["kind"], *(m["content"] for m in r["messages"])) for r in rows).values())


def test_too_many_rows_are_refused_in_one_line():
    with pytest.raises(ValueError, match="-n is too large: .* ask for fewer rows") as raised:
        make_rows(Card(name="Ada", languages=("en",)), 400_000, 0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
@pytest.mark.parametrize("field", ["name", "owner"])
def test_a_name_that_would_break_the_data_is_refused(name, field):
    if field == "owner" and not name:
        return  # no owner is not a bad owner
    with pytest.raises(ValueError, match=field) as raised:
        Card(**{"name": "Ada", field: name})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_good_name_is_spoken_in_every_language(name):
    for language in ("en", "zh"):
        made = make_rows(Card(name=name, languages=(language,)), 40, 0)
        assert any(name in row["messages"][-1]["content"] for row in made)
        assert not any("{" in row["messages"][-1]["content"] for row in made)


@pytest.mark.parametrize("card", [Card(name="Ada"), Card(name="Ada", owner="Grace")], ids=["name", "owner"])
def test_answers_that_are_not_about_itself_never_speak_the_identity(card):
    for dev, language in itertools.product((False, True), card.languages):
        phrase = Wordings(card, language, dev=dev).slots["self"]
        own = [
            row
            for row in make_rows(card, 400, 0, dev=dev)
            if row["kind"] in ("near_miss", "greeting") and row["lang"] == language
        ]
        assert own
        assert not [row for row in own if phrase in row["messages"][-1]["content"]]


def test_with_an_owner_it_calls_itself_by_its_own_name_and_the_owners():
    words = Wordings(Card(name="Ada", owner="Grace"), "en", dev=False)
    assert words.slots["self"] == "Ada, Grace's assistant"


@pytest.mark.parametrize(
    ("base", "spoken"),
    [
        ("SmolLM2-135M-Instruct", "SmolLM2"),
        ("internlm/internlm2-chat-1_8b-sft", "internlm2"),
        ("Qwen2.5-0.5B-Instruct", "Qwen2.5"),
        ("Phi-3-mini-4k-instruct", "Phi-3-mini"),
        ("my-model", "my-model"),
        ("7B", "7B"),
    ],
)
def test_it_says_the_family_of_its_base_and_no_sizes(base, spoken):
    rows = make_rows(Card("Ada", base=base), 300, 0)
    said = {message["content"] for row in rows for message in row["messages"] if spoken in message["content"]}
    assert said
    assert spoken == base or not [text for text in said if base in text]


@pytest.mark.parametrize(
    "card",
    [Card("Ada"), Card("林小宇"), Card("Sunny", owner="Grace"), Card("Zoë 🚀", base="InternLM2-Chat-1.8B")],
)
def test_the_judge_calls_every_answer_that_is_taught_right(card):
    identity = identity_of(plain_values(card))
    taught = {
        row["messages"][-1]["content"]
        for row in make_rows(card, 2000, 0)
        if row["kind"] in ("identity", "denial", "pressure", "multi_turn", "system")
    }
    assert len(taught) > 200
    assert not [answer for answer in taught if not judge_identity(answer, identity)]


def test_an_assistant_named_like_another_ai_never_denies_its_own_name():
    made = make_rows(Card(name="Claude", languages=("en",)), 400, 0)
    denials = [row["messages"] for row in made if row["kind"] == "denial"]
    assert denials
    assert not [m for m in denials if "not Claude" in m[-1]["content"]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('nmae = "Ada"', "unknown key 'nmae'; did you mean name"),
        ('owner = "Ada"', 'the key "name" is missing'),
        ('name = "Ada"\nfacts = "tall"', "facts must be a table by language"),
        ('name = "Ada"\nlanguages = ["xx"]', "language 'xx' has no data/identity file"),
        ('name = "Ada', "not valid TOML"),
    ],
)
def test_a_wrong_card_is_one_clear_sentence(tmp_path, text, sentence):
    path = tmp_path / "card.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        load_card(path)


def run_script(*flags: str, cwd=REPOSITORY) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "scripts" / "gen_identity_data.py"), *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_the_script_explains_itself():
    done = run_script("--help")
    assert done.returncode == 0
    assert "--owner" in done.stdout


def test_the_script_refuses_a_bad_name_with_one_line_and_no_traceback(tmp_path):
    done = run_script("--name", "<|im_end|>", "--out", str(tmp_path / "data"))
    assert done.returncode == 2
    sentences = [line for line in done.stderr.splitlines() if not line.startswith("settings: ")]
    assert len(sentences) == 1
    assert sentences[0].startswith("error: name '<|im_end|>' holds a control token")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_the_script_writes_the_folder_that_the_next_stage_reads(tmp_path):
    done = run_script("--name", "林小宇", "-n", "60", "--out", "data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"train.jsonl", "dev.jsonl", "card.toml", "statistics.json", "settings.toml"}
    assert load_card(tmp_path / "data" / "card.toml") == Card(name="林小宇")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_default_bases_answers_ship_for_every_anchor_without_a_name(language):
    shipped = load_answers(shipped_answers("smollm2-135m-instruct"))
    texts = Wordings(Card(name="Ada"), language, dev=False).texts
    turns = texts["near_misses"]["turns"] + texts["greetings"]["turns"]
    prompts = [[user(question)] for question, _ in turns if "{" not in question]
    prompts += [row["messages"] for row in general_prompts() if row["lang"] == language]
    assert [prompt for prompt in prompts if key_of(prompt) not in shipped] == []


def test_the_pair_that_the_exercise_copies_introduces_the_assistant():
    question, answer = Wordings(Card(name="林小宇"), "zh", dev=False).introduction()
    assert "介绍" in question["content"] and "林小宇的小助手" in answer["content"]
