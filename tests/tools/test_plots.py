"""Plots from committed JSON: bars within 100 %, an axis for each modality, the machine in the title."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tools.experiments import plots

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Figure]]:
    """What would be saved."""
    figures: list[tuple[str, Figure]] = []

    def save(figure: Figure, path: Path, **settings: Any) -> None:
        figures.append((path.name, figure))

    monkeypatch.setattr(Figure, "savefig", save)

    return figures


def draw(name: str, folder: Path) -> None:
    shutil.copy(RECIPES / name, folder)
    assert plots.main([str(folder / Path(name).name)]) == 0


def test_ablations_have_a_column_for_each_modality_and_no_bar_beyond_100(drawn: list[tuple[str, Figure]], tmp_path: Path) -> None:
    draw("ablations/table.json", tmp_path)
    ((name, figure),) = drawn

    assert name == "plot.png" and "AMD EPYC" in figure.get_suptitle()
    assert [part.get_suptitle() for part in figure.subfigs] == ["Images", "Speech"]
    for part in figure.subfigs:
        panels = [axes for axes in part.axes if axes.axison]
        assert panels[-1].get_xlabel() == "Accuracy (%)"
        assert all(axes.get_title(loc="left")[0].isupper() and axes.get_xlim() == (0, 100) for axes in panels)
        assert all(0 <= x <= 100 for axes in panels for line in axes.lines for x in line.get_xdata(orig=True))
    speech = [axes.get_title(loc="left") for axes in figure.subfigs[1].axes if axes.axison]
    assert speech == ["Target type", "ALiBi", "Positions"]


def test_a_study_has_a_plot_for_each_part(drawn: list[tuple[str, Figure]], tmp_path: Path) -> None:
    draw("study/report.json", tmp_path)

    assert [name for name, _ in drawn] == ["images.png", "speech.png", "text.png"]
    for _, figure in drawn:
        assert [axes.get_xlabel() for axes in figure.axes] == ["Time of one core (s)", "Computation (GFLOP)"]
        assert "AMD EPYC" in figure.get_suptitle()


def test_sweeps_have_a_plot_for_each_parameter(drawn: list[tuple[str, Figure]], tmp_path: Path) -> None:
    draw("speed/sweeps.json", tmp_path)

    assert {name for name, _ in drawn} == {"views.png", "batch.png", "tokens.png", "seconds.png"}
    assert all(
        [axes.get_ylabel() for axes in figure.axes] == ["Time of an update (s)", "Peak memory (GiB)"] for _, figure in drawn
    )


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        plots.main([str(tmp_path / "metrics.json")])
    assert "metrics.json is no table.json or report.json or sweeps.json that exists." in capsys.readouterr().err
