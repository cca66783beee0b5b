"""The process in which chat templates are rendered; run as a script, with JSON lines in and out.

The first line is {"source": ...}, every further one {"variables": {...}}. The answers are {"text": ...} or
{"error": ...}. A template is a program by a stranger: the sandbox keeps it from this machine's files, the
limits here bound its memory, its output and its time.
"""

from __future__ import annotations

import datetime
import json
import signal
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_MEMORY = 1 << 30
"""Bytes of address space."""
MAX_TEXT = 1 << 24
"""Characters of a rendered conversation."""


class GenerationTag(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, a mark of answers for training: renders its content."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Parse to a scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """What a template sees, as in transformers' `apply_chat_template`."""
    found = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    found.filters["tojson"] = _to_json
    found.globals["raise_exception"] = _refuse
    found.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
    return found


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where jinja2's own filter escapes it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    pieces, size = [], 0
    for piece in template.generate(variables):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_TEXT:
            raise jinja2.TemplateError(f"more than {MAX_TEXT} characters")
    return "".join(pieces)


def _serve() -> None:
    template: jinja2.Template | None = None
    for line in sys.stdin.buffer:
        if hasattr(signal, "setitimer"):  # not on Windows; its signal ends the process
            signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))
        try:
            request = json.loads(line)
            if template is None:
                template = environment().from_string(request["source"])
                answer = {"text": ""}
            else:
                answer = {"text": _render(template, request["variables"])}
        except Exception as error:  # whatever a template can raise is its fault
            answer = {"error": str(error)[:500] or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the conversation
    try:
        import resource
    except ImportError:  # not on Windows, where the caller's deadline is the only limit
        pass
    else:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        memory = MAX_MEMORY if most == resource.RLIM_INFINITY else min(MAX_MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve()
