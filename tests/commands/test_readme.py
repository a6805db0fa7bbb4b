"""The README stays true: its tables are the code's, and what it names exists.

`python tests/commands/test_readme.py` writes the table of docs/configuration.md anew.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evaluation.scores import human_normalised
from experiments.training import interval

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
KEYS = ROOT / "docs" / "configuration.md"
LEARNING = KEYS.with_name("learning.md")
DOCUMENTS = [README, ROOT / "results" / "README.md", *sorted(KEYS.parent.glob("*.md"))]
START, END = "<!-- config keys: made by tests/commands/test_readme.py -->", "<!-- end of config keys -->"


def config_table() -> str:
    """Every config key with default, allowed values, whether a resumed run may change it, and meaning."""
    sys.path.insert(0, str(ROOT))
    from configuration.schema import schema

    lines, section = [], None
    for name, key in schema().items():
        group, _, last = name.rpartition(".")
        if group != section:
            section = group
            lines += [
                "",
                f"**{group or 'top level'}**",
                "",
                "| key | default | allowed | may change | meaning |",
                "| --- | --- | --- | --- | --- |",
            ]
        symbol = f" ({key.symbol})" if key.symbol else ""
        facts = (f"`{last}`", key.shown_default, key.expected, "yes" if key.may_change else "", key.meaning)
        cells = (fact.replace("|", "\\|").replace("<", "&lt;") for fact in facts)
        lines.append(f"| {' | '.join(cells)}{symbol} |")
    return "\n".join([START, *lines, "", END])


def test_the_table_of_config_keys_is_the_schemas() -> None:
    assert config_table() in KEYS.read_text()


def test_tables_have_as_many_cells_as_columns_and_no_unknown_html() -> None:
    for path in [README, *(ROOT / "docs").glob("*.md"), *(ROOT / "results").glob("*.md")]:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(widths) == 1, f"{path}: {table[:200]}"
        outside_code = re.sub(r"<!--.*?-->", "", re.sub(r"`[^`]*`", "", text), flags=re.DOTALL)
        assert not re.findall(
            r"<(?!/?(?:br|sub|sup|details|summary|img|p|a)\b)[A-Za-z/][^>]*>", outside_code
        ), path


def test_the_keys_it_names_have_the_defaults_that_it_says() -> None:
    from configuration.schema import schema

    table = README.read_text().split("\n## Configuration\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", table, re.MULTILINE)
    assert len(rows) > 5
    for names, defaults in rows:
        first, *others = re.findall(r"`(.+?)`", names)
        section = first.rpartition(".")[0]
        keys = [first, *(section + other for other in others)]
        assert [schema()[key].shown_default for key in keys] == defaults.split(", "), names


def test_every_test_it_names_exists() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (KEYS.parent / "release.md").read_text()))
    missing = {name for name in named if f"def {name}(" not in tests}
    assert named and not missing


def test_every_call_of_the_tests_in_the_documents_finds_some() -> None:
    documents = [README, *(ROOT / "docs").glob("*.md"), ROOT / "test.sh"]
    calls = re.findall(
        r"\./test\.sh ([^`\n]*tests/[^`\n]*)", "\n".join(path.read_text() for path in documents)
    )
    assert calls
    for call in calls:
        files, words = re.findall(r"tests/[\w/]+\.py", call), re.search(r'-k (?:"([^"]+)"|(\w+))', call)
        names = re.findall(r"def (test_\w+)", "".join((ROOT / file).read_text() for file in files))
        wanted = (words[1] or words[2]).split(" or ") if words else ["test_"]
        assert all(any(word in name for name in names) for word in wanted), call


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only git knows what is in the repository")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_links_to_is_in_the_repository(document: Path) -> None:
    git = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, capture_output=True, text=True, check=True).stdout.splitlines()
    known = {path for file in listed for path in (Path(file), *Path(file).parents)}
    text = document.read_text()
    links = [*re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", text), *re.findall(r'src="([^"]+)"', text)]
    paths = [os.path.relpath((document.parent / link.strip()).resolve(), ROOT) for link in links]
    assert not [path for path in paths if Path(path) not in known]


def told(row: str, column: str) -> str:
    """The cell of a table of the README, its row by how its first cell begins."""
    lines = [line.strip("| ").split(" | ") for line in README.read_text().splitlines()]
    heads = [index for index, cells in enumerate(lines) if column in cells]
    tables = [lines[head : lines.index([""], head)] for head in heads]
    (cell,) = (
        cells[table[0].index(column)] for table in tables for cells in table if cells[0].startswith(row)
    )
    return cell


def score(run: dict[str, Any]) -> str:
    """The mean of a recorded run's evaluation and its interval, as the README writes them."""
    mean, (low, high) = statistics.fmean(run["evaluation_returns"]), interval(run["evaluation_returns"])
    return f"{mean:,.{0 if mean >= 100 else 1}f} ({low:,.0f} to {high:,.0f})".replace("-", "−")


def recorded(path: str) -> dict[str, list[dict[str, Any]]]:
    """The runs of a record by model."""
    runs = json.loads((ROOT / "results" / f"{path}.json").read_text())["runs"]
    return {model: [run for run in runs if run["model"] == model] for model in {run["model"] for run in runs}}


GAMES = pytest.mark.parametrize("game", ["Boxing", "KungFuMaster", "Krull", "RoadRunner"])
TOLD_AS = {  # how docs/learning.md calls what the records do
    "STORM-small": "STORM",
    "GITSTORM-small": "GIT-STORM",
    "GITSTORM-small slice": "slices",
    "GITSTORM-small slice joint": "slices, 4/4/1",
}


@GAMES
def test_the_scores_of_games_are_those_of_the_records(game: str) -> None:
    for model, runs in recorded(f"atari_small/{game}").items():
        scores = [score(run) for run in runs]
        row = {"GITSTORM-small slice": "the same with `Condition=slice`"}.get(model, f"`{model}`")
        if model.endswith(" joint"):  # of one game, told in the text
            assert all(each in " ".join(README.read_text().split()) for each in scores)
        else:
            assert told(row, game) == ", ".join(scores)


@GAMES
def test_the_checkpoints_of_games_are_those_of_the_records(game: str) -> None:
    for model, runs in recorded(f"atari_small/{game}").items():
        for run in runs:
            means = [f"{round(statistics.fmean(returns)):,}" for _, returns in run["evaluations"]]
            trained = f"{run['final_training_return']:,.{0 if game != 'Boxing' else 1}f}"
            numbers = " | ".join([str(run["seed"]), *means, trained]).replace("-", "−")
            assert f"| {game}, {TOLD_AS[model]} | {numbers} |" in LEARNING.read_text()


def mean_of_seeds(path: str, model: str) -> float:
    """The mean over a model's runs in a record of what their last checkpoints return."""
    return statistics.fmean(statistics.fmean(run["evaluation_returns"]) for run in recorded(path)[model])


def test_what_is_concluded_from_the_records_follows_from_them() -> None:
    text, models = " ".join(LEARNING.read_text().split()), [*TOLD_AS][:3]
    scores = {  # human-normalised, by game: of STORM, GIT-STORM and GIT-STORM with slices
        game: [human_normalised(f"ALE/{game}-v5", mean_of_seeds(f"atari_small/{game}", m)) for m in models]
        for game in ("Boxing", "KungFuMaster", "Krull")
    }
    storm, whole, slices = (statistics.fmean(column) for column in zip(*scores.values(), strict=True))
    assert (
        f"{whole:.2f} with whole conditions, {slices:.2f} with slices, and {storm:.2f} with STORM's" in text
    )
    storm, whole, slices = scores["Boxing"]
    assert f"this closes {100 * (whole - slices) / (storm - slices):.0f} % of the distance" in text
    with_key, without = (
        mean_of_seeds("scale_of/UpNDown", model) for model in ("STORM-small", "STORM-small ScaleOf returns")
    )
    assert f"evaluate to {with_key:.0f} on average" in text and f"without it to {without:.0f} " in text


def test_the_scores_of_the_quick_start_are_those_of_the_record() -> None:
    for model, runs in recorded("quick_start/Seaquest").items():
        assert [told(f"`{model}`", f"seed {run['seed']}") for run in runs] == [score(run) for run in runs]


@pytest.mark.parametrize("task", ["cartpole-balance", "reacher-easy", "walker-stand", "cartpole-swingup"])
def test_the_returns_of_control_are_those_of_the_records(task: str) -> None:
    for model, runs in recorded(f"control/{task}").items():
        trained = ", ".join(f"{run['final_training_return']:.0f}" for run in runs)
        evaluated = ", ".join(f"{statistics.fmean(run['evaluation_returns']):.0f}" for run in runs)
        assert f"| {task} | `{model}` | {trained} | {evaluated} |" in README.read_text()


def test_every_config_it_names_exists() -> None:
    named = set(re.findall(r"`((?:GIT)?STORM(?:-\w+)?)`", README.read_text()))
    assert named and not [name for name in named if not (ROOT / "config_files" / f"{name}.yaml").exists()]


def test_the_repository_stands_alone() -> None:
    words = ["/".join(("..", "shared")), "SPEC" + ".md", "SPEC " + "section"]
    files = [*ROOT.glob("[a-zA-Z]*.*"), *ROOT.glob("[a-z]*/**/*.py"), *ROOT.glob("docs/*.md")]
    for path in filter(Path.is_file, files):
        text = path.read_text()
        assert not [word for word in words if word in text], path


if __name__ == "__main__":
    text = KEYS.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    KEYS.write_text(before + config_table() + after)
