import csv
import io
import json
import shutil
import tarfile

import pytest

from data_loaders.panda_dense.panda_table import PandaTable
from data_loaders.panda_dense.sidecars import ClipSource, plain, with_sidecars
from data_loaders.panda_dense.sources import IngestSettings, check_ingest, list_clips
from data_loaders.schema import DataError, valid_key

COLUMNS = [
    "videoID", "url", "timestamp", "caption", "matching_score",
    "desirable_filtering", "shot_boundary_detection",
]  # fmt: skip
VIDEO = b"a video, as far as a listing cares"


def url_of(video):
    return f"https://www.youtube.com/watch?v={video}"


def write_csv(path, videos):
    """Two clips per video: desirable with one shot, and a tiny movement with two."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for video in videos:
            writer.writerow(
                [
                    video,
                    url_of(video),
                    "[['0:00:01.500', '0:00:09.250'], ['0:01:00.000', '0:01:10.004']]",
                    f"['first of {video}', 'second of {video}']",
                    "[0.5, 0.75]",
                    "['desirable', '2_tiny_camera_movement']",
                    "[[['0', '7']], [['0', '3'], ['3', '10']]]",
                ]
            )
    return path


def downloaded(video="Vid-eo_0001", *, number=0, columns=True, **fields):
    """What Panda-70M's downloader writes into a .json."""
    spans = ["[('00:00:01.500', '00:00:09.250')]", "[('00:01:00.000', '00:01:10.004')]"]
    record = {
        "url": url_of(video),
        "clips": spans[number],
        "caption": f"caption {number}",
        "key": f"0000000_{number:05d}",
        "status": "success",
        "error_message": None,
        "yt_meta_dict": {"info": {"title": "a title"}},
    }
    if columns:
        record |= {
            "matching_score": "0.4375",
            "desirable_filtering": "desirable",
            "shot_boundary_detection": "[['0:00:00.000', '0:00:07.750']]",
        }
    return record | fields


FAILED = downloaded(status="failed_to_download", error_message="private") | {
    "clips": "[['0:00:01.500', '0:00:09.250'], ['0:01:00.000', '0:01:10.004']]"
}


def samples():
    """(stem, ending, content) of a shard of the downloader: two clips and one that failed."""
    for number in range(2):
        stem = f"0000000_{number:05d}"
        yield stem, "mp4", VIDEO
        yield stem, "txt", f"caption {number}".encode()
        yield stem, "json", json.dumps(downloaded(number=number)).encode()
    yield "0000001", "txt", b"['caption', 'another']"
    yield "0000001", "json", json.dumps(FAILED).encode()


def files_of(root):
    folder = root / "00000"
    folder.mkdir(parents=True)
    for stem, ending, content in samples():
        (folder / f"{stem}.{ending}").write_bytes(content)
    return root


def tar_of(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tars_of(root):
    tar_of(root / "00000.tar", [(f"{stem}.{end}", data) for stem, end, data in samples()])
    return root


def listed(root, **settings):
    listing = list_clips(IngestSettings(videos=str(root), **settings))
    clips = list(listing)
    assert len({clip.key for clip in clips}) == len(clips)
    assert all(valid_key(clip.key) for clip in clips)
    return clips, listing


@pytest.mark.parametrize(
    ("make", "layout", "member", "file"),
    [(files_of, "files", "", "0000000_00000.mp4"), (tars_of, "tars", "0000000_00000", "00000.tar")],
)
def test_what_the_downloader_leaves(tmp_path, make, layout, member, file):
    clips, listing = listed(make(tmp_path / "a"))
    assert listing.layout == layout and len(clips) == 2
    clip = clips[0]
    assert clip.key == "Vid-eo_0001_0001500_0009250"
    assert (clip.dataset, clip.video_id, clip.url) == (
        "panda70m", "Vid-eo_0001", url_of("Vid-eo_0001"),
    )  # fmt: skip
    assert (clip.start, clip.end, clip.is_cut) == (1.5, 9.25, True)
    assert clip.path.endswith(file) and clip.member == member
    assert (clip.caption_short, clip.caption_long) == ("caption 0", "")
    assert (clip.matching_score, clip.desirable, clip.shots) == (0.4375, "desirable", 1)
    assert listing.tally.counts == {"missing video: failed_to_download": 1}


def test_a_clip_is_the_same_however_it_came(tmp_path):
    files, _ = listed(files_of(tmp_path / "files"))
    tars, _ = listed(tars_of(tmp_path / "tars"))
    raw, _ = listed(
        raw_of(tmp_path / "raw"), csv=str(write_csv(tmp_path / "a.csv", ["Vid-eo_0001"]))
    )
    assert [clip.key for clip in files] == [clip.key for clip in tars] == [c.key for c in raw]


def test_columns_come_from_the_csv_where_the_downloader_left_them_out(tmp_path):
    folder = tmp_path / "videos" / "00000"
    folder.mkdir(parents=True)
    for number, video in enumerate(("Vid-eo_0001", "Vid-eo_0001", "Unknown-001")):
        (folder / f"{number}.mp4").write_bytes(VIDEO)
        record = downloaded(video, number=min(number, 1), columns=False)
        (folder / f"{number}.json").write_text(json.dumps(record))
    table = write_csv(tmp_path / "a.csv", ["Other-00001", "Vid-eo_0001"])
    clips, listing = listed(tmp_path / "videos", csv=str(table))
    facts = [(clip.matching_score, clip.desirable, clip.shots) for clip in clips]
    assert facts == [
        (0.5, "desirable", 1),
        (0.75, "2_tiny_camera_movement", 2),
        (None, "", None),
    ]
    assert listing.tally.counts == {"kept, but not in the CSV": 1}


def raw_of(root, *, videos=("Vid-eo_0001",), ending="webm"):
    (root / "part").mkdir(parents=True)
    for video in videos:
        (root / "part" / f"{video}.{ending}").write_bytes(VIDEO)
    return root


def test_raw_videos_are_cut_by_the_csv_and_may_be_missing(tmp_path):
    table = write_csv(tmp_path / "a.csv", ["Vid-eo_0002", "Vid-eo_0001"])
    clips, listing = listed(raw_of(tmp_path / "raw"), csv=str(table))
    assert listing.layout == "raw"
    assert [clip.video_id for clip in clips] == ["Vid-eo_0002"] * 2 + ["Vid-eo_0001"] * 2
    assert [bool(clip.path) for clip in clips] == [False, False, True, True]
    assert listing.tally.counts == {"missing video": 2}
    clip = clips[3]
    assert (clip.start, clip.end, clip.is_cut, clip.member) == (60.0, 70.004, False, "")
    assert clip.caption_short == "second of Vid-eo_0001"
    assert (clip.matching_score, clip.desirable, clip.shots) == (0.75, "2_tiny_camera_movement", 2)
    shutil.copy(clip.path, tmp_path / "raw" / "Vid-eo_0002.mp4")
    found, again = listed(tmp_path / "raw", csv=str(table))
    assert all(clip.path for clip in found) and again.tally.counts == {}
    assert [clip.key for clip in found] == [clip.key for clip in clips]


def test_repeated_rows_and_faults_of_the_csv_are_counted(tmp_path):
    table = write_csv(tmp_path / "a.csv", ["Vid-eo_0001", "x", "Vid-eo_0001"])
    with table.open("a") as file:
        file.write('"odd,row\n')
    clips, listing = listed(raw_of(tmp_path / "raw"), csv=str(table))
    assert len(clips) == 4
    assert listing.tally.counts == {"missing video": 2, "duplicate": 2, "CSV: bad quotes": 1}


def test_any_folder_with_captions_for_some(tmp_path):
    root = tmp_path / "my videos"
    (root / "sub").mkdir(parents=True)
    names = ("b.mp4", "a.MOV", "sub/b.mp4", "sub/c d.mkv", "b.mov", ".hidden.mp4", "notes.txt")
    for name in names:
        (root / name).write_bytes(VIDEO)
    lines = [
        {"path": "b.mp4", "caption": "one"},
        {"path": "sub/b.mp4", "caption_short": "short", "caption_long": "long"},
        {"path": "gone.mp4", "caption": "x"},
        {"path": "b.mp4", "caption": "again"},
        {"path": "a.MOV", "caption": ""},
    ]
    captions = tmp_path / "captions.jsonl"
    captions.write_text("\n".join(map(json.dumps, lines)))
    clips, listing = listed(root, captions=str(captions))
    assert [clip.path.removeprefix(f"{root}/") for clip in clips] == [
        "a.MOV", "b.mov", "b.mp4", "sub/b.mp4", "sub/c d.mkv",
    ]  # fmt: skip
    assert clips[2].key == "b" and clips[1].key.startswith("b_mov-")
    assert clips[3].key.startswith("sub_b-") and clips[4].key.startswith("sub_c_d_mkv-")
    texts = [(clip.caption_short, clip.caption_long) for clip in clips]
    assert texts == [("", ""), ("", ""), ("one", ""), ("short", "long"), ("", "")]
    assert {clip.dataset for clip in clips} == {"videos"}
    assert all(clip.end is None and clip.is_cut for clip in clips)
    assert listing.tally.counts == {
        "bad row of captions": 1,
        "captions of a video that has some": 1,
        "captions without a video": 1,
    }


def test_captions_of_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    root = tmp_path / "videos"
    root.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (root / name).write_bytes(VIDEO)
    table = pandas.DataFrame(
        {"path": ["a.mp4", "b.mp4"], "caption": ["x", None], "caption_short": [None, "y"]}
    )
    table.to_parquet(tmp_path / "c.parquet")
    clips, _ = listed(root, captions=str(tmp_path / "c.parquet"))
    assert [clip.caption_short for clip in clips] == ["x", "y"]


def test_keys_do_not_depend_on_the_place_or_on_other_files(tmp_path):
    files_of(tmp_path / "a")
    (tmp_path / "a" / "x y.mp4").write_bytes(VIDEO)
    (tmp_path / "a" / "00000" / "x.mp4").write_bytes(VIDEO)
    before, _ = listed(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "deeper" / "b")
    (tmp_path / "deeper" / "b" / "a new one.mp4").write_bytes(VIDEO)
    after, _ = listed(tmp_path / "deeper" / "b")
    assert {clip.key for clip in before} < {clip.key for clip in after}
    assert len(after) == len(before) + 1


def test_foreign_webdataset_tars_as_webdataset_reads_them(tmp_path):
    from webdataset.tariterators import group_by_keys, tar_file_expander

    path = tar_of(
        tmp_path / "data" / "train-000.tar",
        [
            ("dir/one.mp4", VIDEO),
            ("dir/one.txt", b"said of one"),
            ("dir/one.json", json.dumps({"video_id": "movie 7", "caption": "other"}).encode()),
            ("two.webm", VIDEO),
            ("two.json", b"{"),
            ("three.json", json.dumps({"caption": "no video"}).encode()),
        ],
    )
    clips, listing = listed(tmp_path / "data")
    assert [clip.member for clip in clips] == ["dir/one", "two"]
    assert [clip.caption_short for clip in clips] == ["said of one", ""]
    assert clips[0].video_id == "movie 7" and clips[1].video_id == "train-000/two"
    assert listing.tally.counts == {
        "kept, but its .json cannot be read": 1,
        "missing video: no video in the sample": 1,
    }
    with path.open("rb") as file:
        members = tar_file_expander([{"url": str(path), "stream": file}])
        theirs = [sample["__key__"] for sample in group_by_keys(members)]
    assert theirs == ["dir/one", "two", "three"]


@pytest.mark.parametrize("size", [3072, 3300, 4000, 4608])
def test_of_a_damaged_tar_the_last_sample_is_left_out(tmp_path, size):
    path = tars_of(tmp_path / "a") / "00000.tar"
    # Cut at the end of the first sample, in a header, after the second video, after its caption.
    path.write_bytes(path.read_bytes()[:size])
    clips, listing = listed(tmp_path / "a")
    assert [clip.member for clip in clips] == (["0000000_00000"] if size > 3300 else [])
    assert listing.tally.counts == {"damaged tar: the rest is missing": 1}


def test_what_is_no_tar_is_counted(tmp_path):
    tars_of(tmp_path / "a")
    (tmp_path / "a" / "00001.tar").write_bytes(b"no tar " * 1000)
    clips, listing = listed(tmp_path / "a")
    assert len(clips) == 2 and listing.tally.counts["unreadable tar"] == 1


def test_our_shards(tmp_path):
    from data_loaders.shards import write_shards
    from data_loaders.synthetic import WorldConfig, make_clip

    world = WorldConfig(frames=5, height=32, width=48, world="simple")
    made = [make_clip(i, seed=0, config=world) for i in range(3)]
    write_shards(made, tmp_path / "shards", samples_per_shard=2)
    clips, listing = listed(tmp_path / "shards")
    assert listing.layout == "shards"
    assert [clip.key for clip in clips] == [clip.member for clip in clips] == [s.key for s in made]
    assert [clip.path[-16:] for clip in clips] == ["shard-000000.tar"] * 2 + ["shard-000001.tar"]
    assert clips[0].dataset == made[0].meta.source
    assert clips[0].caption_short == made[0].caption_short


def test_duplicates_of_one_span_are_left_out(tmp_path):
    for shard in ("00000", "00001"):
        (tmp_path / "a" / shard).mkdir(parents=True)
        (tmp_path / "a" / shard / "0.mp4").write_bytes(VIDEO)
        (tmp_path / "a" / shard / "0.json").write_text(json.dumps(downloaded()))
    clips, listing = listed(tmp_path / "a")
    assert len(clips) == 1 and listing.tally.counts == {"duplicate": 1}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"matching_score": "nonsense"}, {"matching_score": None}),
        ({"matching_score": "[0.5, 0.6]"}, {"matching_score": None}),
        ({"shot_boundary_detection": "[["}, {"shots": None}),
        ({"clips": "[('00:00:05.0', '00:00:01.0')]"}, {"end": None, "key": "k"}),
        ({"clips": None}, {"end": None, "key": "k"}),
        ({"url": 7}, {"video_id": "v", "url": "", "key": "k"}),
        ({"videoID": "mine"}, {"video_id": "mine", "key": "mine_0001500_0009250"}),
        ({"url": "https://a.example/b.mp4"}, {"video_id": "https://a.example/b.mp4"}),
    ],
)
def test_odd_fields_of_a_record_cost_themselves(fields, expected):
    clip = ClipSource(key="k", dataset="d", video_id="v")
    clip = with_sidecars(clip, text=" said\n", record=downloaded(**fields))
    assert clip.caption_short == "said"
    assert {name: getattr(clip, name) for name in expected} == expected


def test_keys_of_names_that_would_collide():
    names = ["a b", "a_b", "a.b", "a/b", "b" * 70, "b" * 71, "\udce9", "-abc"]
    keys = [plain(name) for name in names]
    assert len(set(keys)) == len(names) and all(map(valid_key, keys))
    assert plain("a_b") == "a_b" and plain("-abc") == "-abc"


def test_the_table_of_an_empty_csv_knows_nothing():
    table = PandaTable.of([])
    assert table.fill(ClipSource(key="k", dataset="d", video_id="v", end=2.0)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": "nowhere"}, r"ingest\.videos: expected a folder, got 'nowhere'"),
        ({"csv": "nowhere"}, r"ingest\.csv: expected a file, got 'nowhere'"),
        ({"captions": "nowhere"}, r"ingest\.captions: expected a file"),
        ({"layout": "raw"}, r"ingest\.csv: expected Panda-70M's CSV for layout 'raw'"),
        ({"dataset": " "}, r"ingest\.dataset: expected a name"),
    ],
)
def test_settings_are_checked(tmp_path, change, message):
    settings = IngestSettings(**({"videos": str(tmp_path)} | change))
    with pytest.raises(DataError, match=message):
        check_ingest(settings, section="ingest")


def test_a_folder_without_videos_is_an_error(tmp_path):
    with pytest.raises(DataError, match="expected videos"):
        list_clips(IngestSettings(videos=str(tmp_path)))
