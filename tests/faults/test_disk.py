"""A disk that is full or read-only while a run saves: status 2 and one line, the last good state, and the same end.

The disk is a small file system of its own, mounted for the test; where that is not permitted, a full disk is a limit on
the size of the files that the process may write.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import contents
from runs import assert_same, assert_whole, finish, run_here, start, training


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 2 MB; None where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", folder):
        yield folder
        subprocess.run(["umount", "-l", folder], check=True)
    else:
        yield None


def mount(*arguments: object) -> bool:
    try:
        return subprocess.run(["mount", *map(str, arguments)], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def fill(folder: Path) -> Path:
    """A file that takes all the room that is left; it grows where there is room again."""
    path = folder / "ballast"
    with open(path, "ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return path


@pytest.mark.full
def test_a_disk_that_fills_up_while_training(
    disk: Path | None, unbroken_run: Path, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    folder = (disk or tmp_path) / "run"
    arguments = training(tiny_checkpoint, small_data, folder, "--checkpoint-minutes", 0.002, "--resume")
    process = start(tmp_path / "log", arguments)
    assert process.wait_until((folder / "metrics.jsonl").exists), process.said()
    if disk is None:
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    else:
        ballast = fill(disk)
        process.wait_until(lambda: not fill(disk))  # until its end: it may just have removed an old checkpoint
    assert process.end() == 2, process.said()
    last = process.lines()[-1]
    assert last.startswith(f"minipeft: {folder}/") and "free space or choose another folder" in last
    assert ("No space left on device" if disk else "File too large") in last
    assert_whole(folder)
    assert not list(folder.rglob(".*"))
    before = contents(folder)
    if disk is not None:  # a start on the full disk ends the same way
        status, said = run_here(arguments)
        assert status == 2 and "No space left on device" in said[-1], said
        assert contents(folder) == before
        ballast.unlink()
    said = finish(arguments)
    assert any(line.startswith(f"resuming {folder} from step ") for line in said), said
    assert_same(folder, unbroken_run)


@pytest.mark.full
def test_a_disk_that_becomes_read_only_while_training(
    disk: Path | None, unbroken_run: Path, tiny_checkpoint: Path, small_data: Path, tmp_path: Path
) -> None:
    if disk is None:
        pytest.skip("a read-only folder is a read-only mount here, which this user may not make")
    folder = disk / "run"
    arguments = training(tiny_checkpoint, small_data, folder, "--resume", "--report-to", "none")
    process = start(tmp_path / "log", arguments)
    assert process.wait_until((folder / "metrics.jsonl").exists), process.said()
    # Over the folder itself: the file of the lease is open for writing, so that the disk's own mount stays writable.
    assert mount("--bind", folder, folder) and mount("-o", "remount,ro,bind", folder)
    assert process.end() == 2, process.said()
    assert "Read-only file system" in process.lines()[-1] and "Traceback" not in process.said()
    before = contents(folder)
    assert_whole(folder)
    status, said = run_here(arguments)
    assert status == 2 and len(said) == 1, said
    assert "is not a folder that can be written to. Choose another --output" in said[0]
    assert contents(folder) == before
    subprocess.run(["umount", folder], check=True)
    finish(arguments)
    assert_same(folder, unbroken_run)


def test_a_disk_without_any_room_takes_no_run(disk: Path | None, tiny_checkpoint: Path, small_data: Path) -> None:
    if disk is None:
        pytest.skip("a disk without any room is a small mount here, which this user may not make")
    (disk / "run").mkdir()
    ballast = fill(disk)
    status, said = run_here(training(tiny_checkpoint, small_data, disk / "run", "--quiet", epochs=1))
    assert status == 2 and ": cannot be written (No space left on device)" in said[-1], said
    assert contents(disk / "run") == {}
    ballast.unlink()
    finish(training(tiny_checkpoint, small_data, disk / "run", epochs=1))


def test_an_adapter_saved_to_a_full_disk_leaves_the_one_that_is_there(
    disk: Path | None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Both files or neither: the other method's config must not stand beside the old weights."""
    from minipeft import BitFit, LoRA, MinipeftError, apply, load_pretrained, save_adapter

    folder = (disk or tmp_path) / "adapter"
    save_adapter(apply(load_pretrained(tiny_checkpoint), LoRA(rank=2, alpha=4)), folder)
    before = contents(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if disk is None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    else:
        fill(disk)
    try:
        with pytest.raises(MinipeftError, match="cannot be written"):
            save_adapter(apply(load_pretrained(tiny_checkpoint), BitFit()), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder) == before


def test_weights_that_were_saved_with_another_config_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What a kill between the two renames leaves: the same shapes, another scaling."""
    from minipeft import LoRA, MinipeftError, apply, load_adapter, load_pretrained, save_adapter

    for alpha in (4, 8):
        save_adapter(apply(load_pretrained(tiny_checkpoint), LoRA(rank=2, alpha=alpha)), tmp_path / str(alpha))
    shutil.copyfile(tmp_path / "8" / "adapter_config.json", tmp_path / "4" / "adapter_config.json")
    with pytest.raises(MinipeftError, match=r"alpha is 8\.0.*4\.0.*save the adapter again"):
        load_adapter(load_pretrained(tiny_checkpoint), tmp_path / "4")
    load_adapter(load_pretrained(tiny_checkpoint), tmp_path / "8")
