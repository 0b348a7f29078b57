"""Checkpoint and restore of tasks by CRIU itself, which is there in `hack/vm --stock`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cli.test_criu import criu_works
from tests.engines.containerd import schema
from tests.engines.containerd.calling import Kind
from tests.engines.containerd.engine import CREATED, RUNNING, Engine, Task
from tests.engines.containerd.test_races import ours
from tests.harness.leftovers import alive
from tests.harness.waiting import eventually

pytestmark = [
    pytest.mark.skipif(not criu_works(), reason="CRIU does not work with this kernel (criu check): hack/vm --stock"),
    pytest.mark.timeout(300),
]

WITHIN = 90
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /data/count; sleep 0.2; done"


def counting(engine: Engine) -> Task:
    """A task, not created yet, without streams, that counts in a directory of ours."""
    bundle = engine.bundle(COUNT)
    directory = engine.place / "shared"
    directory.mkdir(exist_ok=True)
    bundle.bind(directory, "/data")
    return engine.task(bundle=bundle)


def started(engine: Engine) -> Task:
    task = counting(engine)
    task.create(io=False)
    task.start()
    assert eventually(lambda: count(engine) > 2, 30)
    return task


def count(engine: Engine) -> int:
    file = engine.place / "shared" / "count"
    return int(file.read_text().strip() or 0) if file.exists() else 0


def checkpoint(task: Task, path: Path, **options: object) -> None:
    given = schema.any_of("containerd.runc.v1.CheckpointOptions", work_path=str(path) + "-work", **options)
    task("Checkpoint", path=str(path), options=given, within=WITHIN)


def test_it_goes_on(engine: Engine, kind: Kind) -> None:
    """Checkpoint without `exit`: the container is as it was."""
    ours(kind)
    task = started(engine)
    checkpoint(task, engine.place / "images")
    assert (engine.place / "images" / "inventory.img").exists()
    assert engine.events.wait("checkpointed", task.id).message.checkpoint == str(engine.place / "images")
    assert task.status == RUNNING
    was = count(engine)
    assert eventually(lambda: count(engine) > was)
    task.end()


def test_there_and_back(engine: Engine, kind: Kind) -> None:
    """Checkpoint with `exit`; Create from the images, in another shim; Start goes on where it was."""
    ours(kind)
    task = started(engine)
    checkpoint(task, engine.place / "images", exit=True)
    task.wait(within=WITHIN)
    was = count(engine)
    time.sleep(1)
    assert count(engine) == was
    task.delete()
    task.leave()

    again = counting(engine)
    again.create(io=False, checkpoint=str(engine.place / "images"))
    assert again.status == CREATED
    assert again("Start", within=WITHIN).pid == again("Connect").task_pid
    assert eventually(lambda: count(engine) > was, 30)
    assert count(engine) < was + 300
    state = again.state()
    assert state.status == RUNNING
    assert alive(state.pid)
    assert again.run("/bin/true")[0] == 0
    again.end()
    assert engine.events.names(again.id)[:2] == ["create", "start"]
