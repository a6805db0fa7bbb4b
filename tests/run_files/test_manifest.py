"""manifest.json: two processes that enter files at once wait for each other."""

from __future__ import annotations

import threading
from pathlib import Path

from run_files.manifest import altered, enter, rewriting


def test_who_enters_a_file_waits_for_who_rewrites_one(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("a", "b")}
    for path in files.values():
        path.write_text("1")
    other = threading.Thread(target=enter, args=(tmp_path, {"b": files["b"]}))
    with rewriting(tmp_path, {"a": files["a"]}):
        other.start()
        other.join(0.2)
        assert other.is_alive()  # it waits
        files["a"].write_text("2")
    other.join()
    assert altered(tmp_path, files) == []


def test_without_a_folder_nothing_is_entered(tmp_path: Path) -> None:
    with rewriting(tmp_path / "none", {"a": tmp_path / "a"}):
        pass
    assert not (tmp_path / "none").exists()
