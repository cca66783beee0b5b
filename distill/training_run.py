"""From a base to a trained student's checkpoint: text, training, export, record."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from sb_edge.arch.spike_plan import SpikePlan
from sb_edge.arch.tensors import attention_prefixes
from sb_edge.convert.transplant import student_config
from sb_edge.distill.base import Base, gla_layers_of, load_base
from sb_edge.distill.layer_recall import recall_cases
from sb_edge.distill.loop import TrainingRun, train
from sb_edge.distill.parallel import World, joined
from sb_edge.distill.settings import StageSettings, TrainingSettings
from sb_edge.distill.state import training_state as checkpoint
from sb_edge.distill.state.record import write_record
from sb_edge.distill.student import write_student, write_trained
from sb_edge.distill.text.corpus import Corpus, open_corpus, write_corpus
from sb_edge.distill.text.gather import TextRequest, documents
from sb_edge.distill.text.tokenizer import Tokenizer
from sb_edge.evaluate.recall_cases import RecallCase
from sb_edge.util.errors import OutputError, TrainingError
from sb_edge.util.files import remove_abandoned
from sb_edge.util.hashes import sha256_of

TEXT = "text"
STUDENT = "student"
TRAINED = "trained.gguf"


@dataclass(frozen=True)
class DistillRecipe:
    """How a student is to be made.

    Attributes:
        gla_layers: None: the even ones.
        kept_heads: as `TrainingSettings`; the engine does not run such a student.
        window: Window of the other layers in tokens.
        stages: in order.
        seed, adapter_rank, bf16, micro_batch: as `TrainingSettings`.
        outtype: Type of the student's checkpoint: "f32", "f16" or "bf16".
        keep_attention, answer_weight, held_out, measure_every, spikes, spike_share: as `TrainingSettings`.
        ignore_rope_scaling: as `load_base`.
        start: folder of another run of the same base; GLA layers that it trains start as they are there, and
            so do its adapters where it has the same GLA layers and the same rank.
    """

    stages: tuple[StageSettings, ...]
    gla_layers: tuple[int, ...] | None = None
    kept_heads: tuple[tuple[int, int], ...] = ()
    window: int = 4096
    seed: int = 0
    adapter_rank: int = 16
    bf16: bool = False
    micro_batch: int = 4096
    keep_attention: bool = False
    answer_weight: float = 4.0
    held_out: int = 8192
    measure_every: int = 131072
    spikes: SpikePlan | None = None
    spike_share: float = 0.5
    outtype: str = "f32"
    ignore_rope_scaling: bool = False
    start: Path | None = None


def distill(
    base: Path,
    folder: Path,
    text: TextRequest,
    recipe: DistillRecipe,
    *,
    device: str = "auto",
    save_every: float = 300.0,
    text_only: bool = False,
    command: str = "",
) -> Path:
    """Make a student, or go on where an earlier call with the same arguments was stopped.

    Args:
        base: a Llama- or Qwen2-shaped checkpoint folder or GGUF.
        folder: gets text/, checkpoint.safetensors, student/, trained.gguf, record.json and losses.png.
        text: what to train on; it is not read again once folder/text is there.
        recipe: Recipe of the student.
        device: a name for `pick_device`.
        save_every: seconds between checkpoints; 0: after every step.
        text_only: stop when the text is there.
        command: that the user gave, for the record.

    Returns:
        The student's checkpoint, or the text.

    Raises:
        CheckpointError, ConfigError, GgufError: the base is missing, damaged or of another shape.
        TrainingError: see `write_corpus` and `train`.
        SpikeError: the spike plan is for another number of layers.
        OutputError: something cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError("is a file", path=folder, expected="a folder, or no such name") from None
    with joined(device) as world, _locked(folder, world):
        if not world.rank:
            remove_abandoned(folder)
        source = load_base(base, world.device, ignore_rope_scaling=recipe.ignore_rope_scaling)
        corpus = _corpus(source, folder / TEXT, text, world)
        if text_only:
            return folder / TEXT
        settings = _settings(source, corpus, recipe)
        start = {} if recipe.start is None else _start(source, recipe.start, settings)
        student, progress = train(
            TrainingRun(source, corpus.text, settings, folder, world, save_every, start, _cases(source))
        )
        if not world.rank:
            if not (folder / STUDENT).exists():
                write_student(source, student, folder / STUDENT, recipe.outtype)
            if not recipe.kept_heads:  # which an adapter file does not know
                write_trained(source, student, folder / TRAINED)
            write_record(folder, settings, progress, command, folder / TEXT)
        world.wait()
    return folder / STUDENT


def _locked(folder: Path, world: World) -> AbstractContextManager[Any]:
    """Keep another run out of the folder; a killed process holds no lock."""
    if world.rank:
        return nullcontext()
    try:
        return FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout:
        raise TrainingError("another process is training here", path=folder, hint="wait for it") from None


def _corpus(base: Base, folder: Path, text: TextRequest, world: World) -> Corpus:
    if not world.rank and not folder.exists():
        tokenizer = Tokenizer(base.reader)
        write_corpus(documents(text, base, tokenizer), tokenizer, folder, text.to_json())
    world.wait()
    return open_corpus(folder, base.model.config.vocab_size, text.to_json())


def _settings(base: Base, corpus: Corpus, recipe: DistillRecipe) -> TrainingSettings:
    config = student_config(base.reader, recipe.gla_layers, recipe.window, recipe.kept_heads)
    layers = gla_layers_of(config)
    if not layers:
        raise TrainingError("there is no GLA layer to train", item="gla_layers", expected="at least one")
    names = {field.name for field in fields(recipe)} - {"gla_layers", "start"}
    same = names & TrainingSettings.model_fields.keys()
    return TrainingSettings(
        base=base.sha256,
        text=corpus.sha256,
        gla_layers=layers,
        start=None if recipe.start is None else _sha256_of_start(recipe.start),
        **{name: getattr(recipe, name) for name in same},
    )


def _cases(base: Base) -> list[RecallCase]:
    """Few cases of retrieval, for progress alone."""
    return recall_cases(Tokenizer(base.reader).encode, passkeys=6, dictionaries=20, facts=20)


def _sha256_of_start(folder: Path) -> str:
    path = folder / checkpoint.NAME
    if not path.is_file():
        raise TrainingError("not found", path=path, item="--start-from", expected="the folder of a run")
    return sha256_of(path)


def _start(base: Base, folder: Path, settings: TrainingSettings) -> dict[str, Tensor]:
    """Parameters that another run trains and this one can go on with, by name."""
    gla_layers = settings.gla_layers
    path = folder / checkpoint.NAME
    theirs, saved = checkpoint.read(path)
    if theirs.base != base.sha256:
        raise TrainingError(
            "was trained from another base", path=path, found=theirs.base[:12], expected=base.sha256[:12]
        )
    common = sorted(set(theirs.gla_layers) & set(gla_layers))
    if not common:
        raise TrainingError(
            "trains none of these GLA layers",
            path=path,
            found=",".join(map(str, theirs.gla_layers)),
            expected="some of " + ",".join(map(str, gla_layers)),
        )
    if theirs.gla_layers == gla_layers and theirs.adapter_rank == settings.adapter_rank:
        return saved.parameters
    prefixes = attention_prefixes(common)
    return {name: x for name, x in saved.parameters.items() if name.startswith(prefixes)}
