"""All checks of the doctor, for one configuration. Nothing is started, pulled or hashed."""

from collections.abc import Iterator

from pipeline.doctor.findings import Finding, ok, problem
from pipeline.doctor.installation import installation
from pipeline.doctor.machine import gpus, machine
from pipeline.doctor.models import missing_bytes, models
from pipeline.doctor.servers import cluster_address, servers
from pipeline.models.store import ModelStore
from pipeline.planning.dag import DagError, configured_stages, wanted_libraries, wanted_models
from pipeline.planning.plan import check_dag
from schemas.config import CurateConfig
from stages.base import Stage


def examine(config: CurateConfig, store: ModelStore) -> Iterator[Finding]:
    """The findings for a run with this configuration on this machine."""
    stages, resources = configured_stages(config), config.resources
    wanted = [*wanted_models(config)]
    yield from installation(wanted_libraries(config))
    yield _plan(config)
    yield from models(wanted, store)
    yield from servers(resources, stages)
    yield gpus(_shares(config, stages), cluster_address(resources))
    yield from machine(resources.workers.max, store.root, missing_bytes(wanted, store))


def _plan(config: CurateConfig) -> Finding:
    try:
        check_dag(config)
    except DagError as error:
        return problem("plan", "; ".join(error.problems), "run songmill plan for details")
    return ok("plan", f"the {len(config.stages)} stages of the profile {config.profile} form a valid DAG")


def _shares(config: CurateConfig, stages: dict[str, Stage]) -> dict[str, float]:
    """Stage -> the share of a GPU that each of its replicas takes."""
    shares = {name: config.resources.gpus.get(name, stage.resources.gpus) for name, stage in stages.items()}
    return {name: share for name, share in shares.items() if share}
