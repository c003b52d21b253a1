import csv
import io
import tracemalloc

import pytest

from data_loaders.panda_dense import panda_csv
from data_loaders.panda_dense.panda_csv import PandaCsv, parse_span, video_id_of
from data_loaders.schema import DataError

HEADER = ["videoID", "url", "timestamp", "caption", "matching_score"]
FULL = [*HEADER, "desirable_filtering", "shot_boundary_detection"]


def row(video="aaa", *, spans=None, captions=None, scores=None, desirable=None, shots=None):
    spans = spans or [["0:00:01.500", "0:00:09.250"], ["1:02:03.004", "1:02:13.000"]]
    count = len(spans)
    captions = captions or [f"it's clip {i} of {video}" for i in range(count)]
    one_shot = ["0:00:00.000", "0:00:05.000"]
    lists = (
        spans,
        captions,
        scores or [0.5] * count,
        desirable or ["desirable"] * count,
        shots or [[one_shot]] * count,
    )
    return [video, f"https://www.youtube.com/watch?v={video}", *map(str, lists)]


def write(path, rows, *, header=FULL):
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(values[: len(header)] for values in rows)
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def test_clips_of_good_rows(tmp_path):
    shots = [[["0:00:00.000", "0:00:02.000"], ["0:00:02.000", "0:00:07.000"]], [["0", "1"]]]
    path = write(
        tmp_path / "a.csv",
        [row(scores=[0.4375, 1], desirable=["desirable", "2_tiny_camera_movement"], shots=shots)],
    )
    clips = PandaCsv(path)
    one, other = clips
    assert (one.video_id, one.start, one.end) == ("aaa", 1.5, 9.25)
    assert one.url == "https://www.youtube.com/watch?v=aaa"
    assert (one.caption, one.matching_score) == ("it's clip 0 of aaa", 0.4375)
    assert (one.desirable, one.shots) == ("desirable", 2)
    assert (other.start, other.end) == (3723.004, 3733.0)
    assert (other.matching_score, other.desirable, other.shots) == (
        1.0,
        "2_tiny_camera_movement",
        1,
    )
    assert clips.tally.counts == {}


def test_optional_columns_may_be_absent_and_the_order_is_free(tmp_path):
    header = ["caption", "videoID", "note", "matching_score", "timestamp", "url"]
    values = ["['x']", "v", 'said "so",\nand went', "[0.1]", "[[1, 2.5]]", "u"]
    path = write(tmp_path / "a.csv", [values], header=header)
    (clip,) = PandaCsv(path)
    assert (clip.start, clip.end, clip.desirable, clip.shots) == (1.0, 2.5, "", None)


@pytest.mark.parametrize("name", HEADER)
def test_a_missing_required_column_is_an_error_before_work(tmp_path, name):
    header = [column for column in FULL if column != name]
    path = write(tmp_path / "a.csv", [], header=header)
    with pytest.raises(DataError, match=f"missing {name}"):
        PandaCsv(path)


def test_a_missing_or_empty_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        PandaCsv(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(DataError, match="found nothing"):
        PandaCsv(tmp_path / "empty.csv")


def replaced(column, value):
    values = row("bad")
    values[FULL.index(column)] = value
    return values


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (replaced("timestamp", "[['0:00:01', '0:00:02']]"), "lists of different lengths"),
        (replaced("caption", "['one', 'two'"), "bad list"),
        (replaced("caption", "__import__('os').getcwd()"), "bad list"),
        (replaced("caption", "('one', 'two')"), "bad list"),
        (replaced("caption", "[" * 5000), "bad list"),
        (replaced("matching_score", ""), "bad list"),
        (replaced("url", "a\0b"), "NUL byte"),
        (replaced("videoID", " "), "no video id"),
        (row("bad")[:5], "wrong number of columns"),
        ([*row("bad"), "more"], "wrong number of columns"),
    ],
)
def test_broken_rows_cost_themselves(tmp_path, values, reason):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([FULL, row("aaa"), values, row("bbb")])
    path = tmp_path / "a.csv"
    path.write_text(text.getvalue())
    clips = PandaCsv(path)
    assert [clip.video_id for clip in clips] == ["aaa", "aaa", "bbb", "bbb"]
    assert clips.tally.counts == {reason: 1}
    assert clips.tally.places[reason] == ["line 3"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spans": [["0:00:01.0", "0:00:02.0"], ["0:61:00", "1:00:00"]]}, "bad time stamp"),
        ({"spans": [[0, 1], [5, 5.0001]]}, "end is not after start"),
        ({"spans": [[0, 1], [9, 8]]}, "end is not after start"),
        ({"spans": [[0, 1], [-1, 8]]}, "bad time stamp"),
        ({"spans": [[0, 1], 7]}, "bad time stamp"),
        ({"spans": [[0, 1], [0, 1e999]]}, "bad list"),
        ({"captions": ["fine", 3]}, "caption is no text"),
        ({"scores": [0.5, None]}, "bad matching_score"),
        ({"scores": [0.5, True]}, "bad matching_score"),
        ({"shots": [[["0", "1"]], "x"]}, "bad shot_boundary_detection"),
        ({"desirable": ["desirable", 4]}, "desirable_filtering is no text"),
    ],
)
def test_broken_clips_cost_themselves(tmp_path, change, reason):
    clips = PandaCsv(write(tmp_path / "a.csv", [row(**change)]))
    kept = list(clips)
    if reason == "bad list":  # inf is a name and no literal
        assert not kept and clips.tally.places[reason] == ["line 2"]
    else:
        assert len(kept) == 1 and clips.tally.places[reason] == ["line 2, clip 1"]
    assert clips.tally.counts == {reason: 1}


def test_bytes_that_are_no_utf8(tmp_path):
    path = write(tmp_path / "a.csv", [row("aaa"), row("bbb"), row("ccc")])
    path.write_bytes(path.read_bytes().replace(b"clip 1 of bbb", b"caf\xe9"))
    clips = PandaCsv(path)
    assert [clip.video_id for clip in clips] == ["aaa", "aaa", "ccc", "ccc"]
    assert clips.tally.counts == {"not UTF-8": 1}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = write(tmp_path / "a.csv", [row("aaa")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(list(PandaCsv(path))) == 2


@pytest.mark.parametrize("others", [1, 40])
def test_an_open_quote_does_not_swallow_what_follows(tmp_path, others):
    path = write(tmp_path / "a.csv", [row(f"v{i:02d}") for i in range(others + 1)])
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace('"[[', "[[", 1)  # a field that now ends in a quote of its own
    path.write_text("".join(lines))
    clips = PandaCsv(path)
    assert {clip.video_id for clip in clips} == {f"v{i:02d}" for i in range(1, others + 1)}
    assert clips.tally.total == 1


def test_two_open_quotes_do_not_swallow_what_lies_between(tmp_path):
    path = write(tmp_path / "a.csv", [row(f"v{i}") for i in range(5)])
    lines = path.read_text().splitlines(keepends=True)
    for i in (1, 3):
        lines[i] = lines[i].rstrip()[:-1] + "\n"
    path.write_text("".join(lines))
    clips = PandaCsv(path)
    assert [clip.video_id for clip in clips][::2] == ["v1", "v3", "v4"]
    assert clips.tally.counts == {"bad quotes": 2}


def test_oversized_rows_are_counted_and_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(panda_csv, "MOST_ROW_BYTES", 4000)
    path = write(tmp_path / "a.csv", [row("aaa"), row("bbb", captions=["x" * 9000, "y"]), row("c")])
    clips = PandaCsv(path)
    assert [clip.video_id for clip in clips] == ["aaa", "aaa", "c", "c"]
    assert clips.tally.counts == {"oversized row": 1}
    assert clips.tally.places == {"oversized row": ["line 3"]}


def test_fields_beyond_the_limit_of_the_csv_module(tmp_path):
    captions = [f"{i} " + "word " * 20 for i in range(3000)]  # 300 kB; csv's own limit is 131072
    spans = [[i, i + 1] for i in range(3000)]
    clips = list(PandaCsv(write(tmp_path / "a.csv", [row(spans=spans, captions=captions)])))
    assert len(clips) == 3000 and clips[2999].caption.startswith("2999 ")


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for rows in (100, 1000):
        path = write(tmp_path / "a.csv", [row(f"v{i}") for i in range(rows)])
        clips = PandaCsv(path)
        tracemalloc.start()
        assert sum(1 for _ in clips) == 2 * rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert path.stat().st_size > 230_000
    assert peaks[1] < peaks[0] + 40_000


@pytest.mark.parametrize(
    ("span", "seconds"),
    [
        (["0:00:08.308", "0:00:17.134"], (8.308, 17.134)),
        (("00:00:08.308", "12:00:17"), (8.308, 43217.0)),
        ([8, 9.5], (8.0, 9.5)),
    ],
)
def test_spans(span, seconds):
    assert parse_span(span) == seconds


@pytest.mark.parametrize(
    ("url", "video"),
    [
        ("https://www.youtube.com/watch?v=-2uV3cKMLQg&t=3", "-2uV3cKMLQg"),
        ("https://youtu.be/-2uV3cKMLQg", "-2uV3cKMLQg"),
        ("https://example.org/watch?v=x", ""),
        ("http://[", ""),
        ("", ""),
    ],
)
def test_ids_of_addresses(url, video):
    assert video_id_of(url) == video
