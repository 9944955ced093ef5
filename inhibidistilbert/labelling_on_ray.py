"""Labels files on a cluster of Ray: a worker has one model, and takes one file at a time.

Ray Data starts a killed worker anew and gives its file again. The file is not finished then, so that it is labelled whole.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .labelling import Labeller, Shard
from .prediction import check_folder
from .support.packages import check_packages


class Worker:
    """Made once in each process of the cluster."""

    def __init__(self, label: Labeller):
        self.label = label

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        return {"shard": [json.dumps(asdict(self.label(Path(str(file))))) for file in batch["file"]]}


def check_ray() -> None:
    """Raises `UserError` where Ray is not installed."""
    check_packages(["ray"], "--engine ray", ["'ray[data]'"])


def label_on_ray(label: Labeller, files: Sequence[Path]) -> Iterator[Shard]:
    """What became of each file, as they are finished.

    The cluster is that of `RAY_ADDRESS`, or the one that runs here; without one, this machine is a cluster of its own.
    All its machines see the files, the checkpoint and the folder of labels under the same paths.

    Raises:
        UserError: the checkpoint's folder lacks files.
    """
    import ray
    import ray.data

    check_folder(label.model)
    if not ray.is_initialized():
        ray.init(logging_level="error", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    most = max(1, min(len(files), int(ray.cluster_resources().get("CPU", 1))))
    rows = ray.data.from_items([{"file": str(file.absolute())} for file in files], override_num_blocks=len(files))
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=most)
    done = rows.map_batches(Worker, fn_constructor_args=(label,), batch_size=1, compute=pool)
    for row in done.iter_rows():
        yield Shard(**json.loads(row["shard"]))
