"""Many commands at the same time, on many containers and on one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.conftest import MakeBox
from tests.harness.box import Box
from tests.harness.leftovers import cgroups
from tests.harness.peers import peer_fails
from tests.harness.runtime import Result


def test_twenty_containers_at_once(make_box: MakeBox) -> None:
    boxes = [make_box() for _ in range(20)]
    for box in boxes:
        box.sh("echo up; exec sleep 1000")
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda b: b.create(timeout=90), boxes))
        listed = boxes[0].runtime("list", "--quiet", timeout=60).out.split()
        assert sorted(listed) == sorted(b.id for b in boxes)
        list(pool.map(lambda b: b.start(timeout=90), boxes))
        for box in boxes:
            box.wait_for_output("up", 30)
        list(pool.map(lambda b: b.delete("--force", timeout=90), boxes))
    assert boxes[0].runtime("list", "--quiet").out == ""
    for box in boxes:
        assert not cgroups(box.id)


@peer_fails("runc", "has a gap between its check and its claim of the id", always=False)
def test_one_id_ten_times_at_once(make_box: MakeBox) -> None:
    """Exactly one create wins; the losers leave its container alone."""
    boxes = [make_box() for _ in range(10)]
    for box in boxes:
        box.id = boxes[0].id
        box.linux["cgroupsPath"] = f"/{boxes[0].id}"
        box.write()

    def create(box: Box) -> Result:
        return box.create(check=False, timeout=90)

    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(create, boxes))
    assert sorted(r.rc != 0 for r in results) == [False] + [True] * 9
    winner = next(b for b, r in zip(boxes, results, strict=True) if r.rc == 0)
    assert winner.status == "created"
    assert winner.state()["bundle"] == str(winner.path)
    winner.start()
    winner.wait_for("stopped")
    winner.delete()


def test_start_ten_times_at_once(box: Box) -> None:
    box.sh("echo ran >> /count; exec sleep 1000")
    box.create()

    def start(_: int) -> Result:
        return box.start(check=False, timeout=90)

    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(start, range(10)))
    assert sorted(r.rc for r in results)[0] == 0
    assert sum(r.rc == 0 for r in results) == 1
    assert box.status == "running"
    assert (box.rootfs / "count").read_text() == "ran\n"


def test_delete_ten_times_at_once(box: Box) -> None:
    box.create_and_start("exec sleep 1000")

    def delete(_: int) -> Result:
        return box.delete("--force", check=False, timeout=90)

    with ThreadPoolExecutor(10) as pool:
        results = list(pool.map(delete, range(10)))
    if box.runtime.name == "ocirt":
        assert [r.rc for r in results] == [0] * 10, "\n".join(map(str, results))
    assert box.runtime("state", box.id, check=False).rc == 1
    assert not cgroups(box.id)


def test_state_and_list_while_containers_come_and_go(make_box: MakeBox) -> None:
    """They never fail for a container that is being made or removed."""
    boxes = [make_box() for _ in range(4)]
    for box in boxes:
        box.sh("exit 0")
    runtime = boxes[0].runtime

    def life(box: Box) -> None:
        for _ in range(4):
            box.create(timeout=90)
            box.start(timeout=90)
            box.wait_for("stopped", 30)
            box.delete(timeout=90)

    with ThreadPoolExecutor(5) as pool:
        lives = [pool.submit(life, box) for box in boxes]
        while not all(done.done() for done in lives):
            result = runtime("list", "--format", "json", check=False, timeout=60)
            assert result.rc == 0 or runtime.name != "ocirt", result
            for box in boxes:
                state = runtime("state", box.id, check=False, timeout=60)
                assert state.rc == 0 or "does not exist" in state.err or runtime.name != "ocirt", state
        for done in lives:
            done.result()


def test_kill_while_it_starts(make_box: MakeBox) -> None:
    boxes = [make_box() for _ in range(6)]
    for box in boxes:
        box.sh("exec sleep 1000")
        box.create()
    with ThreadPoolExecutor(12) as pool:
        starts = [pool.submit(box.start, check=False, timeout=60) for box in boxes]
        kills = [pool.submit(box.kill, "KILL", check=False, timeout=60) for box in boxes]
        for each in (*starts, *kills):
            each.result()
    for box in boxes:
        box.wait_for("stopped")
        box.delete()
