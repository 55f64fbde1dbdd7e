"""Room on the disks that a run writes to. A file system on a dead network holds whoever looks at it."""

import os
import tempfile
from pathlib import Path

from vllm_probes.doctor.facts import DiskFacts, Place
from vllm_probes.judges.model_location import hub_cache
from vllm_probes.keeper.folder import FolderError, state_folder
from vllm_probes.sensors.disk import free_bytes


def look() -> DiskFacts:
    session, session_error = None, None
    try:
        session = place(state_folder())
    except FolderError as error:
        session_error = str(error)
    cache = hub_cache(os.environ)
    hub = place(Path(cache).absolute()) if cache else None
    return DiskFacts(session=session, session_error=session_error, hub=hub, temp=place(Path(tempfile.gettempdir())))


def place(folder: Path) -> Place:
    """A folder that may have to be made first: then the nearest one above it counts."""
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    return Place(path=str(folder), free_bytes=free_bytes(existing), is_writable=os.access(existing, os.W_OK))
