"""Many epochs take no more memory and no more open files than a few."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import start, training

EPOCHS, SETTLED = 24, 4  # epochs; how many until every buffer has its size
ROOM = 8 << 20  # bytes that the process may grow by afterwards, over 20 epochs: allocators keep what was freed


@pytest.mark.full
def test_memory_and_open_files_are_flat(tiny_checkpoint: Path, small_data: Path, tmp_path: Path) -> None:
    """Read from /proc while the run goes on, each time that an epoch has ended."""
    folder = tmp_path / "run"
    more = ["--checkpoint-minutes", 0.002, "--train-limit", 48]
    run = start(tmp_path / "log", training(tiny_checkpoint, small_data, folder, *more, epochs=EPOCHS))
    process = Path("/proc") / str(run.process.pid)
    seen: dict[int, tuple[int, int]] = {}
    while run.wait_until(lambda: (folder / "metrics.jsonl").exists() and epochs(folder) > max(seen, default=0)):
        try:
            # The run's own files and the system's figures, while they are written and read, come and go.
            files = sum(
                not str(path.readlink()).startswith((str(folder), "/proc")) for path in (process / "fd").iterdir()
            )
            resident = int((process / "statm").read_text().split()[1]) * 4096
        except OSError:  # a file was closed under our eyes, or the run has ended
            continue
        seen[epochs(folder)] = files, resident
    assert run.end() == 0, run.said()
    settled = {epoch: figures for epoch, figures in seen.items() if SETTLED <= epoch < EPOCHS}  # the end draws curves
    assert len(settled) > 8, f"the run was too fast to be watched: {sorted(seen)}"
    files = [files for files, _ in settled.values()]
    memory = [resident for _, resident in settled.values()]
    assert max(files) == min(files), files
    assert max(memory) - memory[0] < ROOM, memory


def epochs(folder: Path) -> int:
    return len((folder / "metrics.jsonl").read_text().splitlines())
