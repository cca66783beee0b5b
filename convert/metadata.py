"""What a GGUF says about its origin, and what it is called.

Read from the model card (README.md's YAML header), config.json and the folder's name by `gguf.Metadata`, the
code that llama.cpp's own converter uses; a JSON file overrides single keys.
"""

from __future__ import annotations

import difflib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import gguf
import yaml

from sb_edge.util.errors import CheckpointError
from sb_edge.util.input_files import read_text_input
from sb_edge.util.json_files import read_json_object

_TEXT_KEYS = frozenset(
    f"general.{key}"
    for key in [
        "name",
        "author",
        "version",
        "organization",
        "finetune",
        "basename",
        "description",
        "quantized_by",
        "size_label",
        "license",
        "license.name",
        "license.link",
        "url",
        "doi",
        "uuid",
        "repo_url",
        "source.url",
        "source.doi",
        "source.uuid",
        "source.repo_url",
        "sampling.sequence",
    ]
)
_CARD = "README.md"
_FILES = (_CARD, "config.json", "generation_config.json")
"""Files that gguf-py reads."""

_LIST_KEYS = frozenset({"general.tags", "general.languages"})
_MODEL_KEYS = frozenset({"general.base_models", "general.datasets"})
_INTEGER_KEYS = frozenset(f"general.sampling.{key}" for key in ("top_k", "penalty_last_n", "mirostat"))
_NUMBER_KEYS = frozenset(
    f"general.sampling.{key}"
    for key in [
        "top_p",
        "min_p",
        "xtc_probability",
        "xtc_threshold",
        "temp",
        "penalty_repeat",
        "mirostat_tau",
        "mirostat_eta",
    ]
)
_MAX_BRACKETS = 1000
_MAX_CARD = 1 << 16
"""Characters of a model card's header."""

OVERRIDE_KEYS = _TEXT_KEYS | _LIST_KEYS | _MODEL_KEYS | _INTEGER_KEYS | _NUMBER_KEYS
"""The keys that a `--metadata` file may set."""


def load_metadata(folder: Path, override: Path | None, n_params: int) -> gguf.Metadata:
    """Collect the `general.*` metadata of a checkpoint.

    Args:
        folder: the checkpoint.
        override: JSON file of `general.*` keys that take precedence.
        n_params: number of weights, for the size label.

    Raises:
        CheckpointError: the model card or the override cannot be read, or a key of the override is unknown or
            has the wrong type.
    """
    overrides = {} if override is None else _load_override(override)
    try:
        metadata = _load_plain(folder.resolve(), overrides, n_params)
        # gguf-py does not override the licence.
        metadata.license = overrides.get("general.license", metadata.license)
        _make_plain(metadata)
    except CheckpointError:
        raise
    except Exception as error:  # gguf-py and PyYAML do not document their errors for arbitrary model cards
        raise CheckpointError(
            "the model card cannot be read",
            path=folder / "README.md",
            found=f"{type(error).__name__}: {error}",
            hint="correct its YAML header or move the file",
        ) from error
    metadata.name = metadata.name or folder.resolve().name
    if metadata.size_label is None:
        metadata.size_label = gguf.size_label(n_params, n_params, 0, 0)
    return metadata


def _load_plain(folder: Path, overrides: dict[str, Any], n_params: int) -> gguf.Metadata:
    """gguf-py's metadata of a folder, from copies of its files without byte order marks."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "copy" / folder.name
        copy.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            if (folder / name).exists():
                text = read_text_input(folder / name, CheckpointError)
                if name == _CARD:
                    _refuse_yaml_bomb(folder / name, text)
                (copy / name).write_text(text, encoding="utf-8")
        override = Path(temporary) / "override.json"
        override.write_text(json.dumps(overrides), encoding="utf-8")
        return gguf.Metadata.load(override, copy, None, n_params)


def _refuse_yaml_bomb(card: Path, text: str) -> None:
    """Refuse a header whose aliases could expand without end, or one that is not a header's size."""
    header = text.partition("\n---")[0] if text.startswith("---") else ""
    if len(header) > _MAX_CARD:
        raise CheckpointError(
            "the YAML header is too large",
            path=card,
            found=f"{len(header)} characters",
            expected=f"at most {_MAX_CARD}",
        )
    brackets = header.count("[") + header.count("{")
    if brackets > _MAX_BRACKETS:
        raise CheckpointError(
            "the YAML header is nested too deeply",
            path=card,
            found=f"{brackets} brackets",
            expected=f"at most {_MAX_BRACKETS}",
        )
    try:
        has_alias = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(header, yaml.SafeLoader))
    except yaml.YAMLError:
        return  # reported where the header is read
    if has_alias:
        raise CheckpointError(
            "the YAML header uses aliases, which are refused", path=card, hint="write the values out"
        )


def _load_override(path: Path) -> dict[str, Any]:
    document = read_json_object(
        path, CheckpointError, absent="give a JSON file of general.* keys", hint="correct this file"
    )
    for key, value in document.items():
        _check_override(path, key, value)
    return document


def _check_override(path: Path, key: str, value: Any) -> None:
    if key not in OVERRIDE_KEYS:
        close = difflib.get_close_matches(key, OVERRIDE_KEYS, 1)
        raise CheckpointError(
            "is not a key that can be set",
            path=path,
            item=key,
            hint=f"did you mean {close[0]}?" if close else "docs/gguf.md lists them",
        )
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in _TEXT_KEYS:
        fits, expected = isinstance(value, str), "a string"
    elif key in _LIST_KEYS:
        fits, expected = _is_list_of_text(value), "a list of strings"
    elif key in _INTEGER_KEYS:
        fits, expected = is_number and isinstance(value, int), "an integer"
    elif key in _NUMBER_KEYS:
        fits, expected = is_number, "a number"
    else:
        fits, expected = _is_list_of_models(value), "a list of objects whose values are strings"
    if not fits:
        raise CheckpointError(
            "has the wrong type", path=path, item=key, found=json.dumps(value)[:80], expected=expected
        )


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_list_of_models(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and _is_list_of_text(list(item.values())) for item in value
    )


def _make_plain(metadata: gguf.Metadata) -> None:
    """Convert numbers and dates that YAML made of text fields (`version: 1.0`) to text."""
    for key in _TEXT_KEYS:
        field = key.removeprefix("general.").replace(".", "_")
        value = getattr(metadata, field)
        if isinstance(value, list):
            setattr(metadata, field, ",".join(map(str, value)))
        elif value is not None:
            setattr(metadata, field, str(value))
    for field in ("tags", "languages"):
        value = getattr(metadata, field)
        if value is not None:
            setattr(metadata, field, [str(item) for item in value])
    for field in ("base_models", "datasets"):
        value = getattr(metadata, field)
        if value is not None:
            plain = [{str(key): str(item) for key, item in entry.items()} for entry in value]
            setattr(metadata, field, plain)


def default_file_name(metadata: gguf.Metadata, encoding: str) -> str:
    """`Base-Size-FineTune-vX.Y-Encoding.gguf`, GGUF's naming convention.

    Args:
        metadata: metadata of the model.
        encoding: "F32", "BF16", ...

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "GGUF Naming Convention".
    """
    stem = gguf.naming_convention(
        metadata.name, metadata.basename, metadata.finetune, metadata.version, metadata.size_label, encoding
    )
    return re.sub(r"-*[^\w.+-]+-*", "-", stem).strip("-.") + ".gguf"
