"""A run's state in one safetensors file: written under another name, synced, renamed. Nothing is pickled.

Tensors carry the trained parameters, the optimizer's moments, the random generators' states (uint8) and every
step's losses; everything else is JSON in the file's metadata.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from sb_edge.distill.settings import TrainingSettings, differences
from sb_edge.util.errors import OutputError, TrainingError
from sb_edge.util.files import atomic_output, require_free_space

NAME = "checkpoint.safetensors"

_KEY = "sb_edge.distill"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        stage: number of the stage that it is in; the number of stages when it is finished.
        step: optimizer steps taken in it.
        steps: that it will take; 0 before it has begun.
        curves: the losses of every stage so far, by its name: [steps, n] float32.
        sessions: what each start of the command did: stage, steps, seconds, device.
        measured: measurements of every stage so far, by its name.
        best: parameters of the best one in this stage; empty before the first.
    """

    stage: int = 0
    step: int = 0
    steps: int = 0
    curves: dict[str, Tensor] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds beside `Progress`.

    Attributes:
        parameters: the trained ones.
        optimizer: its `state_dict`; None between stages.
        scheduler: its `state_dict`; None between stages.
        random: states of the random generators, by device.
    """

    progress: Progress
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    scheduler: dict[str, Any] | None
    random: dict[str, Tensor]


def save(
    folder: Path,
    settings: TrainingSettings,
    progress: Progress,
    parameters: dict[str, Tensor],
    optimizer: Optimizer | None,
    scheduler: dict[str, Any] | None,
) -> None:
    """Replace a folder's checkpoint; the earlier one stays until the new one is complete.

    Raises:
        OutputError: no space, or the folder cannot be written.
    """
    state: dict[str, Any] = {} if optimizer is None else optimizer.state_dict()
    tensors = {f"parameters.{name}": value for name, value in parameters.items()}
    for number, entries in state.get("state", {}).items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in entries.items()}
    tensors |= {f"random.{name}": value for name, value in random_states().items()}
    tensors |= {f"curve.{name}": value for name, value in progress.curves.items()}
    tensors |= {f"best.{name}": value for name, value in progress.best.items()}
    document = {
        "settings": settings.model_dump(mode="json"),
        "stage": progress.stage,
        "step": progress.step,
        "steps": progress.steps,
        "sessions": progress.sessions,
        "measured": progress.measured,
        "groups": state.get("param_groups"),
        "scheduler": scheduler,
    }
    write_tensors(folder / NAME, tensors, {_KEY: json.dumps(document)})


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; complete or not at all.

    Raises:
        OutputError: no space, or the folder cannot be written.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    nbytes = sum(value.numel() * value.element_size() for value in tensors.values())
    require_free_space(path.parent, nbytes, f"{path.name}")
    with atomic_output(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(tensors, partial, metadata=metadata)
        except SafetensorError as error:  # what the library makes of an error of the system
            raise OutputError(
                "cannot be written", path=path, found=str(error), hint="free some space; nothing else is lost"
            ) from None
        partial.chmod(mode)  # the library makes files that only their owner can read


def load(folder: Path, settings: TrainingSettings) -> Saved | None:
    """A folder's checkpoint, on the CPU; None if there is none.

    Raises:
        TrainingError: damaged, or of a run with other settings.
    """
    path = folder / NAME
    if not path.exists():
        return None
    theirs, saved = read(path)
    changed = differences(settings, theirs)
    if changed:
        raise TrainingError(
            "belongs to a run with other settings",
            path=path,
            found="; ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else ""),
            hint="repeat the command that began it, or choose another folder",
        )
    return saved


def read(path: Path) -> tuple[TrainingSettings, Saved]:
    """A checkpoint, on the CPU, and the settings of the run that it belongs to.

    Raises:
        TrainingError: damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})[_KEY])
            theirs = TrainingSettings.model_validate_json(json.dumps(document["settings"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return theirs, _saved(document, tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise TrainingError(
            "is not a checkpoint of distillation",
            path=path,
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            hint="remove it, or choose another folder",
        ) from None


def _saved(document: dict[str, Any], tensors: dict[str, Tensor]) -> Saved:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}

    progress = Progress(
        stage=document["stage"],
        step=document["step"],
        steps=document["steps"],
        curves=part("curve."),
        sessions=document["sessions"],
        measured=document["measured"],
        best=part("best."),
    )
    optimizer = None
    if document["groups"] is not None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer.").items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        optimizer = {"state": state, "param_groups": document["groups"]}
    return Saved(progress, part("parameters."), optimizer, document["scheduler"], part("random."))


def random_states() -> dict[str, Tensor]:
    """PyTorch's random generators, uint8, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Tensor]) -> None:
    """What `random_states` returned."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
