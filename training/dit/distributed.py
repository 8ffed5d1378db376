"""Training in several processes: Ray Train starts them, and restarts them from the last checkpoint if one dies."""

import logging
import shutil
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from training.run.run_folder import RunFolder, RunProblem
from training.run.tensorboard import TensorBoard

if TYPE_CHECKING:
    from training.data import FeatureMaker
    from training.dit.config import TrainConfig

_RESTARTS = 3
_STATE = ".ray"  # folder for Ray Train's own state


def train_on_ray(
    config: "TrainConfig",
    folder: Path,
    workers: int,
    *,
    gpu: bool,
    readers: int = 0,
    maker: "FeatureMaker | None" = None,
) -> None:
    """Take the remaining steps on the connected Ray cluster, averaging gradients over the workers.

    Args:
        config: settings of each worker; the effective batch is `workers` times larger.
        folder: the run's folder, on storage that all workers share.
        workers: number of processes, each with one GPU or an equal share of the CPUs.
        gpu: train on GPUs with NCCL, else on CPUs with Gloo.
        readers: processes per worker that read songs ahead.
        maker: computes the songs' features; None reads those stored beside the shards.

    Raises:
        RunProblem: the cluster has too few GPUs, or workers failed more often than they are restarted.
    """
    resources = ray.cluster_resources()
    if gpu and resources.get("GPU", 0) < workers:
        raise RunProblem(f"{workers} workers need a GPU each; the cluster has {resources.get('GPU', 0):g}")
    share = min(1.0, resources.get("CPU", 1.0) / workers)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # failures are raised as an error instead
    of_workers = {
        "config": config.model_dump_json(),
        "folder": str(folder.resolve()),
        "readers": readers,
        "maker": maker,
    }
    trainer = TorchTrainer(
        _train,
        train_loop_config=of_workers,
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": share, **({"GPU": 1} if gpu else {})}
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name=_STATE, storage_path=str(folder.resolve()), failure_config=FailureConfig(max_failures=_RESTARTS)
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RunProblem(f"workers failed {_RESTARTS + 1} times: {_cause(error)}") from error
    finally:
        shutil.rmtree(folder / _STATE, ignore_errors=True)


def _train(settings: dict[str, Any]) -> None:
    """Runs in each worker."""
    # Imported here: Ray's controller imports this file and does not need them.
    from training.dit.config import TrainConfig
    from training.dit.trainer import Trainer

    folder = Path(settings["folder"])
    first = ray.train.get_context().get_world_rank() == 0
    config = TrainConfig.model_validate_json(settings["config"])
    with closing(TensorBoard(RunFolder(folder))) if first else nullcontext() as board:
        Trainer(
            config, folder, device=get_device(), workers=settings["readers"], maker=settings["maker"], report=board
        ).train()


def _cause(error: Exception) -> str:
    """The last line of each worker's error."""
    failures = getattr(error, "worker_failures", None) or {}
    return "; ".join(dict.fromkeys(str(failure).strip().splitlines()[-1] for failure in failures.values())) or str(
        error
    )
