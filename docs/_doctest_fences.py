"""A griffe extension: fences examples in docstrings (`>>> ...`), which Markdown would read as quotations."""

import re
import textwrap

import griffe

_EXAMPLE = re.compile(r"^([ \t]*)>>> .*(?:\n[ \t]*\S.*)*", re.MULTILINE)
"""From a prompt to the next empty line."""


def fenced(docstring: str) -> str:
    """The docstring with each example in a `pycon` block."""

    def fence(found: re.Match[str]) -> str:
        code = textwrap.dedent(re.sub(r"\s*# doctest: .*", "", found[0]))
        return textwrap.indent(f"```pycon\n{code}\n```", found[1])

    return _EXAMPLE.sub(fence, docstring)


class DoctestFences(griffe.Extension):
    """Rewrites docstrings as they are collected."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
