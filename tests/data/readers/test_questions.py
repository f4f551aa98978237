"""A JSONL file of questions and answers."""

import json

import numpy as np
import pytest
from PIL import Image

from hushprompt.data.content import content_of
from hushprompt.data.readers.questions import Questions
from hushprompt.errors import ConfigError, DataError


def write(folder, lines, name="list.jsonl"):
    for number, path in enumerate(sorted({line["image"] for line in lines if isinstance(line.get("image"), str)})):
        pixels = np.full((4, 4, 3), number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / path)
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def lines(num=10, **more):
    return [{"image": f"{at}.png", "question": f"what {at}?", "answers": [f"it is {at}"], **more} for at in range(num)]


def test_lines_become_examples_with_their_questions_answers_and_holders(tmp_path):
    rows = lines()
    for at, row in enumerate(rows):
        row |= {"client": ["north", "south"][at % 2], "split": "test" if at > 6 else "train", "group": at // 2}
    rows[0]["answers"] = "one text"
    dataset = Questions(file=write(tmp_path, rows)).load()
    train, test = dataset.splits["train"], dataset.splits["test"]
    assert dataset.is_open
    assert (len(train), len(test), dataset.class_names) == (7, 3, ("all",))
    assert train.questions[:2] == ("what 0?", "what 1?")
    assert train.answers[:2] == (("one text",), ("it is 1",))
    assert test.questions == ("what 7?", "what 8?", "what 9?")
    assert dataset.client_names == ("north", "south")
    assert train.clients.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert train.groups.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert train.read(np.array([2]))[0].max() == 2
    # Another answer is another content, for a run that goes on; the cached features are those of the images.
    rows[1]["answers"] = ["changed"]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = Questions(file=str(tmp_path / "other.jsonl")).load().splits["train"]
    assert other.fingerprint == train.fingerprint
    assert content_of(other).digest != content_of(train).digest


def test_captions_have_no_questions_and_a_category_stands_for_a_class(tmp_path):
    rows = [{**row, "kind": ["color", "number"][at % 2]} for at, row in enumerate(lines(20))]
    for row in rows:
        del row["question"]
    dataset = Questions(file=write(tmp_path, rows), category_field="kind").load()
    assert dataset.class_names == ("color", "number")
    assert set(dataset.splits["train"].questions) == {""}
    assert sorted(map(len, dataset.splits.values())) == [4, 6, 10]


def test_several_questions_on_one_image_stay_together_as_a_group(tmp_path):
    rows = [{**row, "image": f"{at // 3}.png"} for at, row in enumerate(lines(30))]
    rows[1]["image"] = "./0.png"  # the same
    path = write(tmp_path, rows)
    with pytest.raises(DataError, match="The same example is in two splits"):
        Questions(file=path).load()
    dataset = Questions(file=path, duplicates="group").load()
    first = dataset.splits["test"]
    assert (first.images == np.repeat(np.arange(len(first) // 3), 3)).all()
    for split in dataset.splits.values():
        assert (np.bincount(split.groups)[np.unique(split.groups)] == 3).all()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"answers": []}, r"list.jsonl, line 2: 'answers' must be a list of texts with at least one, got \[\]"),
        ({"answers": [""]}, "line 2: 'answers' must be"),
        ({"answers": [3]}, "line 2: 'answers' must be"),
        ({"question": ""}, "line 2: 'question' must be a text, got ''"),
        ({"question": 5}, "line 2: 'question' must be a text, got 5"),
        ({"image": None}, "line 2: 'image' must be the path of an image or sound, got None"),
        ({"question": None}, "1.png has no question, others do"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, wrong, told):
    rows = lines(4)
    rows[1] |= wrong
    with pytest.raises(DataError, match=told):
        Questions(file=write(tmp_path, rows)).load()


def test_files_that_are_no_list_are_refused(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"image": "a.png"}\n["a"]\n')
    with pytest.raises(DataError, match="line 2 is not a JSON object"):
        Questions(file=str(tmp_path / "list.jsonl")).load()
    (tmp_path / "bad.jsonl").write_text('{"image": "a.png"\n')
    with pytest.raises(DataError, match="line 1 cannot be read"):
        Questions(file=str(tmp_path / "bad.jsonl")).load()
    with pytest.raises(DataError, match=r"must end in \.jsonl"):
        Questions(file=str(tmp_path / "list.csv")).load()
    with pytest.raises(DataError, match="there is no 'kind'"):
        Questions(file=write(tmp_path, lines(4)), category_field="kind").load()
    with pytest.raises(ConfigError, match=r"data\.file must be given"):
        Questions().load()
