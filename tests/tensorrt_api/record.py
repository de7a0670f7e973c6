"""Records the part of TensorRT's Python API that builders and runners call as type stubs, for one version.

    python tests/tensorrt_api/record.py tensorrt-cu13-bindings==11.4.0.106

writes ``tests/tensorrt_api/11.4/tensorrt.pyi`` by inspecting the bindings themselves. TensorRT's bindings link
libraries of gigabytes that need a GPU; empty libraries with the same names are enough to import them. mypy then checks
rcnn_backend's calls against each version (tests/python_backend/engines/test_tensorrt_api.py).
"""

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "Dims",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
)
HELPERS = ("nptype",)
# Implicit conversions, which the bindings' docstrings do not mention.
CONVERTS = {"typing.SupportsInt": "int", "Dims": "Dims | collections.abc.Sequence[int]"}
ADDED = {
    "Dims": "def __iter__(self) -> collections.abc.Iterator[int]: ...",
    "IHostMemory": "def __buffer__(self, flags: int, /) -> memoryview: ...",
}
DROPPED = re.compile(r"__(?!init__|getitem__|len__|int__|iter__)\w+")
HEADER = """# Written by tests/tensorrt_api/record.py from {name}.
# mypy: disable-error-code="no-untyped-def"
import collections.abc
import typing
import typing_extensions
from typing import Any, Callable, ClassVar, overload

Incomplete = Any
buffer = typing_extensions.Buffer
__version__: str
"""


def main() -> None:
    """Records each given requirement. ``tensorrt-rtx-cu13-bindings`` needs no empty libraries."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("requirements", nargs="+", metavar="NAME==VERSION")
    for requirement in parser.parse_args().requirements:
        with tempfile.TemporaryDirectory() as folder:
            text = record(requirement, Path(folder))
        name, _, version = requirement.partition("==")
        kind = next((f"{kind}-" for kind in ("rtx", "lean") if kind in name), "")
        path = Path(__file__).parent / (kind + ".".join(version.split(".")[:2])) / "tensorrt.pyi"
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEADER.format(name=requirement) + text)
        print(f"{path}: {len(text.splitlines())} lines")


def record(requirement: str, folder: Path) -> str:
    """The stubs of the classes and helpers above, for a wheel from the package index."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*pip, requirement], check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    (bindings,) = folder.glob("*_bindings/*.so")
    package = bindings.parent.name
    environment = dict(os.environ, PYTHONPATH=str(folder))
    if package != "tensorrt_rtx_bindings":
        environment["LD_LIBRARY_PATH"] = str(_make_libraries(bindings, folder / "libraries"))
    out = folder / "stubs"
    stubgen = [
        str(Path(sys.executable).with_name("stubgen")),
        "--quiet",
        "--inspect-mode",
        "--output",
        str(out),
    ]
    module = f"{package}.{bindings.stem}"
    subprocess.run([*stubgen, "--module", module, "--module", package], check=True, env=environment)
    text = (out / package / f"{bindings.stem}.pyi").read_text()
    helpers = (out / package / "__init__.pyi").read_text()
    return _select(_parse(text), CLASSES) + _select(_parse(helpers), HELPERS)


def _make_libraries(bindings: Path, folder: Path) -> Path:
    """Creates libraries with the names that the bindings link and with the functions that the bindings need."""
    folder.mkdir()
    dynamic = subprocess.run(["readelf", "-d", bindings], check=True, capture_output=True, text=True).stdout
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", bindings], check=True, capture_output=True, text=True
    ).stdout
    functions = re.findall(r" U (\w+(?:_INTERNAL|Registry|ParserVersion|InferPlugins))\n", symbols)
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions))
    for name in re.findall(r"\[(libnv\w+\.so\.\d+)\]", dynamic):
        subprocess.run(["gcc", "-shared", f"-Wl,-soname,{name}", "-o", folder / name, source], check=True)
    return folder


def _parse(stubs: str) -> ast.Module:
    """Parses the stubs. Signatures that are not valid Python, as in a few docstrings, are replaced by `*args, **kwargs`."""
    lines = stubs.splitlines()
    for index, line in enumerate(lines):
        match = re.match(r"( *)def (\w+)\(", line)
        if match:
            try:
                ast.parse(line.strip())
            except SyntaxError:
                lines[index] = f"{match[1]}def {match[2]}(self, *args, **kwargs): ..."
    return ast.parse("\n".join(lines))


def _select(module: ast.Module, names: tuple[str, ...]) -> str:
    """The definitions of these names; any other class that they mention becomes Any."""
    chosen = [
        node
        for node in module.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in names
    ]
    for node in chosen:
        _shorten(node)
    defined = {node.name for node in module.body if isinstance(node, ast.ClassDef)}
    text = "\n\n".join(ast.unparse(node) for node in chosen)
    text = re.sub(r":\n +\.\.\.$", ": ...", text, flags=re.MULTILINE)
    text = re.sub(r"\n\n(?= )", "\n", text)
    others = sorted(name for name in defined - set(names) if re.search(rf"\b{name}\b", text))
    return "".join(f"{name} = Any\n" for name in others) + f"\n{text}\n"


def _shorten(node: ast.ClassDef | ast.FunctionDef) -> None:
    """Removes operators and pybind11's own members, and lets arguments have the types from which they are converted."""
    for argument in (each for each in ast.walk(node) if isinstance(each, ast.arg) and each.annotation):
        assert argument.annotation is not None
        given = ast.unparse(argument.annotation)
        argument.annotation = ast.parse(CONVERTS.get(given, given), mode="eval").body
    if not isinstance(node, ast.ClassDef):
        return
    node.body = [member for member in node.body if not DROPPED.fullmatch(_name(member))] or [ast.Pass()]
    members = {_name(member) for member in node.body}
    added = ast.parse(ADDED.get(node.name, "")).body
    node.body += [member for member in added if _name(member) not in members]
    for member in node.body:
        if isinstance(member, ast.ClassDef):
            _shorten(member)


def _name(node: ast.stmt) -> str:
    target = node.target if isinstance(node, ast.AnnAssign) else node
    return str(getattr(target, "name", getattr(target, "id", "")))


if __name__ == "__main__":
    main()
