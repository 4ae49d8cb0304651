"""One fork server and one undisturbed run for a session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import House, Servers

MEMORY = Path("/dev/shm")
ROOM = 1 << 30  # bytes


@pytest.fixture(scope="session")
def house(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, request: pytest.FixtureRequest
) -> Iterator[House]:
    """Folders for runs of a tiny model, and what runs them; MODPO_FAULT_SERVERS at a time.

    They lie in memory where there is room: processes are killed, not machines, so no flush has to reach a disk.
    """
    if not hasattr(os, "pidfd_open"):
        pytest.skip("needs fork and pidfd, of Linux")
    roomy = os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=MEMORY)) if roomy else tmp_path_factory.mktemp("faults")
    servers = Servers(folder, int(os.environ.get("MODPO_FAULT_SERVERS", "1")))
    yield House(folder, tiny_model, servers)
    servers.stop()
    if not request.session.testsfailed:
        shutil.rmtree(folder)
