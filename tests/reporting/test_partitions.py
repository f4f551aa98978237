import csv

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from hushprompt.reporting.partitions import Counts, client_table, shade_lines, write_csv, write_plot


def counts(num_clients=3, num_classes=7):
    table = np.arange(num_clients * num_classes).reshape(num_clients, num_classes) % 5
    return Counts(
        client_names=[f"site {client}" for client in range(num_clients)],
        class_names=[f"class {label}" for label in range(num_classes)],
        by_split={"train": table, "test": table // 2},
    )


def test_the_table_has_a_line_a_client_and_the_totals(capsys):
    Console(width=80).print(client_table(counts()))
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["site", "0", "11", "4", "5", "class", "4", "(36%)"] in lines
    assert ["all", "40", "16", "7"] in lines


def test_shades_run_from_none_to_the_client_with_most_of_a_class():
    table = np.array([[0, 1, 4], [4, 4, 4]])
    few = Counts(client_names=["a", "bb"], class_names=["x", "y", "z"], by_split={"train": table})
    assert shade_lines(few, 80) == ["classes 0 to 2", " a │ ░█│", "bb │███│"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_hundred_classes_fit_any_terminal(width):
    lines = shade_lines(counts(12, 100), width)
    assert max(map(len, lines)) <= width
    drawn = [line for line in lines if line.startswith(" site 3") or line.startswith("site 3")]
    assert sum(len(line.split("│")[1]) for line in drawn) == 100


def test_the_csv_has_every_count_that_is_not_zero(tmp_path):
    write_csv(tmp_path / "p.csv", counts())
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert sum(int(row["examples"]) for row in rows if row["split"] == "train") == 40
    assert rows[0] == {"client_id": "0", "client": "site 0", "split": "train", "class": "class 1", "examples": "1"}


@pytest.mark.parametrize(("num_clients", "num_classes"), [(3, 7), (60, 100)])
def test_the_plot_is_an_image(tmp_path, num_clients, num_classes):
    write_plot(tmp_path / "new" / "p.png", counts(num_clients, num_classes), "numbers")
    with Image.open(tmp_path / "new" / "p.png") as image:
        assert image.width == 1320
        assert len(set(image.convert("RGB").resize((64, 64)).get_flattened_data())) > 20
