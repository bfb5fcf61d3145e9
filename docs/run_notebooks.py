"""Executes the notebooks in place, and keeps outputs and nothing else of the machine that they ran on.

python docs/run_notebooks.py
"""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}
"""Environment of the kernels: the CPU, and no advice about packages that the notebooks do without."""


def main() -> None:
    """Executes each notebook and writes it back."""
    for path in sorted((Path(__file__).parent / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook, timeout=600, record_timing=False, resources={"metadata": {"path": path.parent}}
        )
        client.execute(env=os.environ | QUIET)
        for cell in notebook.cells:
            cell.metadata = {}
        notebook.metadata.language_info = {"name": "python"}
        nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    main()
