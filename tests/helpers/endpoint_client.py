"""Serves published folders as Hugging Face's inference toolkit does: run where this package cannot be imported.

`endpoint_client.py CALLS.json REPORT.json` takes `{label: [folder, request]}` and writes `{label: {"answer": …}}`, or
`{"refused": …}` for a ValueError. A request that is a text names a folder, which the handler is made of instead.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from transformers import pipeline


def handler_of(folder: str, path: str | None = None) -> Any:
    """An `EndpointHandler`, as `check_and_register_custom_pipeline_from_directory` of the toolkit makes it."""
    name = "handler.EndpointHandler"
    spec = importlib.util.spec_from_file_location(name, Path(folder, "handler.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.EndpointHandler(folder if path is None else path)


def main(calls_file: str, report_file: str) -> None:
    handlers: dict[str, Any] = {}
    report: dict[str, dict[str, Any]] = {}
    for label, (folder, request) in json.loads(Path(calls_file).read_text()).items():
        try:
            if isinstance(request, str):
                handler_of(folder, request)
            if folder not in handlers:
                handlers[folder] = handler_of(folder)
            report[label] = {"answer": handlers[folder](request)}
        except ValueError as error:
            report[label] = {"refused": str(error)}
    for folder, handler in handlers.items():
        task = pipeline(handler.task, model=folder, trust_remote_code=True)
        text = "a quiet [MASK] ." if handler.task == "fill-mask" else "a quiet film ."
        report[f"pipeline {folder}"] = {"one": task(text), "two": task([text, f"it broke , {text}"])}
    Path(report_file).write_text(json.dumps(report, default=float))


if __name__ == "__main__":
    main(*sys.argv[1:])
