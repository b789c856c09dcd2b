"""What a user sees: one message per mistake, and the checks' reports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from lightning_modules.policy_module import PolicyModule
from rewards.errors import UserError

ROOT = Path(__file__).parent.parent
PROFILE = {"num_frames": 4, "min_pixels": 784, "max_pixels": 3136, "image_max_pixels": 3136}
GRPO, SFT, CPU = (
    str(ROOT / "configs" / name) for name in ("grpo/qwen2_5_vl_7b.yaml", "sft/qwen2_5_vl_7b.yaml", "trainer/cpu.yaml")
)


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    """Lightning keeps a seed in the environment, jsonargparse takes the program's name from sys.argv."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # restored after the test, whatever it holds then
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)


@pytest.fixture
def no_model(monkeypatch):
    """The mistake must be said before the model is loaded."""

    def load_policy(self):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(PolicyModule, "load_policy", load_policy)


@pytest.fixture
def run_yaml(tiny_folder, mixed_data, tmp_path):
    """What turns a shipped configuration into one step on the tiny model."""
    profile = json.dumps(PROFILE)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {{init_args: {{model_name_or_path: {tiny_folder}}}}}\n"
        f"data: {{init_args: {{data_root: {mixed_data.parent}, train_files: [{mixed_data}], num_workers: 0, "
        f"train_frames: {profile}}}}}\n"
        f"trainer: {{fast_dev_run: true, default_root_dir: {tmp_path}, enable_progress_bar: false, "
        "enable_model_summary: false}\n"
    )
    return str(path)


def status(*arguments):
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        return leaving.code


def refused(capsys, *arguments):
    """The one message that a mistake ends in."""
    assert status(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert len(re.findall("^error: ", said, re.MULTILINE)) == 1
    return said[said.index("error: ") :]


def fit(run_yaml, *options, base=GRPO):
    return ["fit", "-c", base, "-c", CPU, "-c", run_yaml, *options]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def edited_data(mixed_data, tmp_path, edit):
    """Option for a copy of the mixed data whose lines were edited."""
    rows = rows_of(mixed_data)
    edit(rows)
    path = tmp_path / "edited.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return f"--data.init_args.train_files=[{path}]"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda rows: rows[1].update(problem_type="quiz"),
            r":2 \(problem_id 1\): problem_type is 'quiz'; allowed: 'mu",
        ),
        (lambda rows: rows.append("{broken"), r":13 \(problem_id unknown\): not valid JSON"),
        (lambda rows: rows[2].update(problem_id=0), r":3 \(problem_id 0\): problem_id stands at 1 already"),
    ],
    ids=["problem type", "malformed line", "duplicate id"],
)
def test_faulty_records_are_named_by_file_and_line(run_yaml, mixed_data, tmp_path, capsys, edit, message):
    said = refused(capsys, *fit(run_yaml, edited_data(mixed_data, tmp_path, edit)))
    assert re.search(r"edited\.jsonl" + message, said)


@pytest.mark.usefixtures("no_model")
def test_missing_media_files_are_named_with_their_records_before_the_model_is_loaded(
    run_yaml, mixed_data, tmp_path, capsys
):
    def lose(rows):
        for row in rows:
            row.update({"path": f"./media/absent{row['problem_id']}.mp4"} if row["problem_id"] in (0, 9) else {})

    said = refused(capsys, *fit(run_yaml, edited_data(mixed_data, tmp_path, lose)))
    assert re.match(r"error: 2 of \d+ media files do not exist:\n  \S*edited\.jsonl:1: \S*media/absent0\.mp4\n", said)
    assert re.search(r"edited\.jsonl:10: \S*media/absent9\.mp4\nSet data\.init_args\.data_root", said)


@pytest.mark.usefixtures("no_model")
def test_names_of_media_cannot_steer_the_terminal(run_yaml, mixed_data, tmp_path, capsys):
    def lose(rows):
        rows[0]["path"] = "./media/\x1b[2J\u202e4pm\nedited.jsonl:9: forged"

    said = refused(capsys, *fit(run_yaml, edited_data(mixed_data, tmp_path, lose)))
    assert r"media/\x1b[2J\u202e4pm\nedited.jsonl:9: forged" in said.splitlines()[1]


def test_a_message_cannot_steer_the_terminal(monkeypatch, capsys):
    def failing(arguments):
        raise UserError("\x1b]0;title\x07 of\u202e\n\ta reason")

    monkeypatch.setitem(cli.COMMANDS, "report", cli.Command(failing, ""))
    assert cli.main(["report"]) == 2
    assert capsys.readouterr().err.startswith("error: \\x1b]0;title\\x07 of\\u202e\n\ta reason\n")


@pytest.mark.usefixtures("no_model")
def test_options_under_another_name_are_refused(run_yaml, mixed_data, tmp_path, capsys):
    def rename(rows):
        rows[0]["choices"] = rows[0].pop("options")

    assert rows_of(mixed_data)[0]["problem_type"] == "multiple choice"
    said = refused(capsys, *fit(run_yaml, edited_data(mixed_data, tmp_path, rename)))
    assert re.search(r"edited\.jsonl:1 \(problem_id 0\): there is a field 'choices' and no 'options'", said)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.max_stepz=3"], "max_stepz.*`python cli.py fit --help` lists all options"),
        (["--nonsense"], "--nonsense.*`python cli.py fit --help` lists"),
        (
            ["--model.init_args.group_sise=4"],
            "'group_sise' is not accepted.*--model.help=lightning_modules.grpo_module.GRPOModule` lists its arguments",
        ),
        (["--data.init_args.train_frames.num_framez=4"], "num_framez.*--data.help=datamodules.video_datamodule.V"),
        (["--model.init_args.group_size=four"], "group_size.*four"),
        (["--model.init_args.group_size=1"], "^error: model.group_size is 1; it must be >= 2"),
        (["--model.init_args.loss=ppoo"], "^error: model.loss is 'ppoo'; allowed are .*'grpo'"),
        (
            ["--model.init_args.rewards=[{class_path: rewards.FormatReward, init_args: {gate: accuracy}}]"],
            r"^error: Reward 'format' is gated by 'accuracy', which is not among the rewards \(format\)",
        ),
        (["--data.init_args.batch_size=0"], "^error: data.batch_size is 0; it must be >= 1"),
        (["--data.init_args.train_files=null"], "^error: `fit` needs data: .* data.init_args.train_files"),
        (["--data.init_args.train_files=[absent.jsonl]"], "^error: Data file absent.jsonl is not a file"),
        (["--data.init_args.data_root=absent"], "^error: data_root absent is not a folder"),
        (["--data.init_args.train_frames.patch_size=16"], "has patch_size 16, but the vision tower of .* has 14"),
        (
            ["--data.init_args.eval_frames.temporal_patch_size=1"],
            "temporal_patch_size 1, but the vision tower .* has 2",
        ),
        (["--trainer.gradient_clip_val=1.0"], "gradient clipping is not supported for manual optimization"),
        (["--ckpt_path=absent.ckpt"], "^error: ckpt_path is 'absent.ckpt', which does not exist"),
        (["-c", "absent.yaml"], "File does not exist: .*absent.yaml"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_option_is_refused_before_the_model_is_loaded(run_yaml, capsys, options, message):
    said = refused(capsys, *fit(run_yaml, *options))
    assert re.search(message, said, re.DOTALL)
    assert "Union" not in said
    assert len(said) < 1000


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {init_args: {group_sise: 4}}", "'group_sise' is not accepted"),
        ("model: {init_args: {optimizer: {learning_rte: 1}}}", "learning_rte"),
        ("data: {init_args: {train_frames: {num_framez: 4}}}", "num_framez"),
        ("trainer: {max_stepz: 4}", "'fit' does not accept option 'trainer.max_stepz'"),
        ("modell: {init_args: {group_size: 4}}", "'fit' does not accept option 'modell.init_args.group_size'"),
        ("model: {class_path: lightning_modules.grpo_module.GRPOModul}", "has no attribute 'GRPOModul'"),
        ("trainer: [", "parsing a flow node"),
    ],
)
def test_a_typo_in_a_yaml_file_is_refused(run_yaml, tmp_path, capsys, text, message):
    (tmp_path / "typo.yaml").write_text(text)
    said = refused(capsys, *fit(run_yaml, "-c", tmp_path / "typo.yaml"))
    assert message in said
    assert "Union" not in said


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"config.json": '{"model_type": "bert", "hidden_size": 8}'},
            "holds a 'bert' model; supported are 'qwen2_vl', 'q",
        ),
        ({}, "no config.json in that folder. Give the folder of a Qwen2.5-VL checkpoint"),
    ],
    ids=["bert", "empty"],
)
def test_a_folder_of_another_model_is_refused(run_yaml, tmp_path, capsys, files, message):
    folder = tmp_path / "other"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    said = refused(capsys, *fit(run_yaml, f"--model.init_args.model_name_or_path={folder}"))
    assert said.startswith("error: model_name_or_path")
    assert message in said
    assert str(folder) in said


@pytest.mark.usefixtures("no_model")
def test_a_name_that_cannot_be_downloaded_is_refused(run_yaml, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refused(capsys, *fit(run_yaml, "--model.init_args.model_name_or_path=nobody/absent"))
    assert "'nobody/absent', which is neither a folder here nor a name that could be downloaded" in said


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (["config.json"], "The tokenizer of '{folder}' has no token <|video_pad|>"),
        (["config.json", "tokenizer.json", "tokenizer_config.json"], "The checkpoint '{folder}' is incomplete: "),
    ],
    ids=["no tokenizer", "no weights"],
)
def test_an_incomplete_model_folder_is_refused(run_yaml, tiny_folder, tmp_path, capsys, kept, message):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in kept:
        shutil.copy(tiny_folder / name, folder)
    said = refused(capsys, *fit(run_yaml, f"--model.init_args.model_name_or_path={folder}"))
    assert said.startswith(f"error: {message.format(folder=folder)}")


@pytest.mark.parametrize(
    ("base", "given", "wanted"), [(SFT, "prompts", "sft"), (GRPO, "sft", "prompts")], ids=["SFTModule", "GRPOModule"]
)
def test_the_data_modules_format_must_be_the_models(run_yaml, capsys, base, given, wanted):
    said = refused(capsys, *fit(run_yaml, f"--data.init_args.train_format={given}", base=base))
    assert f"set data.init_args.train_format: {wanted}." in said


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_stage_without_files_is_named_as_the_user_knows_it(run_yaml, capsys, stage):
    said = refused(capsys, stage, "-c", GRPO, "-c", CPU, "-c", run_yaml)
    argument = {"validate": "val_files"}.get(stage, f"{stage}_files")
    assert said.startswith(f"error: `{stage}` needs data: give at least one file in data.init_args.{argument}.")


def test_traceback_on_demand(run_yaml, monkeypatch):
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match=r"model\.group_size is 1"):
        status(*fit(run_yaml, "--model.init_args.group_size=1"))


@pytest.mark.usefixtures("no_model")
def test_lightning_speaks_of_the_run_and_not_of_its_platform(run_yaml, caplog):
    with caplog.at_level("INFO"), pytest.raises(AssertionError, match="the model is loaded"):
        cli.main(fit(run_yaml))
    assert "GPU available" in caplog.text
    assert "Tip" not in caplog.text


def test_overview_lists_every_command(capsys):
    assert status("--help") == 0
    listed = re.findall(r"^  (\w+) ", capsys.readouterr().out, re.MULTILINE)
    commands = ["fit", "validate", "test", "predict", "demo", "check", "convert", "report", "export"]
    assert listed == commands == list(cli.COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "a command is missing"), (["trian"], "there is no command 'trian'")]
)
def test_no_command_and_an_unknown_one_are_answered_with_the_overview(capsys, arguments, message):
    said = refused(capsys, *arguments)
    assert message in said
    assert all(f"  {name} " in said for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fit", "--help"], ["--trainer.max_steps", "--ckpt_path"]),
        (["demo", "--help"], ["--output", "--seed"]),
        (["check", "--help"], ["data", "rewards", "Check every record"]),
        (["check", "data", "--help"], ["-c YAML, --config YAML", "--limit", "check the media of this many"]),
        (
            ["check", "rewards", "--help"],
            ["-c YAML, --config YAML", "--completions", "the rows of --completions"],
        ),
        (["check", "model", "--help"], ["-c YAML, --config YAML", "--gpu_gib", "memory of the GPU in GiB"]),
        (["export", "--help"], ["-c YAML, --config YAML", "--ckpt_path", "an earlier export in it is replaced"]),
    ],
    ids=" ".join,
)
def test_help_of_a_command(capsys, arguments, parts):
    assert status(*arguments) == 0
    said = capsys.readouterr().out
    assert [part for part in parts if part not in said] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "one of {data,rewards,model,batch}"),
        (["check", "weights"], "'weights'"),
        (["check", "model"], "needs the YAML files of a run; give each with -c (--config)"),
        (["check", "data"], "needs the YAML files of a run; give each with -c (--config)"),
        (["check", "rewards"], "either --config with the YAML files of a run, or --completions"),
        (["check", "rewards", "--completions", "rows.jsonl"], "also needs --output"),
        (["check", "rewards", "--completions", "absent.jsonl", "--output", "o"], "'absent.jsonl', which is not a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_incomplete_check_is_refused(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_check_data_stacks_yaml_files_and_finds_sound_data_sound(run_yaml, capsys):
    assert status("check", "data", "-c", GRPO, "-c", run_yaml) == 0
    said = capsys.readouterr().out
    assert "12 valid records, media of 12 checked and sound" in said
    assert "problems: none" in said
    # Videos of 56 x 56 within 3136 pixels: 4 / 2 temporal patches of 2 x 2 tokens; text records have none.
    assert re.search(r"vision +0 .* 8$", said, re.MULTILINE)


@pytest.mark.parametrize("option", ["-c", "--config"])
def test_check_data_lists_every_problem_and_exits_with_1(run_yaml, mixed_data, tmp_path, capsys, option):
    def damage(rows):
        rows[0]["path"] = "./media/absent.mp4"
        rows[1]["problem_type"] = "quiz"

    edited = edited_data(mixed_data, tmp_path, damage).split("=")[1]
    (tmp_path / "edited.yaml").write_text(f"data: {{init_args: {{train_files: {edited}}}}}")
    assert status("check", "data", option, GRPO, option, run_yaml, option, tmp_path / "edited.yaml") == 1
    said = capsys.readouterr().out
    assert "problems: 2" in said
    assert re.search(r"edited\.jsonl:1 \(problem_id 0\): media file .* does not exist", said)
    assert re.search(r"edited\.jsonl:2 \(problem_id 1\): problem_type is 'quiz'", said)


def test_check_data_looks_at_the_files_of_the_stage(run_yaml, mixed_data, tmp_path, capsys):
    assert "data.init_args.val_files" in refused(
        capsys, "check", "data", "-c", GRPO, "-c", run_yaml, "--stage=validate"
    )
    profile = {**PROFILE, "num_frames": 2}
    (tmp_path / "val.yaml").write_text(
        f"data: {{init_args: {{val_files: [{mixed_data}], eval_frames: {json.dumps(profile)}}}}}"
    )
    arguments = ["-c", GRPO, "-c", run_yaml, "-c", tmp_path / "val.yaml", "--stage=validate", "--limit=3"]
    assert status("check", "data", *arguments) == 0
    # The evaluation profile: 2 / 2 temporal patches of 2 x 2 tokens.
    said = capsys.readouterr().out
    assert "12 valid records, media of 3 checked and sound" in said
    assert re.search(r"vision +0 .* 4$", said, re.MULTILINE)


def test_check_rewards_scores_the_gold_answers_of_a_run(run_yaml, mixed_data, tmp_path, capsys):
    assert status("check", "rewards", "-c", GRPO, "-c", run_yaml) == 0
    said = capsys.readouterr().out
    assert "scores of 12 gold answers" in said
    assert re.search(r"numerical +4 +1\.000 +1\.000$", said, re.MULTILINE)

    def misgrade(rows):
        rows[0]["solution"] = "<answer>Z</answer>"

    edited = edited_data(mixed_data, tmp_path, misgrade).split("=")[1]
    (tmp_path / "edited.yaml").write_text(f"data: {{init_args: {{train_files: {edited}}}}}")
    assert status("check", "rewards", "-c", GRPO, "-c", run_yaml, "-c", tmp_path / "edited.yaml") == 1
    assert re.search(r"problem_id 0\): the gold answer is 'Z', the options are", capsys.readouterr().out)


def test_check_rewards_scores_a_file_of_completions(tmp_path, capsys):
    good, bare = "<think>x</think><answer>A</answer>", "<answer>B</answer>"
    rows = [
        {"problem_type": "multiple choice", "completion": good, "solution": "<answer>A</answer>", "note": "kept"},
        {"problem_type": "multiple choice", "completion": bare, "solution": "<answer>A</answer>"},
        {"problem_type": "OCR", "completion": bare, "solution": "<answer>B</answer>"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--completions", tmp_path / "rows.jsonl", "--output", tmp_path / "scored.jsonl"]
    assert status("check", "rewards", *arguments) == 0
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [row.pop("rewards") for row in scored] == [
        {"accuracy": 1.0, "format": 1.0, "total": 2.0},
        {"accuracy": 0.0, "format": 0.0, "total": 0.0},
        {"accuracy": 1.0, "format": 0.0, "total": 1.0},
    ]
    assert scored == rows
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["3", "completions"],
        ["problem", "type", "rows", "accuracy", "format", "total"],
        ["multiple", "choice", "2", "0.500", "0.500", "1.000"],
        ["OCR", "1", "1.000", "0.000", "1.000"],
    ]


def test_the_script_answers_without_importing_lightning():
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "cli.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0
    assert answer.stdout.startswith("usage: python cli.py COMMAND")
    assert not re.search(r"\| +(torch|lightning|transformers)$", answer.stderr, re.MULTILINE)


def test_the_script_exits_with_2_after_a_mistake():
    answer = subprocess.run([sys.executable, "cli.py", "trian"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: there is no command 'trian'")
