"""Runs the notebooks beside it and stores what their cells show: python sample/notebooks/execute.py [NOTEBOOK ...]

Run it again when the bundled model or the code in the notebooks has changed. No Jupyter is needed: the cells run in
this process. It stores what Jupyter would show: standard output, arguments of display(), a last expression's value.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """Returns the notebook (nbformat 4, read as JSON) with new outputs of its code cells."""
    outputs: list[dict[str, Any]] = []
    names = {"__name__": "__main__", "display": lambda value: outputs.append(shown(value, "display_data"))}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            outputs, count, printed = [], count + 1, io.StringIO()
            with contextlib.redirect_stdout(printed):
                value = run("".join(cell["source"]), names, f"cell {count}")
            if text := printed.getvalue():
                outputs.insert(0, {"output_type": "stream", "name": "stdout", "text": text.splitlines(True)})
            if value is not None:
                outputs.append(shown(value, "execute_result") | {"execution_count": count})
            cell = cell | {"execution_count": count, "outputs": outputs}
        cells.append(cell)
    return notebook | {"cells": cells}


def run(source: str, names: dict[str, Any], where: str) -> Any:
    """Runs a cell. Returns the value of its last statement if that is an expression."""
    body = ast.parse(source, where).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), where, "exec"), names)
    return last and eval(compile(ast.Expression(last.value), where, "eval"), names)


def shown(value: Any, kind: str) -> dict[str, Any]:
    """Returns an output: a value's text, and for a PIL image a PNG in 256 colours, which keeps the file small."""
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(True)}
    if hasattr(value, "save") and hasattr(value, "getpixel"):
        file = io.BytesIO()
        (value.quantize(256) if value.mode == "RGB" else value).save(file, "PNG", optimize=True)
        data = {
            "image/png": base64.b64encode(file.getvalue()).decode(),
            "text/plain": [f"<picture of {value.width} x {value.height} pixels>"],
        }
    return {"output_type": kind, "data": data, "metadata": {}}


def main(names: list[str]) -> None:
    """Runs the named notebooks, or all of them, and writes them back."""
    for path in map(Path, names) if names else sorted(FOLDER.glob("*.ipynb")):
        notebook = execute(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
