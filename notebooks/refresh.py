"""Executes the notebooks top to bottom, and stores them with their outputs.

python notebooks/refresh.py                 # all
python notebooks/refresh.py hear-it
"""

import contextlib
import resource
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
CELL_SECONDS = 1800  # after which a cell counts as hanging


def execute(
    notebook: nbformat.NotebookNode,
    folder: str | Path,
    cell_seconds: float,
    env: Mapping[str, str] | None = None,
) -> None:
    """Executes all cells in a new kernel; their outputs replace those of the notebook.

    Args:
      notebook: to execute.
      folder: the working folder.
      cell_seconds: limit of each cell.
      env: the environment of the kernel; by default that of this process.

    Raises:
      CellExecutionError, CellTimeoutError, DeadKernelError: of nbclient, if a cell fails, takes
        longer, or ends the kernel.
    """
    client = NotebookClient(
        notebook,
        timeout=cell_seconds,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(**({} if env is None else {"env": dict(env)}))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ each time


def set_parameters(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Adds cells that set parameters, after the cells with the tag "parameters" that set them.

    Raises:
      ValueError: a parameter is not set in such a cell.
    """
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    for name in parameters:
        if not any(f"\n{name} = " in f"\n{cell.source}" for cell in tagged):
            raise ValueError(f"{name} is no parameter of the notebook")
    for cell in reversed(tagged):
        names = [name for name in parameters if f"\n{name} = " in f"\n{cell.source}"]
        if names:
            lines = [f"{name} = {parameters[name]!r}" for name in names]
            place = notebook.cells.index(cell) + 1
            notebook.cells.insert(place, nbformat.v4.new_code_cell("\n".join(lines)))


def drop_stderr(notebook: nbformat.NotebookNode) -> None:
    """Drops what cells wrote to stderr: libraries' messages about the machine."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def main(names: list[str]) -> None:
    """Executes and stores the named notebooks, by default all."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = nbformat.read(path, as_version=4)
        before = _cpu_seconds()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            execute(notebook, folder, CELL_SECONDS)
        drop_stderr(notebook)
        nbformat.write(notebook, path)
        size = path.stat().st_size / 1000
        print(f"{path.name}: {size:.0f} KB, {_cpu_seconds() - before:.0f} s of CPU time")


def _cpu_seconds() -> float:
    """CPU time of the kernels that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
