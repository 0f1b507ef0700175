"""What a bundle holds for each target, and what is found in a bad one before anything leaves."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("gguf")
pytest.importorskip("detect_secrets")

from tiny_gguf import make_tiny_folder, make_tiny_gguf, make_tiny_run

from assistant.bundles import Bundle, build_bundle, choose_model, find_target, listing
from assistant.bundles.checks import Problem, fit_problems, model_problems, problems
from assistant.bundles.confirming import ask_once, grouped, show_files, stop_at
from assistant.bundles.front_matter import read_front_matter, write_front_matter
from assistant.bundles.git import Commit, Remote, check_remote, prepared
from assistant.bundles.lfs import files_in, in_lfs, is_binary, outside_lfs, write_attributes
from assistant.bundles.logins import Login, help_for, login_for
from assistant.bundles.parcels import model_parcel, workplace
from assistant.bundles.publishing import check_wishes, question
from assistant.bundles.requirements import ask_index, resolve_fault, resolves_by_uv
from assistant.bundles.sources import page_files
from assistant.bundles.targets import FILES, hosts, variants
from assistant.settings import DATA, REPOSITORY, ThresholdMissed, load_toml, save_settings, write_text

ALL = [(host, variant) for host in hosts() for variant in variants(host)]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


HOLD = """
import sys
from pathlib import Path
from assistant.bundles.parcels import workplace
with workplace(Path(sys.argv[1])) as folder:
    print(folder, flush=True)
    input()
"""


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


def test_a_config_goes_without_the_place_of_the_model_on_its_makers_machine(run_folder, tmp_path):
    told = {"model_type": "llama", "_name_or_path": "/home/someone/x", "text": [{"_name_or_path": "/home/x"}]}
    write_text(run_folder / "config.json", json.dumps(told))
    write_text(run_folder / "tokenizer_config.json", '{"name_or_path": "/home/someone/x", "a": 1}')
    chosen, target = choose_model(str(run_folder)), find_target("huggingface", "zero")
    page = build("huggingface", "zero", run_folder, tmp_path / "page").folder / "model"
    for folder in (page, model_parcel(chosen, tmp_path / "parcel", "a/b", target, False)):
        assert json.loads((folder / "config.json").read_text()) == {"model_type": "llama", "text": [{}]}
        assert json.loads((folder / "tokenizer_config.json").read_text()) == {"a": 1}
    assert "/home/someone" in (run_folder / "config.json").read_text(), "the run's own stays as it is"


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
            nodes = list(ast.walk(ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))))
            names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
            heavy = {"torch", "transformers", "peft", "accelerate", "trl", "safetensors"}
            assert not {name.split(".")[0] for name in names} & heavy, path


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


def test_the_page_for_python_3_9_clones_its_model_again_after_a_clone_that_was_cut(tmp_path, monkeypatch):
    pytest.importorskip("xllamacpp")
    import runpy

    page = runpy.run_path(str(FILES / "python39.py"))
    find_model = page["find_model"]
    monkeypatch.setitem(find_model.__globals__, "HUB", f"file://{tmp_path}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    source = tmp_path / "ada" / "model.git"
    write_text(source / "ada.gguf", "GGUF")
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for step in (["init", "-q"], ["add", "."], [*names, "commit", "-qm", "x"]):
        subprocess.run(["git", *step], cwd=source, check=True)
    cut = tmp_path / "bin" / "git"  # dies as a clone has just begun
    write_text(cut, '#!/bin/sh\nfor last; do :; done\nmkdir -p "$last/.git"; exit 1\n')
    cut.chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{cut.parent}:{path}")
    said = {"repository": "ada/model", "model": "ada.gguf"}
    with pytest.raises(subprocess.CalledProcessError):
        find_model(said)
    monkeypatch.setenv("PATH", path)
    assert find_model(said).read_text() == "GGUF"
    assert find_model(said) == tmp_path / "home" / ".assistant" / "ada--model" / "ada.gguf"


@pytest.mark.parametrize("variant", variants("docker"))
def test_compose_gives_the_page_memory_for_its_model_and_no_rights(variant, model, tmp_path, monkeypatch):
    import yaml

    def service() -> dict:
        bundle = build("docker", variant, model, tmp_path / "page")
        (found,) = yaml.safe_load((bundle.folder / "compose.yaml").read_text("utf-8"))["services"].values()
        return found

    made = service()
    assert made["ports"] == ["127.0.0.1:7860:7860"] and made["build"] == "."
    assert (made["cap_drop"], made["security_opt"]) == (["ALL"], ["no-new-privileges:true"])
    assert made["mem_limit"] == "2g"
    large = tmp_path / "large.gguf"
    shutil.copyfile(model, large)
    os.truncate(large, 3_600_000_000)  # a hole, which takes no room on the disk
    model = large
    assert service()["mem_limit"] == "5g"


def test_a_page_with_weights_of_another_licence_says_so(model, run_folder, tmp_path):
    def front(name: str, chosen: Path, **settings: str) -> dict:
        save_settings(run_folder.parent / "adapter", settings)
        folder = build("huggingface", "zero", chosen, tmp_path / name).folder
        return read_front_matter(folder / "README.md")

    assert front("a", run_folder, model="/somewhere/smollm2-135m-instruct")["license"] == "apache-2.0"
    other = front("b", run_folder, model="/somewhere/internlm2-chat-1_8b")
    assert (other["license"], other["license_name"]) == ("other", "internlm-licence")
    assert other["license_link"].startswith("https://huggingface.co/internlm/")
    said = (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    assert said.count("InternLM licence: research free") == 2
    named = build("huggingface", "zero", Path("internlm/internlm2-chat-1_8b"), tmp_path / "c").folder
    assert read_front_matter(named / "README.md")["license"] == "apache-2.0"  # no weights go along
    save_settings(run_folder, {"licence": "Apache-2.0", "title": "Base"})
    (run_folder.parent / "adapter" / "settings.toml").unlink()
    base = build("huggingface", "zero", run_folder, tmp_path / "d").folder
    assert read_front_matter(base / "README.md")["license"] == "apache-2.0"


def test_a_name_of_any_script_and_with_quotes_survives_the_front_matter(tmp_path):
    values = {"title": '林小宇: "the" #1 {x}', "app_port": 7860, "tags": ["a"]}
    write_text(tmp_path / "README.md", write_front_matter(values))
    assert read_front_matter(tmp_path / "README.md") == values


def test_large_and_strange_binary_files_are_sent_through_lfs(model, tmp_path, monkeypatch):
    beside = build("huggingface", "cpu", model, tmp_path / "page").folder
    strange = [
        "odd name.dat",
        "ada[v2].dat",
        'a"b.dat',
        "a\\b*?.dat",
        "#a\tb.dat",
        "!林.dat",
        "a v2.dat/b.dat",
    ]
    for name in strange:
        write_text(beside / name, "x\0")
    (beside / "long.txt").write_bytes(b"word " * 2_200_000)
    assert {*strange, "long.txt"} & in_lfs(beside, files_in(beside)) == set()
    assert set(outside_lfs(beside, 10)) == {*strange, "long.txt"}
    write_attributes(beside, 10)
    assert in_lfs(beside, files_in(beside)) == {*strange, "long.txt", "model/ada.gguf"}
    write_text(beside / "adav.dat", "x\0")  # each line means its file alone
    assert outside_lfs(beside, 10) == ["adav.dat"]


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


SECRETS = [
    'key = "AKIA' + 'IOSFODNN7EXAMPLQ"',
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    "MODELSCOPE=ms-" + "0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f",
    "url = https://oauth2:" + "s3cr3tT0ken@www.modelscope.cn/studios/a/b.git",
    'key = "AKIA' + 'IOSFODNN7EXAMPLQ"  # pragma: allowlist secret',
    "OPENXLAB_" + "TOKEN=fb9c41d07ae6",
    '{"openxlab_' + 'token": "fb9c41d07ae6"}',
    "export OPENXLAB_" + "SK = 'fb9c41d07ae6'",
]


@pytest.mark.parametrize("line", SECRETS)
def test_a_secret_is_found_in_any_text_file(page, line):
    for name in ("assistant/x.py", ".env", "a.json", "b.dat"):
        write_text(page.folder / name, line + "\n" + ("\0" if name == "b.dat" else ""))
    found = told(page)
    assert "assistant/x.py: line 1 " in found and ".env: line 1 " in found and "a.json: line 1 " in found
    if "AKIA" not in line and "oauth2" not in line:  # shapes of detect-secrets alone
        assert "b.dat: line 1 " in found
    assert line not in found and "fb9c41d07ae6" not in found


def test_secrets_are_found_in_large_text_by_their_lines_and_within_a_wide_one(page):
    """detect-secrets itself takes half a minute for a megabyte; a tokenizer has several, without a find."""
    lines = [*SECRETS[1:], '{"password": "fb9c41d07ae6xQ"}']
    write_text(page.folder / "long.json", "".join("word\n" * 30_000 + f"{line}\n" for line in lines))
    write_text(page.folder / "wide.json", "word " * 150_000 + lines[-1] + " word" * 150_000)
    vocabulary = "".join(f'"Ġpassword{number}": {number},\n"secret{number}",\n' for number in range(100))
    write_text(page.folder / "tokenizer.json", vocabulary + '"word",\n' * 150_000)
    begin, found = time.monotonic(), told(page)
    told_of = {int(number) for number in re.findall(r"long.json: line (\d+) ", found)}
    assert told_of == {30_001 * (number + 1) for number in range(len(lines))}
    assert "wide.json: line 1 looks like a secret (Secret Keyword)" in found
    assert "tokenizer.json" not in found and "fb9c41d07ae6" not in found
    assert time.monotonic() - begin < 60


def test_the_values_of_the_variables_that_hold_credentials_are_found_whatever_they_look_like(
    page, monkeypatch
):
    monkeypatch.setenv("PUBLISH_GIT_TOKEN", "plain-words-here")
    monkeypatch.setenv("ASSISTANT_LOGIN", "ada:correct horse")
    monkeypatch.setenv("HF_TOKEN", "page")  # too short to be told from a word
    write_text(page.folder / "notes.txt", "a page\nsee plain-words-here\n")
    write_text(page.folder / "more.txt", "the correct horse\n" + "word\n" * 300_000)
    found = told(page)
    assert (
        "notes.txt: line 2 holds the value of PUBLISH_GIT_TOKEN" in found and "notes.txt: line 1" not in found
    )
    assert "more.txt: line 1 holds the value of ASSISTANT_LOGIN" in found
    assert "plain-words" not in found and "horse" not in found


@pytest.mark.parametrize(
    "line",
    [
        'token = os.environ["HF_TOKEN"]',
        "HF_TOKEN=$TOKEN python x.py",
        "export OPENXLAB_TOKEN=...",
        "ASSISTANT_API_KEY = environment.get(name)",
        '"eos_token": "<|im_end|>"',
        "ASSISTANT_LOGIN=user:password asks for a login",
    ],
)
def test_a_line_that_only_speaks_of_secrets_is_none(page, line, monkeypatch):
    for name in ("HF_TOKEN", "ASSISTANT_LOGIN"):
        monkeypatch.delenv(name, raising=False)
    write_text(page.folder / "x.py", line + "\n")
    assert told(page) == ""


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("", "model/ada.gguf: has no chat template"),
        (None, ""),
        ("{{ messages }}", ""),
        ("{{ messages }} named SmolLM, trained by Hugging Face", "model/ada.gguf: its template would still"),
    ],
)
def test_the_template_inside_a_gguf_file_is_read(page, template, sentence):
    (page.folder / "model" / "ada.gguf").unlink()
    make_tiny_gguf(page.folder / "model" / "ada.gguf", template)
    assert told(page).startswith(sentence) if sentence else told(page) == ""


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


def test_a_long_name_of_a_file_that_goes_is_shown_whole_in_a_narrow_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    path = tmp_path / "model" / f"{'a-long-name-' * 4}of-the-third-part.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"0" * 10)
    show_files(tmp_path, "goes")
    shown = "".join(
        line.split("│")[1].strip() for line in capsys.readouterr().err.splitlines() if "│" in line
    )
    assert f"model/{path.name}" in shown


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
        (("huggingface", "app", "", "", False), "where to. give --repo"),
        (("docker", "app", "", "", False), "where to. give --git-remote"),
        (("openxlab", "both", "a/b", "", False), "two git repositories"),
        (("huggingface", "app", "林/小宇", "", False), "Latin letters"),
        (("huggingface", "model", "a/b", "", True), "--bundle-only"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_before_anything_is_built(wishes, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_wishes(*wishes)


@pytest.mark.parametrize(
    ("wishes", "said", "sentence"),
    [
        (("huggingface", "app", "", "file:///x", False), {"is_private": True}, "--private is for a repo"),
        (("huggingface", "app", "a/b", "file:///x", False), {"is_private": True}, "--private is for a repo"),
        (("huggingface", "app", "", "", True), {"is_private": True}, "--private is for a repository"),
        (("huggingface", "app", "a/b", "", False), {"with_facts": True}, "add --what model or both"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(wishes, said, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_wishes(*wishes, **said)
    check_wishes("huggingface", "both", "a/b", "file:///x", False, is_private=True, with_facts=True)


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


def test_a_login_in_the_address_of_a_live_page_is_refused_and_nowhere_repeated():
    command = [sys.executable, "scripts/publish.py", "--verify", "http://ada:" + "s3cr3t" + "@127.0.0.1:9"]
    command += ["--model", "ada/gone"]
    made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert made.returncode == 2 and "set ASSISTANT_LOGIN=user:password" in made.stderr
    assert "s3cr3t" not in made.stdout + made.stderr


def test_each_host_gets_its_own_token_and_no_other():
    said = {"HF_TOKEN": "h", "MODELSCOPE_API_TOKEN": "m", "PUBLISH_GIT_USER": "u", "PUBLISH_GIT_TOKEN": "p"}
    said |= {"OPENXLAB_USERNAME": "o", "OPENXLAB_TOKEN": "t"}
    assert login_for("https://huggingface.co/spaces/a/b", said) == Login("user", "h")
    assert login_for("https://www.modelscope.cn/studios/a/b.git", said) == Login("oauth2", "m")
    assert login_for("https://code.openxlab.org.cn/a/b.git", said) == Login("o", "t")
    assert login_for("https://github.com/a/b.git", said) == Login("u", "p")
    assert login_for("https://hf.co/spaces/a/b", said) == Login("user", "h")
    assert login_for("https://huggingface.co.example.org/a/b", {"HF_TOKEN": "h"}) is None
    assert login_for("https://notmodelscope.cn/a/b", {"MODELSCOPE_API_TOKEN": "m"}) is None


def test_the_short_address_of_hugging_face_leads_to_the_long_one_with_the_same_token(tmp_path):
    from assistant.bundles.git import HELPER, _environment

    said = _environment("https://hf.co/spaces/a/b", tmp_path, Login("user", "h"))
    names = [said[f"GIT_CONFIG_KEY_{n}"] for n in range(int(said["GIT_CONFIG_COUNT"]))]
    for host in ("hf.co", "huggingface.co"):
        first, last = (n for n, name in enumerate(names) if name == f"credential.https://{host}.helper")
        assert (said[f"GIT_CONFIG_VALUE_{first}"], said[f"GIT_CONFIG_VALUE_{last}"]) == ("", HELPER)


def test_git_finds_the_token_that_modelscopes_own_login_stored(tmp_path, monkeypatch):
    config = pytest.importorskip("modelscope_hub.config")
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path))
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    remote = "https://www.modelscope.cn/studios/a/b.git"
    assert login_for(remote, {}) is None
    config.HubConfig().save_token("ms-stored")
    assert login_for(remote, {}) == Login("oauth2", "ms-stored")
    assert login_for(remote, {"MODELSCOPE_API_TOKEN": "ms-said"}) == Login("oauth2", "ms-said")


@pytest.mark.parametrize(
    ("remote", "sentence"),
    [
        ("https://huggingface.co/spaces/a/b", "https://huggingface.co/settings/tokens"),
        ("https://www.modelscope.cn/studios/a/b.git", "https://modelscope.cn/my/access/token"),
        ("https://code.openxlab.org.cn/a/b.git", "OPENXLAB_USERNAME and OPENXLAB_TOKEN"),
        ("https://github.com/a/b.git", "PUBLISH_GIT_USER and PUBLISH_GIT_TOKEN"),
    ],
)
def test_each_host_says_where_its_token_is_made(remote, sentence):
    assert sentence in help_for(remote)
    assert help_for("file:///a/b.git") == help_for("git@github.com:a/b.git") == ""


@pytest.mark.parametrize("login", [Login("me", "s3cr3t"), None], ids=["refused", "missing"])
def test_git_gets_the_token_through_its_environment_and_a_failed_login_says_what_to_do(
    page, login, tmp_path, monkeypatch
):
    import base64

    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))  # nobody's own credential helper
    monkeypatch.setattr(sys, "stdin", None)
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
            prepared(page.folder, address, "main", "m", login, help_for(address)),
        ):
            pass
    finally:
        server.shutdown()
        server.server_close()
    if login:
        assert heard[-1] == "Basic " + base64.b64encode(b"me:s3cr3t").decode()
    assert "s3cr3t" not in str(caught.value)
    assert str(caught.value).endswith("or let git's own credential helper keep it")
    assert str(caught.value).count("PUBLISH_GIT_TOKEN") == 1


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
        target = find_target("huggingface")
        parcel = model_parcel(chosen, tmp_path / "parcel", "ada/assistant", target, with_facts)
        assert ("lives in Lisbon" in (parcel / "README.md").read_text(encoding="utf-8")) == with_facts
        assert {"settings.toml", "card.toml"} & set(files_in(parcel)) == set()
    assert model_problems(parcel, find_target("huggingface"), chosen.scorecard) == []
    assert "missing" in str(model_problems(parcel, find_target("huggingface"), None)[0])


@pytest.mark.parametrize("host", ["huggingface", "modelscope", "openxlab"])
def test_the_table_of_a_model_shows_what_is_sent_and_what_goes_through_lfs(
    host, model, tmp_path, monkeypatch
):
    monkeypatch.delenv("OPENXLAB_ENDPOINT", raising=False)
    parcel = model_parcel(
        choose_model(str(model)), tmp_path / "parcel", "ada/assistant", find_target(host), False
    )
    shown = {name: is_lfs for name, _, is_lfs in listing(parcel)}
    assert shown.pop("ada.gguf") and not any(shown.values())
    also = {"metafile.yml"} if host == "openxlab" else set()
    assert set(shown) == {"README.md", ".gitattributes"} | also


def test_a_file_outside_its_run_has_the_card_and_the_scores_of_the_scorecard_that_is_given(model, tmp_path):
    alone = tmp_path / "elsewhere" / "small.gguf"
    alone.parent.mkdir()
    shutil.copyfile(model, alone)
    chosen = choose_model(str(alone), model.parent / "scorecard" / "scorecard.json")
    parcel = model_parcel(chosen, tmp_path / "parcel", "ada/assistant", find_target("huggingface"), False)
    card = (parcel / "README.md").read_text(encoding="utf-8")
    assert "Ada's assistant" in card
    assert load_toml(DATA / "model_card.toml")["scorecard"]["missing"].strip() not in card
    assert [path.name for path in sorted(parcel.iterdir())] == [".gitattributes", "README.md", "small.gguf"]


def test_another_models_scorecard_is_refused_and_an_old_one_must_be_forced(run_folder, tmp_path):
    run = run_folder.parent
    card = run / "scorecard" / "scorecard.json"
    os.utime(run_folder / "model.safetensors", (1e9, 1e9))
    os.utime(card, (1e9 + 5, 1e9 + 5))
    assert fit_problems(choose_model(str(run_folder))) == []
    os.utime(card, (1e9 - 5, 1e9 - 5))
    (old,) = fit_problems(choose_model(str(run_folder)))
    assert "is older than the training" in old.sentence and old.can_be_forced
    # a merge and an export are made after the scoring of what was trained
    write_text(run / "adapter" / "adapter_model.safetensors", "x")
    os.utime(run / "adapter" / "adapter_model.safetensors", (1e9 - 9, 1e9 - 9))
    assert fit_problems(choose_model(str(run_folder))) == []
    assert fit_problems(choose_model(str(run / "ada.gguf"))) == []
    write_text(tmp_path / "bob" / "scorecard" / "scorecard.json", '{"name": "Bob", "passed": true}')
    other = tmp_path / "bob" / "scorecard" / "scorecard.json"
    (wrong,) = fit_problems(choose_model(str(run_folder), other))
    assert "is of 'Bob', and the model says that it is 'Ada'" in wrong.sentence and not wrong.can_be_forced


def test_two_publications_do_not_share_their_folder_and_a_killed_ones_goes(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert other.stdout and other.stdin
    theirs = Path(other.stdout.readline().strip())
    with workplace(tmp_path) as ours:
        assert ours != theirs and theirs.is_dir()
    assert not ours.exists()
    other.kill()
    other.communicate()
    assert theirs.is_dir()
    (tmp_path / "mine").mkdir()
    with workplace(tmp_path):
        assert not theirs.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    write_text(tmp_path / "file", "x")
    with pytest.raises(ValueError, match="give another with --work"), workplace(tmp_path / "file"):
        pass


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
