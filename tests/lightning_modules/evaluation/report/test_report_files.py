"""The two files of a report: complete, self-contained, deterministic, and deaf to what data would have them do."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import cli
from lightning_modules.evaluation.report.examples import Example, choose, make_examples
from lightning_modules.evaluation.report.run_folder import load_run
from lightning_modules.evaluation.report.write import write_report
from tests.lightning_modules.evaluation.report.made_up_runs import write_made_up_run
from tests.lightning_modules.evaluation.report.test_report_sections import answered, write_run_folder

ALL = ("vsibench", "videommmu", "mmvu", "mvbench", "tempcompass", "videomme")
ATTACK = "</p><script>window.attacked=1</script><img src=x onerror='window.attacked=1'> | **bold** [link](http://x)"
HIDDEN = "\x1b[31m\u202egnp.exe\u2066\x9b2J"
"""What turns a terminal red and a file name around."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    return write_made_up_run(root / "run", root / "data", ALL, items=16, seed=0, skill=0.6)


class Tags(HTMLParser):
    """Elements of a page with their attributes, and whether they are closed in order."""

    VOID = frozenset({"meta", "img", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_page_holds_every_benchmark_and_needs_nothing_else(run):
    files = write_report(run)
    page = files.html.read_text(encoding="utf-8")
    tags = Tags(page)
    assert [attributes["id"] for attributes in tags.named("section")] == [
        "scores",
        "paper",
        *ALL,
        "failures",
        "examples",
        "settings",
    ]
    assert len(tags.named("article")) == 6 * 12
    ids = [attributes["id"] for _, attributes in tags.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in tags.named("img"))
    assert all(attributes["href"].removeprefix("#") in ids for attributes in tags.named("a"))
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in tags.elements}
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", page)


def test_policy_names_the_only_script_and_style(run):
    page = write_report(run, examples=1).html.read_text(encoding="utf-8")
    (policy,) = [each["content"] for each in Tags(page).named("meta") if "http-equiv" in each]
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_equal_predictions_give_equal_bytes_whenever_and_wherever(run, tmp_path):
    again = write_made_up_run(tmp_path / "elsewhere", tmp_path / "data", ALL, items=16, seed=0, skill=0.6)
    manifest = json.loads((again / "manifest.json").read_text())
    manifest["environment"] = {"device": "cuda", "ranks": 2, "started": "2002-02-02T00:00:00"}
    (again / "manifest.json").write_text(json.dumps(manifest))
    first, second = write_report(run), write_report(again)
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.markdown.read_bytes() == second.markdown.read_bytes()
    page = first.html.read_text(encoding="utf-8")
    assert "2001" not in page and str(run.parent) not in page


def test_data_cannot_become_markup(tmp_path):
    text = ATTACK + HIDDEN
    predictions = answered("mmvu", [text, "B", None], problem=[text] * 3, subject=[text] * 3)
    folder = write_run_folder(tmp_path / "run", tmp_path, predictions, model=f"models/{text}")
    other = write_run_folder(tmp_path / "other", tmp_path, predictions, prompt={"question": ATTACK})
    files = write_report(folder, compare=other)
    page, tables = (path.read_text(encoding="utf-8") for path in (files.html, files.markdown))
    tags = Tags(page)
    assert len(tags.named("script")) == 1 and not tags.named("img")
    assert not any(name.startswith("on") for _, attributes in tags.elements for name in attributes)
    assert page.count("&lt;script&gt;window.attacked=1&lt;/script&gt;") > 3
    assert "<script" not in tables.replace("\\<script", "") and r"\*\*bold\*\* \[link\]" in tables
    for written in (page, tables):
        assert all(sign.isprintable() for line in written.split("\n") for sign in line)
    assert page.count(r"\x1b[31m\u202egnp.exe\u2066\x9b2J") > 3 and r"\\x1b\[31m\\u202egnp.exe" in tables
    # A sign of the data that divides cells would give its row more of them than the rule below the header has.
    for block in tables.split("\n\n"):
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines() if line.startswith("|")]
        assert len(set(cells)) <= 1, block


def test_markdown_holds_the_same_numbers(run):
    text = write_report(run).markdown.read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| Video-MME \| official, overall \| (\S+) .*$", text, re.MULTILINE)
    value = load_run(run).means("videomme", "official")["overall"].value
    assert row == f"{value:.1f}"


def test_strips_show_the_frames_that_the_model_saw(run):
    (example, *_) = make_examples(load_run(run), None, limit=1, data_root=run.parent / "data")
    assert example.prediction.path == "./VSI-Bench/arkitscenes/41069020.mp4"
    assert example.strip_note.endswith("41069020.mp4, 8 of the 8 frames that the model saw")
    with Image.open(io.BytesIO(example.strip)) as image:
        pixels = image.convert("RGB")
        # Eight square tiles in a row: the video is red in its first half and green in its second.
        first, last = (pixels.getpixel((round(image.width * x), image.height // 2)) for x in (1.1 / 16, 14.9 / 16))
    assert first[0] > 180 > 100 > first[1] and last[1] > 150 > 100 > last[0]


def test_a_stretch_of_a_video_says_so(run):
    examples = make_examples(load_run(run), None, limit=12, data_root=run.parent / "data")
    (note, *_) = [each.strip_note for each in examples if each.prediction.end is not None and each.strip]
    assert "between 0 s and 1 s of the video" in note


def test_media_that_cannot_be_read_are_named_without_folders_of_this_machine(run):
    files = write_report(run)
    page = files.html.read_text(encoding="utf-8")
    assert files.without_frames == 6  # one item of each benchmark has failed on a file that does not exist
    assert "No frames: mmvu:11 (problem_id 10): media file cut_off.mp4 does not exist" in page
    assert str(run.parent) not in page


def test_a_missing_data_root_is_an_error_unless_no_examples_are_wanted(tmp_path):
    folder = write_run_folder(tmp_path / "run", tmp_path / "moved", answered("mmvu", ["A"]))
    with pytest.raises(ValueError, match="--data_root the folder"):
        write_report(folder)
    assert "<article" not in write_report(folder, examples=0).html.read_text(encoding="utf-8")
    assert write_report(folder, data_root=tmp_path).without_frames == 1
    with pytest.raises(ValueError, match="examples is -1"):
        write_report(folder, examples=-1)


def test_examples_are_even_over_outcomes_and_categories():
    durations = ["short"] * 20 + ["long"] * 20
    answers = (["A"] * 18 + ["B"] * 2) * 2
    predictions = answered("videomme", [*answers, None], duration=[*durations, "medium"])
    examples = [Example(prediction=prediction, other=None) for prediction in predictions]
    # One failed; of right and wrong three each, from both categories: 0, 20, 1 and 18, 38, 19, in file order.
    assert [example.prediction.index for example in choose(examples, 7)] == [0, 1, 18, 19, 20, 38, 40]
    assert choose(examples, 99) == examples
    assert choose(examples, 0) == []


def test_long_texts_are_cut_and_the_page_says_so(tmp_path):
    (prediction,) = answered("mmvu", ["A" * 20_000])
    folder = write_run_folder(tmp_path / "run", tmp_path, [prediction])
    page = write_report(folder).html.read_text(encoding="utf-8")
    assert "[… 14,000 of 20,000 characters left out …]" in page
    assert "A" * 3001 not in page


def test_other_runs_answers_stand_on_the_cards(tmp_path):
    run = write_run_folder(tmp_path / "run", tmp_path, answered("mmvu", ["A", "B", "A", None]))
    other = write_run_folder(tmp_path / "other", tmp_path, answered("mmvu", ["B", "A", "A", "A"]))
    cards = Tags(write_report(run, compare=other).html.read_text(encoding="utf-8")).named("article")
    assert [card["data-change"] for card in cards] == [
        "better than the other run",
        "worse than the other run",
        "as the other run",
        "",
    ]


def test_report_command(run, tmp_path, capsys):
    assert cli.main(["report", str(run), "--output", str(tmp_path / "out"), "--examples", "1"]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "out" / "report.html") in said
    assert (tmp_path / "out" / "report.html").is_file() and (tmp_path / "out" / "report.md").is_file()
    assert cli.main(["report", str(tmp_path / "nothing")]) == 2
    assert "is not a folder" in capsys.readouterr().err
