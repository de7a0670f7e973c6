"""Writes the reference in README.md from the docstrings and the commands' help.

python client/reference.py
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ForwardRef

import rcnn_client
from rcnn_client import RcnnError, aio
from rcnn_client.tools import detect_arguments, eval_arguments, perf_arguments

README = Path(__file__).with_name("README.md")
START, END = (
    "<!-- Written by `make docs`; edit the docstrings instead. -->\n",
    "<!-- End of the reference. -->\n",
)


def reference() -> str:
    """The reference as Markdown: every public name, then the commands."""
    public = {name: getattr(rcnn_client, name) for name in rcnn_client.__all__}
    errors = {name: value for name, value in public.items() if _is_error(value)}
    first = ["Detector", "DetectOptions", "Detections", "Detection", "Result"]
    others = sorted(public.keys() - errors.keys() - {*first, "ImageInput"})
    parts = ["## Python\n"]
    for name in [*first, *others]:
        parts += _describe(name, public[name])
    parts += _describe("aio.Detector", aio.Detector)
    parts.append("## Errors\n")
    for name in sorted(errors, key=lambda name: (name != "RcnnError", name)):
        also = [base.__name__ for base in errors[name].__bases__ if base not in (RcnnError, Exception)]
        parts.append(f"**`{name}`**{f' (also a `{also[0]}`)' if also else ''}: {_markdown(errors[name])}")
    parts.append("## Commands\n")
    os.environ["COLUMNS"] = "80"  # argparse asks for it
    for command in (detect_arguments, eval_arguments, perf_arguments):
        parts.append(f"### {command.PROG}\n\n```\n{command.make_parser().format_help()}```\n")
    return "\n".join(parts)


def write(text: str) -> str:
    """`text`, the README, with a new reference."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{reference()}\n{END}{after}"


def _describe(name: str, value: Any) -> Iterator[str]:
    """Signature and docstring of a class, its public methods and properties, or of a function."""
    yield f"### {name}\n"
    if name == "DetectOptions":
        yield _code([f"{key}: {_type(value.__annotations__[key])}" for key in value.__annotations__])
    else:
        yield _code([_signature(name, value)])
    yield _markdown(value)
    for member, function in vars(value).items() if inspect.isclass(value) else ():
        if not member.startswith("_") and inspect.isfunction(function):
            yield f"#### {name}.{member}\n"
            yield _code([_signature(member, function)])
            yield _markdown(function)
        elif isinstance(function, property):
            yield f"#### {name}.{member}\n\n{_markdown(function)}"


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    parameters = []
    for each in signature.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        if each.kind is each.VAR_KEYWORD:
            parameters.append(f"**{each.name}")
        else:
            default = "" if each.default is each.empty else f" = {each.default!r}"
            parameters.append(f"{each.name}: {_type(each.annotation)}{default}")
    is_async = inspect.iscoroutinefunction(function)
    answer = signature.return_annotation
    returns = "" if answer in (signature.empty, None, "None") else f" -> {_type(answer)}"
    line = f"{'async ' * is_async}{name}({', '.join(parameters)}){returns}"
    if len(line) > 100:
        line = (
            f"{'async ' * is_async}{name}(\n"
            + "".join(f"    {each},\n" for each in parameters)
            + f"){returns}"
        )
    return line


def _type(annotation: Any) -> str:
    text = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else str(annotation)
    return text.replace("AnyImage", "ImageInput")


def _markdown(documented: Any) -> str:
    """A docstring: its sections become lists, its examples code."""
    out: list[str] = []
    section = ""
    is_example = False
    for line in (inspect.getdoc(documented) or "").splitlines():
        if line.startswith((">>> ", "... ")) != is_example:
            out.append("```" if is_example else "```pycon")
            is_example = not is_example
        if heading := re.fullmatch(r"(Args|Attributes|Raises|Returns):", line):
            section = heading[1]
            if section != "Attributes":
                out.append("Arguments:\n" if section == "Args" else f"{section}:\n")
        elif line.startswith(" " * 8) or (section == "Returns" and out[-1].startswith("- ") and line):
            out[-1] += " " + line.strip()
        elif line.startswith(" " * 4) and section:
            out.append(f"- {line.strip()}")
        else:
            out.append(line)
    if is_example:
        out.append("```")
    names = re.compile(r"^- [\w, ]+: ", re.MULTILINE)
    text = names.sub(lambda entry: re.sub(r"(\w+)", r"`\1`", entry[0]), "\n".join(out))
    return text.strip() + "\n"


def _code(lines: list[str]) -> str:
    return "```\n" + "\n".join(lines) + "\n```\n"


def _is_error(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, RcnnError)


if __name__ == "__main__":
    README.write_text(write(README.read_text()))
