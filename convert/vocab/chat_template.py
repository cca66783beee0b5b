"""The chat templates of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sb_edge.convert.vocab.tokens import ChatTemplate
from sb_edge.util.errors import TokenizerError
from sb_edge.util.input_files import read_text_input


def read_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """The chat template of a checkpoint; None if it has none.

    As in transformers, chat_template.jinja and additional_chat_templates/*.jinja replace the `chat_template`
    of tokenizer_config.json.

    Args:
        folder: the checkpoint.
        tokenizer_config: content of its tokenizer_config.json.

    Raises:
        TokenizerError: a file is not UTF-8, or the key holds no template.
    """
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = [{"name": name, "template": _read(file)} for name, file in files.items() if file.is_file()]
    if found:
        return found[0]["template"] if [each["name"] for each in found] == ["default"] else found
    template = tokenizer_config.get("chat_template")
    named = isinstance(template, list) and all(
        isinstance(item, dict) and all(isinstance(item.get(key), str) for key in ("name", "template"))
        for item in template
    )
    if template is not None and not named and not isinstance(template, str):
        raise TokenizerError(
            "is not a template",
            path=folder / "tokenizer_config.json",
            item="chat_template",
            found=str(template)[:80],
            expected="Jinja text",
        )
    return template or None


def _read(file: Path) -> str:
    """Read a template as in text mode, which transformers uses: every line ends in a newline alone."""
    text = read_text_input(file, TokenizerError)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def template_text(template: ChatTemplate | None) -> str:
    """The text of all templates together."""
    return template if isinstance(template, str) else "".join(item["template"] for item in template or [])
