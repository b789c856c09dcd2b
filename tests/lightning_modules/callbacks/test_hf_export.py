"""The export folder is always a complete model: the new one or the former one."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_modules.callbacks import HFExport
from lightning_modules.policy.export import stamp_export
from rewards.errors import UserError


class Exporter(pl.LightningModule):
    """Exports a one-file model; `interruption` is raised in the first step, `failure` in the export."""

    def __init__(self, interruption: BaseException | None = None, failure: Exception | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.interruption = interruption
        self.failure = failure
        self.exported_to: Path | None = None
        self.exported_in_time = False

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.interruption is not None:
            raise self.interruption
        return self.layer(batch).sum()

    def on_train_end(self) -> None:
        # Callbacks come before the module; after this hook the strategy takes the model apart.
        self.exported_in_time = self.exported_to is not None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def export_pretrained(self, path: Path) -> None:
        assert list(path.iterdir()) == []
        self.exported_to = path
        (path / "config.json").write_text("{}")
        if self.failure is not None:
            raise self.failure
        (path / "model.safetensors").write_text("new")


class Mute(pl.LightningModule):
    """Has no export_pretrained."""


def fit(
    module: pl.LightningModule, tmp_path: Path, callback: HFExport, ckpt_path: Path | None = None, **arguments: Any
) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2 if ckpt_path else 1,
        callbacks=[callback],
        logger=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(module, DataLoader(torch.ones(2, 1)), ckpt_path=ckpt_path)
    return trainer


def checkpoint(tmp_path: Path) -> Path:
    """Of a run without an export."""
    trainer = fit(Exporter(), tmp_path / "first start", HFExport(), max_steps=1)
    trainer.save_checkpoint(tmp_path / "first start" / "step=1.ckpt")
    return tmp_path / "first start" / "step=1.ckpt"


def former_export(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("former")
    (folder / "shard-2.safetensors").write_text("former")
    stamp_export(folder)
    return folder


def test_default_folder_is_made_and_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    module = Exporter()
    with caplog.at_level("INFO"):
        fit(module, tmp_path, HFExport())
    assert (tmp_path / "model" / "model.safetensors").read_text() == "new"
    assert module.exported_in_time
    assert module.exported_to.parent == tmp_path
    assert module.exported_to != tmp_path / "model"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert f"Model exported to {tmp_path / 'model'}" in caplog.text


def test_a_resumed_run_replaces_the_former_export_as_a_whole(tmp_path: Path):
    resumed = checkpoint(tmp_path)
    folder = former_export(tmp_path / "final")
    (tmp_path / ".final.1.partial").mkdir()
    (tmp_path / ".final.1.partial" / "rest of a crashed export").touch()
    fit(Exporter(), tmp_path, HFExport(str(folder)), ckpt_path=resumed)
    assert sorted(path.name for path in folder.iterdir()) == [".videorft_export", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final", "first start"]


def test_another_run_does_not_replace_the_former_export(tmp_path: Path):
    folder = former_export(tmp_path / "model")
    with pytest.raises(UserError, match=r"model holds the model of an earlier run.*--ckpt_path last.*default_root_dir"):
        fit(Exporter(interruption=RuntimeError("trained")), tmp_path, HFExport())
    assert (folder / "model.safetensors").read_text() == "former"


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("stamped", [False, True], ids=["somebody's model", "an export with a file of the user"])
def test_what_no_export_wrote_is_never_removed(tmp_path: Path, resumes: bool, stamped: bool):
    resumed = checkpoint(tmp_path) if resumes else None
    folder = former_export(tmp_path / "model")
    if stamped:
        (folder / "notes.md").write_text("of the user")
    else:
        (folder / ".videorft_export").unlink()
    before = sorted(path.name for path in folder.iterdir())
    foreign = "notes.md" if stamped else "config.json, model.safetensors"
    with pytest.raises(UserError, match=f"holds what no export of this project wrote: {foreign}"):
        fit(Exporter(interruption=RuntimeError("trained")), tmp_path, HFExport(), ckpt_path=resumed)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_failed_export_keeps_the_former_one(tmp_path: Path):
    resumed = checkpoint(tmp_path)
    folder = former_export(tmp_path / "model")
    with pytest.raises(OSError, match="disk full"):
        fit(Exporter(failure=OSError("disk full")), tmp_path, HFExport(), ckpt_path=resumed)
    assert (folder / "model.safetensors").read_text() == "former"


def test_interrupted_fit_exports_nothing_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    # The Trainer turns Ctrl+C into exit status 1.
    with caplog.at_level("INFO"), pytest.raises(SystemExit):
        fit(Exporter(interruption=KeyboardInterrupt()), tmp_path, HFExport())
    assert not (tmp_path / "model").exists()
    assert "no model was exported" in caplog.text


def test_fast_dev_run_keeps_the_former_export(tmp_path: Path):
    folder = former_export(tmp_path / "model")
    fit(Exporter(), tmp_path, HFExport(), fast_dev_run=True)
    assert (folder / "model.safetensors").read_text() == "former"


def test_folder_with_other_things_is_refused_before_training(tmp_path: Path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"HFExport\.output is .*results', which would be replaced.*thesis\.tex"):
        fit(Exporter(interruption=RuntimeError("trained")), tmp_path, HFExport(str(folder)))
    assert (folder / "thesis.tex").exists()


def test_module_without_export_is_refused_before_training(tmp_path: Path):
    with pytest.raises(ValueError, match="Mute has none"):
        HFExport().setup(pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path), Mute(), "fit")


def test_evaluation_needs_no_export(tmp_path: Path):
    HFExport().setup(pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path), Mute(), "validate")
    assert list(tmp_path.iterdir()) == []
