"""Commands of jobs, as `api.registry` collects them."""

from __future__ import annotations

from api.api_command import ApiCommand, Mode, Type, derived, listing, parameter
from schema.job import CancelJob

COMMANDS: tuple[ApiCommand, ...] = (
    ApiCommand(
        name="queryAsyncJobResult", mode=Mode.SYNC, parameters=(parameter("jobid", Type.UUID, required=True),),
        item="", description="A job's state, progress (extension) and result.", related="listAsyncJobs"),
    ApiCommand(
        name="listAsyncJobs", mode=Mode.LIST, item="asyncjobs", noun="job",
        parameters=listing(parameter("startdate", Type.DATE), access=True), description="Lists jobs, oldest first."),
    ApiCommand(
        name="cancelJob", mode=Mode.SYNC, command=CancelJob, now=True, parameters=derived(CancelJob),
        description="Asks a running job to stop and to take back what it did (extension).", related="listAsyncJobs"),
)
