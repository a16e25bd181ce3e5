"""GLUE's files are read as they are published; what is wrong with a file is said at once, with its rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.data.problems import ManifestError, Problems
from d2v_plugin.data.tables import GLUE, Table, TableLayout, check_labels, read_tables

# The first line of each file of GLUE, as it is published, and a row of each kind it has.
MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
    "\tsentence1\tsentence2"
)
STS_B = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
FILES = {
    "cola": {
        "train.tsv": ["gj04\t1\t\tOur friends won't buy it.", 'gj04\t0\t*\t"They drank the pub.'],
        "dev.tsv": ["gj04\t1\t\tThe sailors rode the breeze clear of the rocks."],
        "test.tsv": ["index\tsentence", "0\tBill whistled past the house."],
    },
    "sst_2": {
        "train.tsv": ["sentence\tlabel", "hide new secretions from the parental units \t0", 'a " masterpiece \t1'],
        "dev.tsv": ["sentence\tlabel", "it 's a charming journey . \t1"],
        "test.tsv": ["index\tsentence", "0\tuneasy mishmash"],
    },
    "mrpc": {
        "train.tsv": ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\tHe said so .\tSo he said .\r"],
        "dev.tsv": ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t9\t10\tOne .\tTwo ."],
        "test.tsv": ["index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\tThree .\tFour ."],
    },
    "sts_b": {
        "train.tsv": [STS_B + "\tscore", "0\tmain\tMSRvid\t2012\t1\tnone\tnone\tA plane.\tAn air plane.\t5.000"],
        "dev.tsv": [STS_B + "\tscore", "0\tmain\tMSRvid\t2012\t1\tnone\tnone\tA man.\tA dog.\t0.4"],
        "test.tsv": [STS_B, "0\tmain\tMSRvid\t2012\t1\tnone\tnone\tA girl.\tA cat."],
    },
    "qqp": {
        "train.tsv": [
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            "1\t2\t3\tWhy?\tHow?\t0",
            "a line that a question was broken into",
            "4\t5\t6\tWho?\t\t0",
            "7\t8\t9\tWhat is it?\tWhat is that?\t1",
        ],
        "dev.tsv": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tWhere?\tWhen?\t0"],
        "test.tsv": ["id\tquestion1\tquestion2", "0\tWhich?\tWhose?"],
    },
    "mnli": {
        "train.tsv": [MNLI + "\tlabel1\tgold_label", "0\t1\t2\tfiction\ta\tb\tc\td\tIt rains.\tIt is wet.\tneutral\tentailment"],
        "dev_matched.tsv": [
            MNLI + "\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
            "0\t1\t2\tfiction\ta\tb\tc\td\tShe sings.\tShe speaks.\tneutral\tneutral\tneutral\tneutral\tneutral\tneutral",
        ],
        "dev_mismatched.tsv": [
            MNLI + "\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
            "0\t1\t2\tletters\ta\tb\tc\td\tHe left.\tHe stays.\tneutral\tneutral\tneutral\tneutral\tneutral\tcontradiction",
        ],
        "test_matched.tsv": [MNLI, "0\t1\t2\tfiction\ta\tb\tc\td\tNo.\tYes."],
    },
    "qnli": {
        "train.tsv": ["index\tquestion\tsentence\tlabel", "0\tWhen?\tIn 1900\u2028or \u0085so.\tentailment"],
        "dev.tsv": ["index\tquestion\tsentence\tlabel", "0\tWho?\tIn 1900.\tnot_entailment"],
        "test.tsv": ["index\tquestion\tsentence", "0\tWhere?\tThere."],
    },
    "rte": {
        "train.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tHe won.\tHe lost.\tnot_entailment"],
        "dev.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tHe won.\tHe did win.\tentailment"],
        "test.tsv": ["index\tsentence1\tsentence2", "0\tIt is.\tIt was."],
    },
}  # fmt: skip

EXPECTED = {
    "cola": {
        "train": [("Our friends won't buy it.", "1"), ('"They drank the pub.', "0")],
        "valid": [("The sailors rode the breeze clear of the rocks.", "1")],
        "test": [("Bill whistled past the house.", None)],
    },
    "sst_2": {
        "train": [("hide new secretions from the parental units", "0"), ('a " masterpiece', "1")],
        "valid": [("it 's a charming journey .", "1")],
        "test": [("uneasy mishmash", None)],
    },
    "mrpc": {
        "train": [("He said so .", "So he said .", "1")],
        "valid": [("One .", "Two .", "0")],
        "test": [("Three .", "Four .", None)],
    },
    "sts_b": {
        "train": [("A plane.", "An air plane.", "5.000")],
        "valid": [("A man.", "A dog.", "0.4")],
        "test": [("A girl.", "A cat.", None)],
    },
    "qqp": {
        "train": [("Why?", "How?", "0"), ("What is it?", "What is that?", "1")],
        "valid": [("Where?", "When?", "0")],
        "test": [("Which?", "Whose?", None)],
    },
    "mnli": {
        "train": [("It rains.", "It is wet.", "entailment")],
        "valid": [("She sings.", "She speaks.", "neutral")],
        "valid_mismatched": [("He left.", "He stays.", "contradiction")],
        "test": [("No.", "Yes.", None)],
    },
    "qnli": {
        "train": [("When?", "In 1900\u2028or \u0085so.", "entailment")],
        "valid": [("Who?", "In 1900.", "not_entailment")],
        "test": [("Where?", "There.", None)],
    },
    "rte": {
        "train": [("He won.", "He lost.", "not_entailment")],
        "valid": [("He won.", "He did win.", "entailment")],
        "test": [("It is.", "It was.", None)],
    },
}


def write(folder: Path, files: dict[str, list[str]]) -> None:
    for name, lines in files.items():
        folder.joinpath(name).write_bytes("".join(f"{line}\n" for line in lines).encode())


def read(folder: Path, layout: TableLayout) -> dict[str, Table]:
    problems = Problems()
    tables = read_tables(folder, layout, problems)
    check_labels(tables, layout, layout.classes, problems)
    problems.raise_if_any()

    return tables


def rows_of(table: Table) -> list[tuple[str | None, ...]]:
    return list(zip(*table.texts, table.labels or [None] * len(table), strict=True))


def test_all_tasks_but_wnli_are_there() -> None:
    assert set(GLUE) == set(FILES) == {"cola", "sst_2", "mrpc", "sts_b", "qqp", "mnli", "qnli", "rte"}


@pytest.mark.parametrize("task", GLUE)
def test_glue_is_read_as_published(tmp_path: Path, task: str) -> None:
    write(tmp_path, FILES[task])

    tables = read(tmp_path, GLUE[task])

    assert {split: rows_of(table) for split, table in tables.items()} == EXPECTED[task]
    assert tables["train"].lines[0] == (1 if task == "cola" else 2)


def test_microsofts_paraphrases_are_split_by_glues_list(tmp_path: Path) -> None:
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    rows = ["1\t11\t12\ta\tb", "0\t13\t14\tc\td", "1\t12\t11\te\tf"]
    files = {
        "msr_paraphrase_train.txt": [f"{line}\r" for line in (header, *rows)],
        "msr_paraphrase_test.txt": [header, "0\t1\t2\tg\th"],
        "dev_ids.tsv": ["13\t14"],
    }
    write(tmp_path, files)

    tables = read(tmp_path, GLUE["mrpc"])

    assert rows_of(tables["train"]) == [("a", "b", "1"), ("e", "f", "1")] and tables["train"].lines.tolist() == [2, 4]
    assert rows_of(tables["valid"]) == [("c", "d", "0")] and tables["valid"].lines.tolist() == [3]
    assert rows_of(tables["test"]) == [("g", "h", "0")]

    (tmp_path / "dev_ids.tsv").unlink()
    with pytest.raises(RecipeError, match=r"GLUE's list of the pairs for validation, dev_ids\.tsv"):
        read(tmp_path, GLUE["mrpc"])


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    good = "0\tHe won.\tHe lost.\tnot_entailment"
    train = ["index\tsentence1\tsentence2\tlabel", good, "1\t \tHe lost.\tentailment", "2\tHe won.\tHe lost.\tmaybe", "3\tHe"]
    write(tmp_path, {"train.tsv": train, "dev.tsv": ["index\tpremise\tsentence2\tlabel", good]})
    (tmp_path / "test.tsv").write_bytes(b"index\tsentence1\tsentence2\n0\tHe \xff won.\tHe lost.\n")

    with pytest.raises(ManifestError) as caught:
        read(tmp_path, GLUE["rte"])

    assert str(caught.value).splitlines() == [
        "5 bad line(s) in the dataset's files:",
        f"{tmp_path}/dev.tsv:1: there is no column `sentence1`; the first line has: index, premise, sentence2, label",
        f"{tmp_path}/test.tsv:2: byte 6 is no UTF-8",
        f"{tmp_path}/train.tsv:3: `sentence1` is empty",
        f"{tmp_path}/train.tsv:4: label `maybe` is none of: entailment, not_entailment",
        f"{tmp_path}/train.tsv:5: 2 column(s), expected 4: index, sentence1, sentence2, label",
    ]


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    files = {name: list(lines) for name, lines in FILES["sts_b"].items()}
    files["dev.tsv"].append(files["dev.tsv"][1].replace("0.4", "nan"))
    write(tmp_path, files)

    with pytest.raises(ManifestError, match=r"dev\.tsv:3: `score` must be a number, but is `nan`"):
        read(tmp_path, GLUE["sts_b"])


def test_only_test_splits_may_lack_labels(tmp_path: Path) -> None:
    write(tmp_path, {"train.tsv": ["sentence", "a b c"], "test.tsv": ["sentence", "a b c"]})

    with pytest.raises(ManifestError) as caught:
        read(tmp_path, TableLayout(classes=["x", "y"]))

    assert "train.tsv:1: there is no column `label`" in str(caught.value) and "test.tsv" not in str(caught.value)


@pytest.mark.parametrize("files", [{}, {"train.tsv": []}, {"train.tsv": ["sentence\tlabel"]}])
def test_files_without_rows_are_refused(tmp_path: Path, files: dict[str, list[str]]) -> None:
    write(tmp_path, files)

    with pytest.raises(RecipeError, match=r"holds none of|there is no column|there are no rows"):
        read(tmp_path, TableLayout())


def test_impossible_layouts_are_refused() -> None:
    for settings in ({"texts": []}, {"numbers": True, "classes": ["a"]}, {"classes": ["a", "a"]}, {"divisor": 0.0}):
        with pytest.raises(ValueError, match=r"texts|classes|divisor"):
            ensure_valid(TableLayout(**settings))  # type: ignore[arg-type]
