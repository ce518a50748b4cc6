"""Execute the notebooks of this folder and keep their outputs: python docs/notebooks/make.py [NAME.ipynb ...].

``executed`` is what ``tests/test_notebooks.py`` compares the kept outputs with.
"""

import os
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).parent
SECONDS_A_CELL = 300
# outputs hold results alone: no progress bars, and nothing asked of the network
SETTINGS = {
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # bars need widgets, and there are no bars
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(HERE.parents[1]),
}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebooks() -> list[Path]:
    """The notebooks of this folder, by name."""
    return sorted(HERE.glob("*.ipynb"))


def executed(path: Path) -> NotebookNode:
    """A notebook with the outputs of a run in an empty folder, without what differs from run to run.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, SETTINGS):
        client = NotebookClient(notebook, timeout=SECONDS_A_CELL, resources={"metadata": {"path": folder}})
        client.km = client.create_kernel_manager()
        # this Python, whatever kernels are installed for others
        client.km.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        client.execute()
    return normal(notebook)


def normal(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is kept: no times, no addresses, one stream for all that a cell printed."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            for output in cell.outputs:
                if "data" in output:
                    output.data = {kind: _ADDRESS.sub("", data) for kind, data in output.data.items()}
    return notebook


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    joined: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def main(names: list[str]) -> None:
    for path in map(Path, names) if names else notebooks():
        notebook = executed(path)
        unfinished = path.with_suffix(".unfinished")
        nbformat.write(notebook, unfinished)
        os.replace(unfinished, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
