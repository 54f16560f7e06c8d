import csv
import gzip
import json
import sys

import pytest

from bbt.errors import DataError
from bbt.tasks import Columns, Example
from bbt.tasks.examples import read_examples
from bbt.tasks.records import read_records

LABELS = ("0", "1")
ROWS = [Example("a film, good", 1), Example('say "no"', 0), Example("œuvre", 1)]


def written(folder, suffix, columns=("text", "label"), rows=ROWS):
    """The rows as a file of that kind."""
    path = folder / f"data{suffix}"
    values = [(row.text, row.label, *((row.text_pair,) if len(columns) == 3 else ())) for row in rows]
    with path.open("w", encoding="utf-8", newline="") as handle:
        if suffix == ".jsonl":
            handle.writelines(json.dumps(dict(zip(columns, v, strict=True))) + "\n" for v in values)
        else:
            writer = csv.writer(handle, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerows([columns, *values])
    return path


def faulty(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    assert read_examples(written(tmp_path, suffix), Columns(), LABELS) == ROWS


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_columns_are_found_by_the_names_they_are_given(tmp_path, suffix):
    rows = [Example("one", 0, "two"), Example("three", 1, "four")]
    path = written(tmp_path, suffix, ("premise", "gold", "hypothesis"), rows)
    assert read_examples(path, Columns("premise", "hypothesis", "gold"), LABELS) == rows


def test_a_quote_in_a_tsv_is_text(tmp_path):
    path = faulty(tmp_path, "d.tsv", 'text\tlabel\n"so it\t1\nb\t0\n')
    assert [e.text for e in read_examples(path, Columns(), LABELS)] == ['"so it', "b"]


def test_label_values_are_indexed_in_the_order_given(tmp_path):
    path = faulty(tmp_path, "d.csv", "text,label\na,neg\nb,pos\n")
    assert [e.label for e in read_examples(path, Columns(), ("pos", "neg"))] == [1, 0]


@pytest.mark.parametrize(("name", "content"), [("d.csv", "text,label\na,1\n"), ("d.jsonl", '{"text":"a","label":1}')])
def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path, name, content):
    assert read_examples(faulty(tmp_path, name, "\ufeff" + content), Columns(), LABELS) == [Example("a", 1)]


def test_blank_lines_of_jsonl_are_skipped(tmp_path):
    path = faulty(tmp_path, "d.jsonl", '{"text": "a", "label": 0}\n\n  \n{"text": "b", "label": 1}')
    assert read_examples(path, Columns(), LABELS) == [Example("a", 0), Example("b", 1)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "sentence,label\na,1\n", r"d\.csv:2: no column 'text'. Columns here: sentence, label\. Name yours"),
        ("d.csv", "a film,1\nanother,0\n", r"d\.csv:2: no column 'text'.*without a header set data\.header: false"),
        ("d.csv", "text,label\na,1\nb\n", r"d\.csv:3: this row has no value for 'label'"),
        ("d.csv", "text,label\na,1\nb,\n", r"d\.csv:3: this row has no value for 'label'"),
        ("d.csv", "text,label,text\na,1,b\n", r"d\.csv:1: the header names column 'text' twice"),
        ("d.csv", "text;label\na;1\n", r"d\.csv:1: the first line is one cell, 'text;label'.* by ',' .*by ';' here"),
        ("d.csv", "text\tlabel\na, b\t1\n", r"d\.csv:1: the first line is one cell"),
        ("d.tsv", "text,label\na,1\n", r"d\.tsv:1: the first line is one cell, .* in a \.tsv file, by ',' here"),
        ("d.csv", "text,label\na,-1\n", r"d\.csv:2: unknown label '-1'.*-1 marks a row without a label"),
        ("d.tsv", "text\tlabel\na\t1\nb\t7\n", r"d\.tsv:3: unknown label '7'. Labels are: 0, 1"),
        ("d.csv", 'text,label\n"never closed,1\nb,1\n', r"d\.csv is not a table"),
        ("d.tsv", "text\tlabel\na\tb\t1\n", r"d\.tsv:2: 3 fields, more than the 2 columns"),
        ("d.csv", 'text,label\n"two\nlines",1\nb,7\n', r"d\.csv:4: unknown label '7'"),
        ("d.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', r"d\.jsonl:2: no column 'label'"),
        ("d.jsonl", '{"text": null, "label": 1}\n', r"d\.jsonl:1: this row has no value for 'text'"),
        ("d.jsonl", '{"text": "a", "label": NaN}\n', r"d\.jsonl:1: this row has no value for 'label'"),
        ("d.jsonl", '{"text": ["a"], "label": 1}\n', r"d\.jsonl:1: 'text' is \['a'\], not text"),
        ("d.jsonl", '{"text": true, "label": 1}\n', r"d\.jsonl:1: 'text' is True, not text"),
        ("d.jsonl", '{"text": "a", "text": "b", "label": 1}\n', r"d\.jsonl:1: the key 'text' stands twice"),
        ("d.jsonl", '\n{"text": "so \\ud83d", "label": 1}\n', r"d\.jsonl:2: 'text' holds half a char.*\\ud83d"),
        ("d.jsonl", '{"text": "a", "label": 1}\n{"text": \n', r"d\.jsonl:2: not JSON"),
        ("d.jsonl", '{"text": "a", "label": ' + 9_999 * "9" + "}", r"d\.jsonl:1: not JSON: .*limit \(4300"),
        ("d.jsonl", '{"text": ' + 99_999 * "[" + 99_999 * "]" + "}", r"d\.jsonl:1: not JSON: .*recursion depth"),
        ("d.jsonl", "[1, 2]\n", r"d\.jsonl:1: expected a JSON object, got list"),
        ("d.csv", "text,label\n", r"d\.csv holds no rows"),
        ("d.jsonl", "", r"d\.jsonl holds no rows"),
        ("d.xlsx", "x", r"format '\.xlsx' is not known. Give a \.jsonl, \.csv or \.tsv"),
        ("d.gz", "x", r"format '\.gz' is not known"),
        ("d.parquet.gz", "x", r"format '\.parquet\.gz' is not known"),
        ("data", "x", r"format '' is not known"),
        ("d.csv", b"text,label\n\xff\xfe,1\n", r"d\.csv:2 is not UTF-8 text \(byte 0xff\)"),
        ("d.jsonl", b'{"text": "\xff", "label": 1}\n', r"d\.jsonl:1 is not UTF-8 text"),
        ("d.csv", "text,label\na,1\n".encode("utf-16"), r"d\.csv:1 is not UTF-8 text .* like UTF-16.*iconv -f UTF-16"),
        ("d.csv", "text,label\na,1\n".encode("utf-32"), r"d\.csv:1 is not UTF-8 text .* like UTF-32.*iconv -f UTF-32"),
        ("d.csv", "\ufefftext,label\n".encode("utf-32-be"), r"d\.csv:1 is not UTF-8 text .* like UTF-32"),
        ("d.csv", "a\u0100,label\na,1\n".encode("utf-16"), r"d\.csv:1 is not UTF-8 text .* like UTF-16"),
        ("d.csv", "text,label\na,1\n".encode("utf-32-be"), r"d\.csv:1: holds a NUL character: it looks like UTF-32"),
        ("d.csv", "text,label\na,1\n".encode("utf-16-le"), r"d\.csv:1: holds a NUL character: it looks like UTF-16"),
        ("d.csv.gz", b"text,label\na,1\n", r"d\.csv\.gz is not a whole \.gz file"),
        (
            "d.csv.gz",
            gzip.compress(b"text,label\n" + b"a,1\n" * 99, mtime=0)[:-9],
            r"d\.csv\.gz is not a whole \.gz file",
        ),
        ("d.parquet", "x", r"d\.parquet is not a readable parquet file"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_examples(faulty(tmp_path, name, content), Columns(), LABELS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no data file .*gone\.csv"):
        read_examples(tmp_path / "gone.csv", Columns(), LABELS)


def test_the_encoding_that_a_file_seems_to_have_is_named(tmp_path):
    rows = "".join(f"Был хороший фильм номер {i},1\n" for i in range(20))
    path = faulty(tmp_path, "d.csv", ("text,label\n" + rows).encode("cp1251"))
    with pytest.raises(DataError, match=r"d\.csv:2 is not UTF-8 .*CP1251.* iconv -f CP1251 -t UTF-8 d\.csv > utf8-d"):
        read_examples(path, Columns(), LABELS)


@pytest.mark.parametrize("name", ["d.CSV", "d.Tsv", "d.JSONL", "d.csv.gz", "d.TSV.GZ", "d.jsonl.gz", "my.own.csv"])
def test_files_may_be_packed_and_extensions_have_capitals(tmp_path, name):
    suffix = next(s for s in (".csv", ".tsv", ".jsonl") if s in name.lower())
    content = written(tmp_path, suffix).read_bytes()
    path = faulty(tmp_path, name, gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert read_examples(str(path), Columns(), LABELS) == ROWS


def test_parquet_gives_the_same_rows_and_names_the_row_of_a_fault(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path = tmp_path / "d.Parquet"
    write_table(pa.table({"text": [r.text for r in ROWS], "label": [r.label for r in ROWS]}), path)
    assert read_examples(path, Columns(), LABELS) == ROWS
    write_table(pa.table({"text": ["a", None], "label": [1.0, float("nan")]}), path)
    with pytest.raises(DataError, match=r"d\.Parquet:row 2: this row has no value for 'text'"):
        read_examples(path, Columns(), LABELS)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'bbt-prompt\[parquet\]'"):
        read_examples(faulty(tmp_path, "d.parquet", "x"), Columns(), LABELS)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_without_a_header_columns_go_by_number_from_one(tmp_path, suffix):
    rows = written(tmp_path, suffix).read_text().splitlines()[1:]
    path = faulty(tmp_path, f"bare{suffix}", "\n".join(rows))
    assert read_examples(path, Columns("1", None, "2"), LABELS, header=False) == ROWS
    with pytest.raises(DataError, match=r":1: no column '0'\. Columns here: 1, 2\. Name yours under data\.columns in"):
        read_examples(path, Columns("0", None, "1"), LABELS, header=False)


@pytest.mark.parametrize("value", ["1", "1.0", " 1 ", "1.00"])
def test_a_label_that_is_the_same_number_is_the_same_label(tmp_path, value):
    path = faulty(tmp_path, "d.csv", f"text,label\na,{value}\n")
    assert read_examples(path, Columns(), ("0", "1")) == read_examples(path, Columns(), ("0.0", "1.0"))
    assert read_examples(path, Columns(), LABELS) == [Example("a", 1)]


def test_a_number_where_a_text_is_expected_is_its_digits(tmp_path):
    path = faulty(tmp_path, "d.jsonl", '{"text": 12, "label": 1.0}\n{"text": "", "label": 0}')
    assert read_examples(path, Columns(), LABELS) == [Example("12", 1), Example("", 0)]


@pytest.mark.parametrize("length", [131_073, 2_000_000])
def test_a_long_cell_is_read_whole(tmp_path, length):
    path = faulty(tmp_path, "d.csv", "text,label\n" + "a" * length + ",1\n")
    assert read_examples(path, Columns(), LABELS) == [Example("a" * length, 1)]


def test_a_line_break_inside_a_tsv_cell_is_warned_of(tmp_path):
    path = faulty(tmp_path, "d.tsv", 'text\tlabel\nx\t0\n"so it\t1\nwas"\t1\n"b\nc"\t0\n')
    with pytest.warns(
        UserWarning, match=r"d\.tsv: 2 rows have a line break inside a cell, the first one ends in line 4"
    ):
        examples = read_examples(path, Columns(), LABELS)
    assert [e.text for e in examples] == ["x", "so it\t1\nwas", "b\nc"]


def test_a_line_break_inside_a_csv_cell_is_the_format_s_own(tmp_path):
    path = faulty(tmp_path, "d.csv", 'text,label\n"two\nlines",1\n')
    assert read_examples(path, Columns(), LABELS) == [Example("two\nlines", 1)]


@pytest.mark.parametrize(
    ("name", "content"),
    [("d.csv", "text,n\na,1\n\nb,2\n"), ("d.jsonl", '{"text":"a","n":"1"}\n\n{"text":"b","n":"2"}')],
)
def test_records_keep_columns_order_and_blank_lines(tmp_path, name, content):
    path = faulty(tmp_path, name, content)
    first = 2 if name == "d.csv" else 1
    expected = [{"text": "a", "n": "1"}, None, {"text": "b", "n": "2"}]
    assert list(read_records(path)) == [(f"{path}:{first + i}", record) for i, record in enumerate(expected)]


def test_a_large_file_is_read_as_it_is_asked_for(tmp_path):
    path = faulty(tmp_path, "d.jsonl", '{"text": "a", "label": 1}\n' * 20_000 + "{")
    stream = read_records(path)
    assert next(stream)[1] == {"text": "a", "label": 1}  # the faulty last line has not been looked at
    with pytest.raises(DataError, match=r"d\.jsonl:20001: not JSON"):
        list(stream)
