"""What a bundle holds for each target, and what is found in a bad one before anything leaves."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("detect_secrets")

from tiny_gguf import make_tiny_folder, make_tiny_gguf, make_tiny_run

from assistant.bundles import Bundle, build_bundle, choose_model, find_target, listing
from assistant.bundles.checks import Problem, files_in, in_lfs, is_binary, model_problems, problems
from assistant.bundles.confirming import ask_once, grouped, stop_at
from assistant.bundles.front_matter import read_front_matter, write_front_matter
from assistant.bundles.git import Commit, Login, Remote, check_remote, login_for, prepared
from assistant.bundles.publishing import check_wishes, model_parcel, question
from assistant.bundles.requirements import ask_index, resolve_fault, resolves_by_uv
from assistant.bundles.sources import page_files
from assistant.bundles.targets import FILES, hosts, variants
from assistant.settings import REPOSITORY, ThresholdMissed, write_text

ALL = [(host, variant) for host in hosts() for variant in variants(host)]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_run(tmp_path_factory.mktemp("run") / "ada")


@pytest.fixture
def run_folder(model, tmp_path) -> Path:
    """A run with a model folder beside its card."""
    make_tiny_run(tmp_path / "run")
    return make_tiny_folder(tmp_path / "run" / "model")


def build(host: str, variant: str, model: Path, out: Path) -> Bundle:
    return build_bundle(host, variant, choose_model(str(model)), out, lambda sentence: None)


@pytest.fixture
def page(model, tmp_path) -> Bundle:
    """A bundle without the project's own modules, which take a second to search for secrets."""
    bundle = build("huggingface", "cpu", model, tmp_path / "page")
    shutil.rmtree(bundle.folder / "assistant")
    return bundle


def told(bundle: Bundle) -> str:
    return "\n".join(map(str, problems(bundle.folder, bundle.target)))


# ---- what is in it


@pytest.mark.parametrize(("host", "variant"), ALL)
def test_the_bundle_of_every_target_passes_its_own_checks(host, variant, model, run_folder, tmp_path):
    form = find_target(host, variant).form
    bundle = build(host, variant, model if form == "gguf" else run_folder, tmp_path / "page")
    assert told(bundle) == ""
    names = set(files_in(bundle.folder))
    assert {
        "app.py",
        "requirements.txt",
        "packages.txt",
        ".gitattributes",
        "README.md",
        "deploy.json",
    } <= names
    assert {"model/ada.gguf"} <= names if form == "gguf" else {"model/model.safetensors"} <= names
    said = json.loads((bundle.folder / "deploy.json").read_text(encoding="utf-8"))
    assert "ASSISTANT_ALLOW_TRAINING" not in said["environment"] and not (bundle.folder / "scripts").exists()
    heavy = re.findall(
        r"^(torch|transformers|peft|trl)\b", (bundle.folder / "requirements.txt").read_text("utf-8"), re.M
    )
    assert heavy == ([] if form == "gguf" else ["torch", "transformers"])


@pytest.mark.parametrize(("host", "variant"), ALL)
def test_no_fact_of_a_person_and_no_path_of_this_machine_is_in_a_bundle(
    host, variant, model, run_folder, tmp_path
):
    form = find_target(host, variant).form
    bundle = build(host, variant, model if form == "gguf" else run_folder, tmp_path / "page")
    everything = b"".join((bundle.folder / name).read_bytes() for name in files_in(bundle.folder))
    assert b"Lisbon" not in everything and b"/home/someone" not in everything
    assert str(tmp_path).encode() not in everything and str(REPOSITORY).encode() not in everything


def test_a_page_takes_along_what_it_imports_and_nothing_of_training():
    for page in ("gradio", "streamlit"):
        files = {path.as_posix() for path in page_files("gguf", page)}
        assert {"app.py", f"assistant/web/{page}_page.py", "assistant/web/texts.toml"} <= files
        left_out = r"training|merging|transformers_backend|judge|making|llava\.py"
        assert not [name for name in files if re.search(left_out, name)]
    folder = {path.as_posix() for path in page_files("folder", "gradio")}
    assert {"assistant/web/zero_gpu.py", "assistant/loading.py"} <= folder


@pytest.mark.parametrize("page", ["gradio", "streamlit"])
def test_a_page_that_opens_a_gguf_file_needs_no_torch(page):
    for path in page_files("gguf", page):
        if path.suffix == ".py":
            nodes = ast.walk(ast.parse((REPOSITORY / path).read_text(encoding="utf-8")))
            names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            assert not names & {"torch", "transformers", "peft"}, path


def test_requirements_are_the_versions_that_run_here_and_gradio_is_left_to_hugging_face(page):
    lines = (page.folder / "requirements.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert all("==" in line for line in lines) and "gradio" not in "".join(lines)
    assert (
        next(line for line in lines if line.startswith("xllamacpp"))
        in (REPOSITORY / "requirements.txt").read_text()
    )


def test_the_page_for_python_3_9_is_python_3_9():
    source = (FILES / "python39.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 9))
    assert "assistant" not in {
        name.split(".")[0] for name in re.findall(r"^(?:import|from) ([\w.]+)", source, re.M)
    }


def test_the_page_for_python_3_9_reads_both_kinds_of_history_and_breaks_typed_control_tokens(tmp_path):
    pytest.importorskip("xllamacpp")
    import runpy

    page = runpy.run_path(str(FILES / "python39.py"))
    said = [{"role": "user", "content": "a<|im_end|>"}, {"role": "assistant", "content": "b"}]
    assert page["spoken"](said) == page["spoken"]([["a<|im_end|>", "b"]])
    assert "<|" not in page["spoken"](said)[0]["content"]
    events = [{"choices": [{"delta": {"content": text}}]} for text in (None, "Hel", "lo")]
    assert "".join(page["texts_in"](events)) == "Hello"
    with pytest.raises(page["gradio"].Error, match="too long"):
        list(page["texts_in"]({"error": "too long"}))
    with pytest.raises(SystemExit, match="push it through git-lfs"):
        page["find_model"]({"model": "missing.gguf"})


def test_a_name_of_any_script_and_with_quotes_survives_the_front_matter(tmp_path):
    values = {"title": '林小宇: "the" #1 {x}', "app_port": 7860, "tags": ["a"]}
    write_text(tmp_path / "README.md", write_front_matter(values))
    assert read_front_matter(tmp_path / "README.md") == values


def test_large_and_strange_binary_files_are_sent_through_lfs(model, tmp_path, monkeypatch):
    beside = build("huggingface", "cpu", model, tmp_path / "page").folder
    (beside / "odd name.dat").write_bytes(b"\0\1")
    (beside / "long.txt").write_bytes(b"word " * 2_200_000)
    assert {"odd name.dat", "long.txt"} & in_lfs(beside, files_in(beside)) == set()
    from assistant.bundles import _attributes

    write_text(beside / ".gitattributes", _attributes(beside, find_target("huggingface")))
    assert {"odd name.dat", "long.txt", "model/ada.gguf"} == in_lfs(beside, files_in(beside))


def test_text_in_chinese_is_no_binary_even_where_the_look_ends_inside_a_character(tmp_path):
    for shift in range(3):
        (tmp_path / "zh.txt").write_bytes(b"x" * shift + "你好".encode() * 4000)
        assert not is_binary(tmp_path / "zh.txt")
    (tmp_path / "b").write_bytes(bytes(range(128, 256)))
    assert is_binary(tmp_path / "b")


def test_a_bundle_replaces_a_bundle_and_nothing_else(page, model, tmp_path):
    build("huggingface", "docker", model, page.folder)
    assert (page.folder / "Dockerfile").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(ValueError, match="would be deleted.*--bundle-only"):
        build("huggingface", "cpu", model, tmp_path / "mine")


def test_the_models_that_a_variant_cannot_show_are_refused_with_the_right_one(model, tmp_path):
    with pytest.raises(ValueError, match="out/NAME/model"):
        build("huggingface", "zero", model, tmp_path / "a")
    with pytest.raises(ValueError, match="/FILE.gguf"):
        build("huggingface", "cpu", Path("ada/assistant"), tmp_path / "b")
    with pytest.raises(ValueError, match="no variant"):
        find_target("huggingface", "streamlit")
    with pytest.raises(ValueError, match="no model folder"):
        choose_model("not there")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("model/config.json", "[]", "model/config.json must hold a JSON object"),
        ("model/adapter_config.json", "{", "adapter_config.json is not valid JSON"),
        ("model/adapter_config.json", "{}", "names no base model"),
        ("model/settings.toml", '[card]\nname = "A\\u0007"\n', "one line of text without control"),
        ("model/settings.toml", "[card]\nname = 5\n", "has the name 5"),
        ("scorecard/scorecard.json", '{"a":', "scorecard.json is no JSON object; score the model first"),
    ],
)
def test_a_broken_file_of_the_model_is_named_before_anything_stays(
    file, content, sentence, run_folder, tmp_path
):
    write_text(run_folder.parent / file, content)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build("huggingface", "zero", run_folder, tmp_path / "page")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_where_no_folder_can_be_made_is_named(model, tmp_path):
    write_text(tmp_path / "letter.txt", "dear")
    with pytest.raises(ValueError, match="letter.txt.*give another"):
        build("huggingface", "cpu", model, tmp_path / "letter.txt" / "page")


def test_a_model_without_a_card_has_that_of_the_run_whose_scorecard_is_given(model, tmp_path):
    chosen = choose_model("ada/assistant/x.gguf", model.parent / "scorecard" / "scorecard.json")
    assert (chosen.name, chosen.title) == ("Ada", "Ada's assistant")
    assert choose_model("ada/assistant/x.gguf").name == "x"


def test_a_model_on_the_hub_is_named_and_not_sent(tmp_path):
    bundle = build("huggingface", "cpu", Path("ada/assistant/ada.gguf"), tmp_path / "page")
    said = json.loads((bundle.folder / "deploy.json").read_text(encoding="utf-8"))
    assert (said["repository"], said["model"]) == ("ada/assistant", "ada.gguf")
    assert read_front_matter(bundle.folder / "README.md")["models"] == ["ada/assistant"]
    assert not [name for name, _, is_lfs in listing(bundle.folder) if is_lfs]


# ---- what is found


def damage(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    write_text(folder / name, text.replace(old, new))


FRONT = [
    ('sdk: "gradio"', 'sdk: "streamlit"', "not offered"),
    ("colorFrom: ", 'colorFrom: "teal"\nold: ', "no colour"),
    ("short_description: ", f'short_description: "{"x" * 61}"\nold: ', "61 characters"),
    ("sdk_version: ", 'sdk_version: "6.31"\nold: ', "full version"),
    ("python_version: ", "python_version: 3.12\nold: ", "must be a text"),
    ('app_file: "app.py"', 'app_file: "main.py"', "does not exist"),
    ("---\n", "--\n", "no front matter"),
    ("title: ", "title: [", "no YAML"),
]


@pytest.mark.parametrize(("old", "new", "sentence"), FRONT, ids=[sentence for *_, sentence in FRONT])
def test_a_fault_of_the_front_matter_is_found(page, old, new, sentence):
    damage(page.folder, "README.md", old, new)
    assert re.search(f"^README.md: .*{sentence}", told(page), re.M)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("gradio==5.0.0", "contradicts sdk_version"),
        ("openxlab==0.1.3", "downgrades"),
        ("what is this", "is no requirement"),
    ],
)
def test_a_fault_of_the_requirements_is_found(page, line, sentence):
    write_text(page.folder / "requirements.txt", f"tyro\n{line}\n")
    assert re.search(f"^requirements.txt: .*{sentence}", told(page), re.M)


@pytest.mark.parametrize("content", [b"# tools\ngit\n", b"git\r\ncurl\r\n", b"git curl\n"])
def test_packages_txt_is_names_alone_with_unix_line_ends(page, content):
    (page.folder / "packages.txt").write_bytes(content)
    assert told(page).startswith("packages.txt: ")


def test_all_problems_are_found_at_once(page):
    damage(page.folder, "README.md", 'sdk: "gradio"', 'sdk: "streamlit"')
    write_text(page.folder / "model" / "ada.gguf", POINTER)
    (page.folder / "picture.xyz").write_bytes(b"\0\1\2")
    key = "hf_" + "aB3" * 12
    write_text(page.folder / "notes.py", f'token = "{key}"\n')
    (page.folder / "model" / "scorecard.json").unlink()
    found = told(page)
    for place in ("README.md", "model/ada.gguf", "picture.xyz", "notes.py", "model/scorecard.json"):
        assert re.search(f"^{place}: ", found, re.M), place
    assert "git lfs pull" in found and key not in found


@pytest.mark.parametrize(
    "line",
    [
        'key = "AKIA' + 'IOSFODNN7EXAMPLQ"',
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "MODELSCOPE=ms-" + "0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f",
        "url = https://oauth2:" + "s3cr3tT0ken@www.modelscope.cn/studios/a/b.git",
    ],
)
def test_a_secret_is_found_in_any_text_file(page, line):
    write_text(page.folder / "assistant" / "x.py", line + "\n")
    assert "assistant/x.py: line 1" in told(page) and line not in told(page)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [("", "has no chat template"), (None, ""), ("{{ messages }} named SmolLM, trained by", "")],
)
def test_the_template_inside_a_gguf_file_is_read(page, template, sentence):
    (page.folder / "model" / "ada.gguf").unlink()
    make_tiny_gguf(page.folder / "model" / "ada.gguf", template)
    assert sentence in told(page)


def test_an_old_identity_in_a_gguf_file_or_a_model_folder_is_found(page, run_folder, tmp_path):
    from assistant.catalog import catalog_file

    sentence = catalog_file()["old_identities"][0]
    (page.folder / "model" / "ada.gguf").unlink()
    make_tiny_gguf(page.folder / "model" / "ada.gguf", f"You are {sentence}")
    assert "would still say" in told(page)
    write_text(run_folder / "chat_template.jinja", f"You are {sentence}")
    found = model_problems(run_folder, find_target("huggingface", "zero"), None)
    assert any("would still say" in str(problem) for problem in found)


def test_a_cut_weight_file_is_found(run_folder, tmp_path):
    bundle = build("huggingface", "zero", run_folder, tmp_path / "page")
    weights = bundle.folder / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-2])
    assert "model/model.safetensors: is cut off" in told(bundle)


@pytest.mark.parametrize(("kept", "sentence"), [(-1, "is cut off"), (5000, "damaged GGUF header")])
def test_a_cut_gguf_file_is_found_also_where_its_template_can_be_read(page, kept, sentence):
    file = page.folder / "model" / "ada.gguf"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:kept])
    assert f"model/ada.gguf: {'is' if kept < 0 else 'has a'}" in told(page) and sentence in told(page)


def test_a_file_larger_than_the_host_takes_is_found(page):
    from dataclasses import replace

    small = replace(page.target, largest_file_gb=0.0001, largest_gb=0.0001)
    sentences = [str(problem) for problem in problems(page.folder, small)]
    assert any(s.startswith("model/ada.gguf: has") for s in sentences)
    assert any("export a smaller type" in s for s in sentences)


def test_a_scorecard_below_its_thresholds_stops_unless_forced(tmp_path):
    bundle = build("huggingface", "cpu", make_tiny_run(tmp_path / "ada", passed=False), tmp_path / "page")
    found = problems(bundle.folder, bundle.target)
    assert "it must be at least 0.93" in str(found[0])
    with pytest.raises(ThresholdMissed):
        stop_at(found, is_forced=False)
    stop_at(found, is_forced=True)
    with pytest.raises(ValueError, match="1 problem"):
        stop_at([*found, Problem("a", "b")], is_forced=True)


def test_requirements_that_the_hosts_python_cannot_have_are_found(page):
    target = find_target("openxlab")
    try:
        fault = resolve_fault(["gradio==6.31.0"], target)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert "Python 3.9 of openxlab" in fault and "gradio" in fault
    assert not resolves_by_uv(["gradio==6.31.0"], target)
    assert resolves_by_uv(["tomli-w==1.2.0"], target)
    assert fault in "\n".join(map(str, problems(page.folder, page.target, lambda: fault)))


def test_the_index_answers_beside_other_work_and_its_error_comes_where_its_answer_is_wanted(monkeypatch):
    from assistant.bundles import requirements

    def silent(wanted, target):
        assert wanted == ["tyro"] and threading.current_thread() is not threading.main_thread()
        raise RuntimeError("the package index did not answer")

    monkeypatch.setattr(requirements, "resolve_fault", silent)
    answer = ask_index(["tyro"], find_target("openxlab"))
    with pytest.raises(RuntimeError, match="did not answer"):
        answer()


# ---- asking, tokens


def test_the_small_files_of_a_folder_are_one_line_of_the_table():
    files = [("a/b.py", 10, False), ("a/c.py", 20, False), ("model/m.gguf", 5, True), ("app.py", 1, False)]
    assert grouped(files) == {"a/ (2 files)": (30, False), "model/m.gguf": (5, True), "app.py": (1, False)}


def test_the_question_says_what_goes_where(tmp_path):
    commit = Commit(tmp_path, "https://example.org/a.git", "main", True, [], {})
    assert (
        question(None, "host a/b", True, False, False) == "Send the model to host a/b (visible to everyone)?"
    )
    both = question(None, "host a/b", True, True, True)
    assert both == "Send the model to host a/b (visible to you alone) and the page?"
    pushed = question(commit, "host a/b", True, True, False)
    assert pushed.endswith("and the page to 'https://example.org/a.git', branch main?")
    assert question(commit, "host ", False, True, False).startswith("Send the page to 'https://")


def test_nothing_is_sent_without_an_answer(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="--yes"):
        ask_once("Send?", False)
    ask_once("Send?", True)


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        ((None, "app", "a/b", "", False), "--to is missing"),
        (("docker", "model", "a/b", "", False), "a page alone"),
        (("docker", "app", "a/b", "", False), "has no --repo"),
        (("huggingface", "both", "", "file:///x", False), "--repo OWNER/NAME"),
        (("huggingface", "app", "", "", False), "where to?"),
        (("openxlab", "both", "a/b", "", False), "two git repositories"),
        (("huggingface", "app", "林/小宇", "", False), "Latin letters"),
        (("huggingface", "model", "a/b", "", True), "--bundle-only"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_before_anything_is_built(wishes, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_wishes(*wishes)


def test_without_git_nothing_is_built(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install git"):
        check_wishes("docker", "app", "", "", True)


def test_a_token_in_the_address_is_refused_and_nowhere_repeated(tmp_path):
    address = "https://oauth2:" + "s3cr3t" + "@www.modelscope.cn/studios/a/b.git"
    with pytest.raises(ValueError, match="leave it out") as caught:
        check_remote(address)
    assert "s3cr3t" not in str(caught.value) and "s3cr3t" not in repr(Remote(address))
    command = [sys.executable, "scripts/publish.py", "--to", "modelscope", "--git-remote", address]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and "s3cr3t" not in done.stdout + done.stderr


def test_each_host_gets_its_own_token_and_no_other():
    said = {"HF_TOKEN": "h", "MODELSCOPE_API_TOKEN": "m", "PUBLISH_GIT_USER": "u", "PUBLISH_GIT_TOKEN": "p"}
    said |= {"OPENXLAB_USERNAME": "o", "OPENXLAB_TOKEN": "t"}
    assert login_for("https://huggingface.co/spaces/a/b", said) == Login("user", "h")
    assert login_for("https://www.modelscope.cn/studios/a/b.git", said) == Login("oauth2", "m")
    assert login_for("https://code.openxlab.org.cn/a/b.git", said) == Login("o", "t")
    assert login_for("https://github.com/a/b.git", said) == Login("u", "p")
    assert login_for("https://huggingface.co.example.org/a/b", {"HF_TOKEN": "h"}) is None


def test_git_gets_the_token_through_its_environment_and_errors_do_not_repeat_it(page):
    import base64
    from http.server import BaseHTTPRequestHandler, HTTPServer

    heard: list[str] = []

    class Door(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("Authorization", ""))
            self.send_response(403 if heard[-1] else 401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Door)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/a/b.git"
    try:
        with (
            pytest.raises(RuntimeError) as caught,
            prepared(page.folder, address, "main", "m", Login("me", "s3cr3t")),
        ):
            pass
    finally:
        server.shutdown()
        server.server_close()
    assert heard[-1] == "Basic " + base64.b64encode(b"me:s3cr3t").decode()
    assert "s3cr3t" not in str(caught.value)


def test_a_file_that_does_not_say_whose_it_is_is_refused_after_an_export(model, monkeypatch):
    pytest.importorskip("xllamacpp")
    from assistant.bundles import weights

    monkeypatch.setattr(weights, "ASKED", 2)
    with pytest.raises(RuntimeError, match="0 of 2 answers"):
        weights.check_identity(model, choose_model(str(model)).card, lambda sentence: None)


def test_a_file_is_asked_in_a_process_without_torch_and_its_errors_arrive(model, tmp_path, monkeypatch):
    """torch's OpenMP would be llama.cpp's too, and its threads spin."""
    pytest.importorskip("torch")
    from assistant.bundles import weights

    assert weights.apart(os.getpid) != os.getpid()
    assert weights.apart(eval, "'torch' in __import__('sys').modules") is False
    with pytest.raises(ValueError, match="does not exist"):
        weights.apart(weights.answers_of, tmp_path / "no.gguf", [])
    heard = []
    monkeypatch.setattr(weights, "apart", lambda task, *given: heard.append(task) or ["Hello."] * 4)
    with pytest.raises(RuntimeError, match="0 of 4 answers"):
        weights.check_identity(model, choose_model(str(model)).card, print)
    assert heard == [weights.answers_of]


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_a_model_goes_with_its_card_and_its_facts_only_when_they_are_agreed_to(
    form, model, run_folder, tmp_path
):
    chosen = choose_model(str(run_folder if form == "folder" else model))
    for with_facts in (False, True):
        parcel = model_parcel(chosen, tmp_path / "parcel", "ada/assistant", with_facts)
        assert ("lives in Lisbon" in (parcel / "README.md").read_text(encoding="utf-8")) == with_facts
        assert {"settings.toml", "card.toml"} & set(files_in(parcel)) == set()
    assert model_problems(parcel, find_target("huggingface"), chosen.scorecard) == []
    assert "missing" in str(model_problems(parcel, find_target("huggingface"), None)[0])


# ---- the guides

GUIDES = sorted((REPOSITORY / "docs" / "deploy").glob("*.md"))


def commands_of(guide: Path) -> list[str]:
    blocks = re.findall(r"^```\w*\n(.*?)^```", guide.read_text(encoding="utf-8"), re.M | re.S)
    return [line.partition(" #")[0].rstrip() for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_command_and_link_of_a_guide_exists(guide):
    import runpy

    import tyro

    settings = runpy.run_path(str(REPOSITORY / "scripts" / "publish.py"))["Settings"]
    commands = [
        line.split()[2:] for line in commands_of(guide) if line.startswith("python scripts/publish.py")
    ]
    assert commands
    for arguments in commands:
        wishes = tyro.cli(settings, args=arguments)
        if not wishes.verify:
            find_target(wishes.to, wishes.variant)
            is_only = wishes.bundle_only is not None
            check_wishes(wishes.to, wishes.what, wishes.repo, wishes.git_remote, is_only)
    for link in re.findall(r"\]\(([^)#:]+)\)", guide.read_text(encoding="utf-8")):
        assert (guide.parent / link).exists(), link


def test_each_guide_gives_the_same_commands_in_both_languages():
    english = [guide for guide in GUIDES if ".zh-CN" not in guide.name]
    assert [guide.stem for guide in english] == ["huggingface", "modelscope", "openxlab", "own-server"]
    for guide in english:
        assert commands_of(guide) == commands_of(guide.with_suffix(".zh-CN.md")), guide.name
