import pytest

from hushprompt.errors import DataError
from hushprompt.models.bpe import BytePairTokenizer

TOKENIZER = BytePairTokenizer(
    ("<pad>", "<sos>", "<eos>", "<unk>", "c", "a", "t", "s", "t_", "s_", "a_", "c_", "at_", "cat_", "ca"),
    (("a", "t_"), ("c", "at_"), ("c", "a")),
)


def test_the_best_ranked_pair_is_joined_first():
    assert TOKENIZER.encode("cat") == [13]
    assert TOKENIZER.encode("cats") == [14, 6, 9]
    assert TOKENIZER.encode("Cat  cat") == [13, 13]


def test_unknown_letters_become_the_unknown_token():
    assert TOKENIZER.encode("z") == [TOKENIZER.unknown_id]
    assert TOKENIZER.encode("") == []


def test_it_reads_back_what_it_writes(tmp_path):
    TOKENIZER.to_json(tmp_path / "t.json")
    assert BytePairTokenizer.from_json(tmp_path / "t.json") == TOKENIZER


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "t.json").write_text('{"symbols": []')
    with pytest.raises(DataError, match=r"t\.json is missing or damaged"):
        BytePairTokenizer.from_json(tmp_path / "t.json")
    with pytest.raises(DataError, match="missing or damaged"):
        BytePairTokenizer.from_json(tmp_path / "none.json")
