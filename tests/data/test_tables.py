"""Rows as they are written: what CSV and JSON files hold, what is refused, and with which line."""

import bz2
import csv
import gzip
import json
import lzma
import os
from dataclasses import replace

import pytest
from command import halfback, refusal
from test_tasks import message

from halfback.data.files import read_table
from halfback.data.options import TaskOptions
from halfback.data.tables import NoText
from halfback.data.tasks import load_task
from halfback.deploy.site import read_site
from halfback.errors import UserError
from halfback.telemetry.records import read_summary

PLAIN = "text,label\na b,x\nc d,y\n"
CELLS = {"text": ["a b", "c d"], "label": ["x", "y"]}


def table(tmp_path, content, name="a.csv", **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(str(path), **options)


def columns(*arguments, **options):
    return {name: list(cells) for name, cells in table(*arguments, **options).columns.items()}


def refused(*arguments, **options):
    with pytest.raises(UserError) as caught:
        table(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def labels(tmp_path, cells, kind="csv", **options):
    """The task of rows with these labels (as JSON has them)."""
    path = tmp_path / f"labels.{kind}"
    if kind == "csv":
        path.write_text("text,label\n" + "".join(f"t,{cell}\n" for cell in cells))
    else:
        path.write_text("".join(json.dumps({"text": "t", "label": cell}) + "\n" for cell in cells))
    return load_task(TaskOptions("csv", train=str(path), validation=str(path), **options), seed=0)


def lines(*rows):
    return "".join(row if isinstance(row, str) else json.dumps(row) for row in rows for row in (row, "\n"))


# --- what a CSV file holds


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.rstrip("\n"),
        "\r\n  \n\n" + PLAIN,
        PLAIN.replace("\n", "\n\n") + "   \n",
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        "sep=^\n" + PLAIN.replace(",", "^"),
        "sep=,\r\n" + PLAIN.replace("\n", "\r\n"),
        '"SEP=;" \n' + PLAIN.replace(",", ";"),
        "sep=;;\n" + PLAIN.replace(",", ";"),
        "|text|label|\n|---|:-:|\n|a b|x|\n|c d|y|\n",
        '"text";"label"\n"a b";"x"\n"c d";"y"\n',
        " text , label \na b,x\nc d,y\n",
        ",text,label\n0,a b,x\n1,c d,y\n",
        "text,label,\na b,x,\nc d,y,\n",
        "text,label,\na b,x\nc d,y\n",
        "text,label\na b,x,\nc d,y,,\n",
        '"text","label"\n"a b","x"\n"c d","y"\n',
        'text, label\n"a b", x\nc d, "y"\n',
    ],
)
def test_one_table_in_many_ways(tmp_path, content):
    assert columns(tmp_path, content) == CELLS
    assert columns(tmp_path, gzip.compress(content.encode(), mtime=0), "a.csv.gz") == CELLS
    assert columns(tmp_path, gzip.compress(content.encode(), mtime=0), "called.csv") == CELLS
    assert columns(tmp_path, b"\xef\xbb\xbf" + content.encode()) == CELLS
    assert columns(tmp_path, content.encode("utf-16")) == CELLS


@pytest.mark.parametrize(
    ("cell", "is_read_as"),
    [
        ("007", "007"),
        ("1.50", "1.50"),
        ("None", "None"),
        ("2020-01-01", "2020-01-01"),
        (" a  b ", " a  b "),
        ('say "hi" now', 'say "hi" now'),
        ('5" tape', '5" tape'),
        ('"a, b"', "a, b"),
        ('"a ""b"" c"', 'a "b" c'),
        ('"a\r\nb"', "a\r\nb"),
        ("'a'", "'a'"),
        ("a\\nb", "a\\nb"),
        ("w" * 200_000, "w" * 200_000),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_cells_are_the_text_as_written(tmp_path, cell, is_read_as, before):
    found = columns(tmp_path, "text,label\n" + "x,1\n" * before + f"{cell},1\n")
    assert found["text"][before:] == [is_read_as]


def test_the_process_keeps_its_limit_of_fields(tmp_path):
    before = csv.field_size_limit()
    columns(tmp_path, PLAIN)
    refused(tmp_path, 'text\n"a')
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('"good" film,x', "line 3: text behind a closing quote"),
        (r'"a \"good\" film",x', "line 3: text behind a closing quote"),
        (r'"a \"good\", film",x', "line 3: text behind a closing quote"),
        ('""good"" film,x', "line 3: text behind a closing quote"),
        ('"good,x', "line 3: a quote opens here that nothing closes"),
        ('"a\nb\nc" d,x', "line 5: text behind a closing quote (the row begins in line 3)"),
        ('a,x\n\n"b\nc",x\nd\n', "line 7: 1 field, but the header has 2"),
        ("a, b,x", "line 3: 3 fields, but the header has 2; a text with ',' in it needs quotes"),
        ('a, "b, c",x', "line 3: 4 fields, but the header has 2"),
        ("a", "line 3: 1 field, but the header has 2"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_that_are_no_csv_are_refused_with_the_line_of_an_editor(tmp_path, row, said, end):
    assert said in refused(tmp_path, f"text,label\nx,1\n{row}\ny,2\n".replace("\n", end))


def test_stray_quotes_swallow_no_rows(tmp_path):
    rows = [f"{'' if row not in (2, 8) else chr(34)}film {row},x" for row in range(20)]
    said = refused(tmp_path, "\n".join(["text,label", *rows]))
    assert "line 10: text behind a closing quote (the row begins in line 4)" in said


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [3, 4, 9])
@pytest.mark.parametrize("label_first", [False, True])
def test_two_stray_quotes_that_make_one_cell_of_several_rows(tmp_path, end, last, label_first):
    rows = [[f"{chr(34) * (row == 2)}film {row}{chr(34) * (row == last)}", "yn"[row % 2]] for row in range(12)]
    header = ["text", "label"]
    content = end.join(",".join(reversed(row) if label_first else row) for row in [header, *rows])
    said = refused(tmp_path, content)
    assert f"line 4: a quoted cell of {last - 1} lines which look like rows themselves" in said


@pytest.mark.parametrize(
    "cell", ["roses are red, violets blue\nsugar is sweet", "a\nb\nc", "a,b\nc,d\ne", "so,\n", "what?\nn, a", "a, n\nb"]
)
def test_cells_of_several_lines_with_commas(tmp_path, cell):
    found = columns(tmp_path, f'text,label\nf,y\n"{cell}",y\ng,n\n')
    assert found == {"text": ["f", cell, "g"], "label": ["y", "y", "n"]}
    found = columns(tmp_path, f'label,text\ny,f\ny,"{cell}"\nn,g\n')
    assert found == {"text": ["f", cell, "g"], "label": ["y", "y", "n"]}


@pytest.mark.parametrize(
    "content",
    [
        'text,label\n"a,x\nb,y\nc",x\nd,y\n',  # x is known from the row that swallows the others alone
        'id,text,label\n1,"good,pos\n2,bad,neg\n3,ok",pos\n4,so,neg\n',
        'id,text\n0,z\n1,"a\n2,b\n3,c"\n4,d\n',  # nothing recurs, but an index goes on inside
        'id,text\n1,"a\n2,b"\n4,d\n',
        'id,text\n0,a\n1,"b\n2,c"\n',
    ],
)
def test_two_stray_quotes_in_a_few_rows(tmp_path, content):
    assert "which look like rows themselves" in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "cell"),
    [
        ('text,label\n"{}",y\nf,y\ng,n\n', "f,y\ng,n\n"),  # a table in a cell ends its last line
        ('text,label\n"{}",y\nf,y\ng,n\n', "my data:\ntext,y\nf,n\nwhat now"),
        ('id,text,label\n1,"{}",y\n2,f,n\n3,g,y\n', "good,y\nbad,so,n\nf,g"),  # "bad" is no number of an index
        ('id,text\n4,f\n5,"{}"\n6,g\n', "you need\n1,eggs\n2,milk"),
        ('text\nf\n"{}"\ng\n', "f\ng"),
    ],
)
def test_tables_inside_of_cells(tmp_path, content, cell):
    assert cell in columns(tmp_path, content.format(cell))["text"]


def test_places_are_lines(tmp_path):
    found = table(tmp_path, '\ntext,label\n"a\nb",1\n\nc,2\n')
    assert [found.place(row) for row in range(2)] == ["line 3", "line 6"]
    found = table(tmp_path, "sep=;\ntext;label\na;1\n")
    assert found.place(0) == "line 3"
    found = table(tmp_path, lines("", {"text": 1}, "", {"text": 2}), "a.jsonl")
    assert [found.place(row) for row in range(2)] == ["line 2", "line 4"]
    found = table(tmp_path, json.dumps([{"text": 1}, {"text": 2}], indent=1), "a.json")
    assert [found.place(row) for row in range(2)] == ["line 2", "line 5"]
    found = table(tmp_path, json.dumps([{"text": 1}, {"text": 2}]), "a.json")
    assert [found.place(row) for row in range(2)] == ["row 1", "row 2"]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("text,text", "names a column twice in its header: 'text', 'text'"),
        ("text, text ", "names a column twice"),
        (",", "has no names of columns"),
        ('"text,label', "line 1: a quote opens here that nothing closes"),
    ],
)
def test_headers_that_are_refused(tmp_path, header, said):
    assert said in refused(tmp_path, f"{header}\na,b\n")


# --- delimiters and encodings


@pytest.mark.parametrize("delimiter", [";", "\t", "|", "^", " ", "tab", "\\t", ","])
def test_a_delimiter_that_is_said(tmp_path, delimiter):
    content = PLAIN.replace("a b", "ab").replace("c d", "cd")
    character = "\t" if delimiter in ("tab", "\\t") else delimiter
    assert columns(tmp_path, content.replace(",", character), delimiter=delimiter)["text"] == ["ab", "cd"]


def test_commas_in_a_header_that_something_else_splits(tmp_path):
    content = "id;text, long;label\n1;a, b;x\n2;c;y\n"
    assert "task.delimiter=';'" in refused(tmp_path, content)
    assert columns(tmp_path, content, delimiter=";")["text, long"] == ["a, b", "c"]
    assert columns(tmp_path, '"text";"a, b"\nx;1\n') == {"text": ["x"], "a, b": ["1"]}


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n"])
def test_what_is_no_delimiter(tmp_path, delimiter):
    assert f"task.delimiter={delimiter!r}: one character" in refused(tmp_path, PLAIN, delimiter=delimiter)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_encodings(tmp_path, encoding, kind):
    content = "text\nnaïve\n" if kind == "csv" else '{"text": "naïve"}\n'
    encoded = content.encode(encoding)
    assert columns(tmp_path, encoded, f"a.{kind}", encoding=encoding) == {"text": ["naïve"]}
    if encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert columns(tmp_path, encoded, f"a.{kind}") == {"text": ["naïve"]}
    else:
        cure = encoding if encoding.startswith("utf") else "cp1252"
        assert f"task.encoding={cure!r}" in refused(tmp_path, encoded, f"a.{kind}")


@pytest.mark.parametrize("big", [False, True])
def test_utf_16_with_a_mark(tmp_path, big):
    mark, encoding = (b"\xfe\xff", "utf-16-be") if big else (b"\xff\xfe", "utf-16-le")
    assert columns(tmp_path, mark + PLAIN.encode(encoding)) == CELLS
    assert "is not 'utf-16'" in refused(tmp_path, mark + PLAIN.encode(encoding)[:-1])


def test_bytes_that_are_no_text(tmp_path):
    said = refused(tmp_path, b"text,label\r\na,1\r\n\xe9,2\r\n")
    assert "byte 0xe9 in line 3 is not 'utf-8'" in said
    assert "task.encoding='cp1252'" in said
    assert "task.encoding='utf-16-le'" in refused(tmp_path, PLAIN.encode("utf-16-le"))
    assert "line 2 has a zero byte" in refused(tmp_path, b"text\na\0b\n")


def test_a_byte_order_mark_is_right(tmp_path):
    """For a file with another encoding than the rest has: it was read as letters."""
    content = "label,text\nx,na\u00efve\n"
    for encoding in ("utf-8-sig", "utf-16"):
        for said in ("cp1252", "utf-16-be", "latin-1"):
            assert columns(tmp_path, content.encode(encoding), encoding=said)["text"] == ["na\u00efve"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text\n\u00e9\n".encode() + b"\xe9\n", "line 3 is not 'utf-8', though what stands before it is; save it anew"),
        (b"text\n" + b"a\n" * 200 + b"a\0\n", "line 202 has a zero byte, which no text in 'utf-8' has; take it out"),
        (gzip.compress(gzip.compress(b"text\na\n", mtime=0), mtime=0), "is compressed twice"),
        (bz2.compress(b"text\na\n"), "is compressed with bzip2"),
        (lzma.compress(b"text\na\n"), "is compressed with xz"),
        (b"PK\3\4\x14\0", "is a zip archive or a spreadsheet"),
    ],
    ids=["mixed", "zero", "gzip", "bzip2", "xz", "zip"],
)
def test_no_other_encoding_is_advised_where_none_helps(tmp_path, content, said):
    message = refused(tmp_path, content)
    assert said in message
    assert "task.encoding" not in message


def test_an_encoding_that_does_not_say_where_it_fails(tmp_path):
    assert "it is not 'punycode'" in refused(tmp_path, PLAIN, encoding="punycode")


@pytest.mark.parametrize("encoding", ["", "klingon", "hex", "rot13", "idna", "a\0b"])
def test_what_is_no_encoding(tmp_path, encoding):
    assert f"task.encoding={encoding!r} is no encoding" in refused(tmp_path, PLAIN, encoding=encoding)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b" \n\t\r\n", "is empty"),
        ("a.csv", b"\xef\xbb\xbf", "is empty"),
        ("a.csv", b"text,label\n", "is empty: it has no rows"),
        ("a.csv.gz", b"", "is empty"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.csv.gz", PLAIN.encode(), "cannot be read: Not a gzipped file"),
        ("a.csv.gz", gzip.compress(PLAIN.encode(), mtime=0)[:-9], "cannot be read: Compressed file ended"),
        ("a.jsonl.gz", gzip.compress(PLAIN.encode(), mtime=0)[:12] + b"\x99" * 40, "cannot be read: "),
        ("a.json", b"[]", "is empty: it has no rows"),
        ("a.jsonl", b"\n\n", "is empty"),
    ],
)
def test_files_without_rows(tmp_path, name, content, said):
    assert said in refused(tmp_path, content, name)


def test_a_folder_in_place_of_a_file(tmp_path):
    (tmp_path / "a.csv").mkdir()
    assert "a.csv' does not exist or is not a file" in message(name="csv", train=str(tmp_path / "a.csv"))


# --- what a JSON file holds


@pytest.mark.parametrize(
    ("written", "cell"),
    [
        ('"2020-01-01"', "2020-01-01"),
        ('"007"', "007"),
        ('"NaN"', "NaN"),
        ('"null"', "null"),
        ("12345678901234567891", "12345678901234567891"),
        ("1.50", "1.50"),
        ("1e3", "1e3"),
        ("-0", "-0"),
        ("true", "True"),
        ("false", "False"),
        ("null", None),
        ("NaN", None),
        ("[1]", NoText("a list")),
        ('{"a": 1}', NoText("an object")),
        ('"\\ud83d\\ude00"', "😀"),
        ('"\\ud800"', NoText("half of a surrogate pair")),
    ],
)
def test_json_cells(tmp_path, written, cell):
    rows = [f'{{"id": {row}, "text": {written}}}' for row in (1, 2)]
    expected = {"id": ["1", "2"], "text": [cell, cell]}
    assert columns(tmp_path, "\n".join(rows), "a.jsonl") == expected
    assert columns(tmp_path, "[" + ",\n".join(rows) + "]", "a.json") == expected
    assert columns(tmp_path, gzip.compress(("[" + ",".join(rows) + "]").encode(), mtime=0), "a.json.gz") == expected
    assert columns(tmp_path, "\ufeff" + "\r\n".join(rows), "a.json") == expected


def test_a_key_that_is_not_in_each_row(tmp_path):
    assert columns(tmp_path, lines({"a": 1}, {"b": 2, "a": 3}), "a.jsonl") == {"a": ["1", "3"], "b": [None, "2"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 2}}',
            "one object of lists or objects (text, label); a",
        ),
        ('{"text": ["a", "b"]}', "a file of rows is a list of objects, or an object in each line"),
        ('[["a", 1]]', "line 1: a list in place of an object"),
        ("[1]", "line 1: a value in place of an object"),
        ("null", "line 1: null in place of an object"),
        ('{"a": 1}\n{"a": 2,\n{"a": 3}\n', "line 3 is no JSON: Expecting property name"),
        ('{"a": 1}\n{"a": 2,\n{"a": 3}\n', "(the row begins in line 2)"),
        ('{"a": 1},\n{"a": 2}', "line 1 is no JSON"),
        ('[{"a": 1}', "line 1 is no JSON"),
        ('[{"a": 1},]', "line 1 is no JSON"),
        ('[{"a": 1}]\n[', "line 2 is no JSON: Extra data"),
        ('{"a": 1}\n{"b": 1, "b": 2}', "line 2: an object names 'b' twice"),
        ('{"a": 1, " a": 2}', "names a column twice: 'a'"),
        ("{}\n{}", "has empty objects alone"),
        ('{"a": ' + "[" * 99_999, "line 1 is nested too deep"),
    ],
)
def test_json_that_is_refused(tmp_path, content, said):
    assert said in refused(tmp_path, content, "a.json")


@pytest.mark.parametrize("behind", ["", "\n", '\n{"a": 3}\n'])
def test_a_line_of_json_that_breaks_off_is_named(tmp_path, behind):
    said = refused(tmp_path, '{"a": 1}\n{"a":' + behind, "a.jsonl")
    assert said.endswith("line 2 is no JSON: Expecting value")


def test_an_object_around_the_rows(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"version": 1, "data": [{"text": "a", "label": 1}]}')
    said = message(name="csv", train=str(path))
    assert "no column 'text'; it has " in said
    assert "a file of rows is a list of objects" in said


@pytest.mark.parametrize("column", ["text", "more", "label", "target"])
@pytest.mark.parametrize(("value", "kind"), [(["a"], "a list"), ({"a": 1}, "an object"), (None, None)])
@pytest.mark.parametrize("place", ["train", "validation"])
def test_cells_without_a_text_are_refused_with_row_and_column(tmp_path, column, value, kind, place):
    good = [{"text": "t", "more": "m", "label": n, "target": "u"} for n in (1, 2, 3)]
    (tmp_path / "good.jsonl").write_text(lines(*good))
    (tmp_path / "bad.jsonl").write_text(lines(good[0], good[1] | {column: value}, good[2]))
    paths = {"train": str(tmp_path / "good.jsonl"), "validation": str(tmp_path / "good.jsonl")}
    objective = "generation" if column == "target" else None
    said = message(name="csv", pair="more", objective=objective, **paths | {place: str(tmp_path / "bad.jsonl")})
    assert f"line 2, column {column!r} of file '{tmp_path}/bad.jsonl'" in said
    assert (kind or ("missing" if column == "label" else "no text")) in said


# --- labels


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["1_2", "2_1"], ["1_2", "2_1"]),
        (["2d4", "1e5"], ["1e5", "2d4"]),
        (["zero", "infinity", "-inf"], ["-inf", "infinity", "zero"]),
        (["2020-01-01", "2019-12-31"], ["2019-12-31", "2020-01-01"]),
        (["9007199254740993", "9007199254740992"], ["9007199254740992", "9007199254740993"]),
        (["10", "9", "-2"], ["-2", "9", "10"]),
        (["01", "02", "1"], ["01", "1", "02"]),
        (["1", "02", "01"], ["01", "1", "02"]),
        (["b ", "a", "b", " a"], ["a", "b"]),
        (["A", "a"], ["A", "a"]),
        (["v1.0", "v1.1"], ["v1.0", "v1.1"]),
        (["True", "False"], ["False", "True"]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_labels_are_texts(tmp_path, cells, names, kind):
    task = labels(tmp_path, cells, kind)
    assert task.label_names == names
    assert [names[label] for label in task.train.labels] == [cell.strip() for cell in cells]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([1, "1", 0, "0"], ["0", "1"]),
        ([10**19, 10**19 + 1], ["10000000000000000000", "10000000000000000001"]),
        ([True, False, "True"], ["False", "True"]),
    ],
)
def test_labels_of_json_by_their_spelling(tmp_path, cells, names):
    assert labels(tmp_path, cells, "jsonl").label_names == names


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["0", "1", "01"], "labels '01' (line 4) and '1' (line 3) of file "),
        (["1", "+1"], "labels '+1' (line 3) and '1' (line 2)"),
        (["True", "true", "False"], "labels 'True' (line 2) and 'true' (line 3)"),
        (["yes", "Yes"], "write them alike"),
        (["very good", "very  good"], "write them alike"),
        (["\u00e9t\u00e9", "e\u0301te\u0301"], "write them alike"),
        (["good", "go\u200bod"], "write them alike"),
        (["\ufeffa", "a"], "write them alike"),
        (["'good'", "good"], "write them alike"),
        (["<NA>", "a"], "label '<NA>' in line 2, column 'label'"),
        (["#N/A", "a"], "label '#N/A' in line 2"),
        (["1", "1.0"], "label '1.0' in line 3, column 'label'"),
        (["0.0", "1.0"], "is not a whole number or a text; write 0"),
        (["1.5", "x"], "label '1.5' in line 2"),
        (["1", ""], "label '' in line 3"),
    ],
)
def test_labels_that_would_be_two_classes_or_none(tmp_path, cells, said):
    with pytest.raises(UserError) as caught:
        labels(tmp_path, cells)
    assert said in str(caught.value)


# --- columns and rows


@pytest.mark.parametrize("names", [("on", "no"), ("1", "2"), ("yes", "null"), ("my text", "my label")])
def test_columns_of_any_name(tmp_path, names):
    path = tmp_path / "a.csv"
    path.write_text(f"{names[0]},{names[1]}\na,x\nb,y\n")
    options = TaskOptions("csv", train=str(path), validation=str(path), text=names[0], label=f" {names[1]} ")
    assert load_task(options, seed=0).train.texts == ["a", "b"]


def test_a_column_that_is_not_there_shows_those_that_are(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('" text",my label,"a;b"\na,x,\n')
    said = message(name="csv", train=str(path))
    assert "has no column 'label'; it has my label, 'a;b', text " in said
    assert "(split at ','; task.delimiter=';' would split at another)" in said
    path.write_text("text^label\na^x\n")
    said = message(name="csv", train=str(path))
    assert "it has 'text^label' (no ',' splits its header; task.delimiter sets another character)" in said


@pytest.mark.parametrize(
    "options",
    [
        {"text": "label"},
        {"text": " label "},
        {"pair": "label"},
        {"label": "text"},
        {"objective": "generation", "target": "text"},
        {"objective": "generation", "pair": "target"},
    ],
    ids=str,
)
def test_what_is_asked_for_is_not_fed_to_the_model(tmp_path, options):
    """Such a run was right in every row."""
    path = tmp_path / "a.csv"
    path.write_text("text,label,target\na,x,u\nb,y,v\n")
    assert "is also what the model reads" in message(name="csv", train=str(path), **options)


BAD = "text,label\na,x\nb\nc,d,x\n ,x\ne,\nf,nan\ng,y\n"


def test_bad_rows_are_refused_unless_they_are_skipped(tmp_path, caplog):
    (tmp_path / "bad.csv").write_text(BAD)
    (tmp_path / "good.csv").write_text("text,label\nz,x\n")
    train, good = str(tmp_path / "bad.csv"), str(tmp_path / "good.csv")
    assert "task.skip_bad_rows=true" in message(name="csv", train=train)
    with caplog.at_level("INFO", logger="halfback"):
        task = load_task(TaskOptions("csv", train=train, validation=good, skip_bad_rows=True), seed=0)
    assert (task.train.texts, task.label_names, task.skipped_rows) == (["a", "g"], ["x", "y"], 5)
    assert "bad.csv': 5 of 7 rows are not whole and are skipped (task.skip_bad_rows)" in caplog.text
    assert "good.csv" not in caplog.text


def test_skipped_rows_are_told_and_kept_in_the_summary(tmp_path, tiny_bert):
    path, out = tmp_path / "bad.csv", tmp_path / "run"
    path.write_text(BAD)
    model = [f"model.name={tiny_bert}", "model.cut=1", "algorithm.name=frozen_bottom", "bottom.lr=1e-3", "top.lr=1e-3"]
    data = ["task.name=csv", f"task.train={path}", f"task.validation={path}", "task.max_length=16", "clients=2"]
    arguments = ["train", *model, *data, "sampled_clients=2", "batch_size=2", "steps=1", "device=cpu", "--out", out]
    assert "line 3: 1 field, but the header has 2; task.skip_bad_rows=true" in refusal(halfback(*arguments))
    said = halfback(*arguments, "task.skip_bad_rows=true")
    assert said.status == 0, said.err
    assert "5 of 7 rows are not whole and are skipped (task.skip_bad_rows)" in said.out
    assert read_summary(out)["skipped_rows"] == 10
    written = json.loads((out / "summary.json").read_text())
    del written["skipped_rows"]  # as a run of an earlier version has it
    (out / "summary.json").write_text(json.dumps(written))
    assert read_summary(out)["skipped_rows"] == 0


def test_skipped_rows_of_json_pairs_and_targets(tmp_path):
    rows = [{"text": "a", "more": "m", "target": "t"}, {"text": "a", "more": None, "target": "t"}]
    rows += [{"text": "a", "more": "", "target": "t"}, {"text": "a", "more": "m"}, {"more": "m", "target": "t"}]
    path = tmp_path / "a.jsonl"
    path.write_text(lines(*rows))
    options = TaskOptions("csv", train=str(path), validation=str(path), pair="more", objective="generation")
    with pytest.raises(UserError, match="line 5, column 'text'"):
        load_task(options, seed=0)
    task = load_task(replace(options, skip_bad_rows=True), seed=0)
    assert (task.train.pairs, task.skipped_rows) == (["m", ""], 6)


def test_what_skipping_does_not_mend(tmp_path):
    (tmp_path / "none.csv").write_text("text,label\n,\n")
    said = message(name="csv", train=str(tmp_path / "none.csv"), skip_bad_rows=True)
    assert "no whole row: task.skip_bad_rows skips all 1" in said
    (tmp_path / "short.csv").write_text("text,label;x\na;b\nc;d\n")
    said = message(name="csv", train=str(tmp_path / "short.csv"), skip_bad_rows=True)
    assert "no whole row: task.skip_bad_rows skips all 2 (split at ','; task.delimiter=';' would split" in said
    (tmp_path / "quotes.csv").write_text('text,label\n"a,x\nb,y\n')
    assert "a quote opens here" in message(name="csv", train=str(tmp_path / "quotes.csv"), skip_bad_rows=True)
    (tmp_path / "list.jsonl").write_text(lines({"text": ["a"], "label": 1}, {"text": "b", "label": 2}))
    assert "has a list" in message(name="csv", train=str(tmp_path / "list.jsonl"), skip_bad_rows=True)


@pytest.mark.parametrize("option", [{"delimiter": ";"}, {"encoding": "utf-8"}, {"skip_bad_rows": True}])
def test_tasks_with_files_of_their_own_take_no_such_option(option):
    assert "has no meaning for task 'sst2'" in message(name="sst2", **option)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.json", "a.jsonl"])
@pytest.mark.parametrize("task", ["csv", "hub"])
def test_a_file_replaced_with_the_same_time_is_read_again(tmp_path, name, task):
    folder = tmp_path / "set"
    folder.mkdir()
    path = folder / name.replace("a.", "train.")
    for text in ("old", "new"):
        if "json" in name:
            content = lines({"text": text, "label": 1}, {"text": text, "label": 2}).encode()
        else:
            content = f"text,label\n{text},1\n{text},2\n".encode()
        path.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
        os.utime(path, (1, 1))
        train, part = (str(path), str(path)) if task == "csv" else (str(folder), "train")
        assert load_task(TaskOptions(task, train=train, validation=part), seed=0).train.texts == [text, text]


def test_a_site_says_how_its_own_files_are_read(tmp_path):
    path = tmp_path / "halfback.yaml"
    path.write_text("data: {name: csv, train: a.csv, delimiter: ';', encoding: cp1252}\n")
    data = read_site(path).data
    assert (data.delimiter, data.encoding) == (";", "cp1252")
