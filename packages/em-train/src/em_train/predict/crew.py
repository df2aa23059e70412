"""Have the blocks of a store written by this process, or by several that may be killed at any time.

A job names a function that makes the block function, so that every process can make its own: a model
does not travel, the folder it is loaded from does. Blocks are dealt out one at a time. The block of a
worker that died goes to another one; what is finished has a marker in the store and is never done
again. Level by level: the pyramid is written in the same way.
"""

from __future__ import annotations

from em_data.writer.blockwise import BlockStore

from em_train.engine.stop import StopRequest
from em_train.predict.block_job import BlockJob, Crew, Pace
from em_train.predict.processes import Alone, Processes


def write_blocks(
    job: BlockJob,
    store: BlockStore,
    *,
    processes: int = 0,
    dask: str | None = None,
    what: str,
) -> bool:
    """Write all blocks that are missing and give the store its name; False after a signal.

    Args:
        job: how blocks are made.
        store: what is written, just begun or gone on with.
        processes: how many are started to write, on the GPUs in turn; with 0 this one writes.
        dask: `local:N` for N Dask workers, or the address of a Dask scheduler, instead.
        what: is shown beside the progress.
    """
    crew: Crew
    if dask:
        from em_train.predict.dask_workers import DaskCrew

        crew = DaskCrew(job, dask)
    else:
        crew = Processes(job, processes) if processes else Alone(job)
    with StopRequest() as stop:
        try:
            for level in range(store.levels):
                pending = store.pending(level)
                if not pending:
                    continue
                with Pace(store, pending, f"{what}, level {level}") as pace:
                    if not crew.write(store, pending, stop, pace):
                        return False
        finally:
            crew.close()
    store.finish()
    return True
