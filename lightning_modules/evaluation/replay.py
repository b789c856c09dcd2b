"""`validate --manifest FILE`: the run that a manifest describes, once more."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_modules.evaluation.manifest import read_manifest
from rewards.errors import UserError

OF_THIS_RUN = ("output", "manifest", "retry_failed")
"""Arguments of the module that a replay does not take over."""


def run_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's parsed configuration that a replay needs: everything but devices, loggers and folders."""
    model = dict(settings["model"])
    model["init_args"] = {name: value for name, value in model["init_args"].items() if name not in OF_THIS_RUN}
    return {
        "seed_everything": settings["seed_everything"],
        "model": model,
        "data": dict(settings["data"]),
        # A setting that is null is not in a parsed configuration.
        "trainer": {"precision": settings["trainer"].get("precision")},
    }


def with_manifest(arguments: Sequence[str]) -> list[str]:
    """A command line with the configuration of its `--manifest FILE` in front of its other options, which then win.

    The module compares model, data and settings with the manifest, so an option that changes them is refused there.

    Args:
        arguments: begin with the command's name; returned as they are without `--manifest`.

    Raises:
        UserError: the command is neither validate nor test, or the file is no manifest that holds a configuration.
    """
    command, *options = arguments
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--manifest")
    given, rest = parser.parse_known_args(options)
    if given.manifest is None:
        return list(arguments)
    if command not in ("validate", "test"):
        raise UserError(f"--manifest replays a benchmark run with validate or test, not with {command}.")
    config = read_manifest(given.manifest).run
    if config is None:
        raise UserError(
            f"{given.manifest} holds no configuration, because its run was not started from the command line. Give "
            "the YAML files of the run, and the manifest as --model.init_args.manifest."
        )
    folder = Path(given.manifest).resolve().parent
    output = str(folder.with_name(f"{folder.name}_replay"))
    config["model"]["init_args"] |= {"output": output, "manifest": given.manifest}
    config["trainer"]["default_root_dir"] = output
    return [command, f"--config={json.dumps(config)}", *rest]
