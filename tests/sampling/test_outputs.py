"""Files of a sample: complete, readable, exact where they should be."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from sat_udpdiff import outputs
from sat_udpdiff.colormaps import depth as depth_map
from sat_udpdiff.config import Config
from sat_udpdiff.config_io import load_config
from sat_udpdiff.generation import GeneratedSample
from sat_udpdiff.outputs import contact_sheet, paint_ids, side_by_side, write_sample

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 200, (5, 16, 24)).astype(np.int32)
DEPTH = RNG.random((5, 16, 24), dtype=np.float32)
RGB = RNG.integers(0, 256, (5, 16, 24, 3), dtype=np.uint8)
SEGMENTATION = GeneratedSample(
    prompt="a red disc",
    task="segmentation",
    seed=3,
    rgb=RGB,
    dense=paint_ids(IDS),
    entity_ids=IDS,
    depth=None,
)
DEPTH_SAMPLE = replace(
    SEGMENTATION, task="depth", dense=depth_map.encode(DEPTH), entity_ids=None, depth=DEPTH
)
BASELINE = replace(SEGMENTATION, task=None, dense=None, entity_ids=None)


def write(sample, folder, **keywords):
    write_sample(sample, folder, config=Config(), record={"seed": sample.seed}, **keywords)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def read_pngs(folder):
    frames = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            frames.append(np.array(image))
    return frames


def test_segmentation_folder(tmp_path):
    write(SEGMENTATION, tmp_path / "out")
    assert names(tmp_path / "out") == [
        "config.yaml",
        "contact_sheet.png",
        "dense.mp4",
        "ids",
        "ids.npz",
        "sample.json",
        "side_by_side.mp4",
        "video.mp4",
    ]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "ids.npz")["ids"], IDS)
    np.testing.assert_array_equal(read_pngs(tmp_path / "out" / "ids"), IDS)
    with Image.open(tmp_path / "out" / "ids" / "00000.png") as image:
        assert image.mode == "P"


def test_ids_above_one_byte_are_exact(tmp_path):
    ids = IDS + 1000
    write(replace(SEGMENTATION, entity_ids=ids), tmp_path / "out")
    np.testing.assert_array_equal(read_pngs(tmp_path / "out" / "ids"), ids)


def test_depth_folder(tmp_path):
    write(DEPTH_SAMPLE, tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "depth.npz")["depth"], DEPTH)
    stored = np.stack(read_pngs(tmp_path / "out" / "depth"))
    assert stored.dtype == np.uint16
    assert np.abs(stored / 65535 - DEPTH).max() <= 0.5 / 65535 + 1e-7


def test_baseline_folder_has_no_map(tmp_path):
    write(BASELINE, tmp_path / "out")
    assert names(tmp_path / "out") == [
        "config.yaml",
        "contact_sheet.png",
        "sample.json",
        "video.mp4",
    ]


@pytest.mark.parametrize("sample", [SEGMENTATION, DEPTH_SAMPLE])
def test_videos_play_everywhere_and_at_the_right_speed(tmp_path, sample):
    config = Config()
    config = replace(config, data=replace(config.data, fps=6.0))
    write_sample(sample, tmp_path / "out", config=config, record={})
    for name in ("video", "dense", "side_by_side"):
        with av.open(str(tmp_path / "out" / f"{name}.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert float(stream.average_rate) == 6.0
            assert sum(1 for _ in container.decode(stream)) == 5


def test_record_and_configuration_can_be_read_back(tmp_path):
    write(SEGMENTATION, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "sample.json").read_text()) == {"seed": 3}
    assert load_config([str(tmp_path / "out" / "config.yaml")]) == Config()


def test_existing_folders_are_kept_unless_asked(tmp_path):
    write(SEGMENTATION, tmp_path / "out")
    with pytest.raises(FileExistsError, match="exists already"):
        write(DEPTH_SAMPLE, tmp_path / "out")
    assert (tmp_path / "out" / "ids.npz").exists()
    write(DEPTH_SAMPLE, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "ids.npz").exists()
    assert names(tmp_path) == ["out"]


def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path, monkeypatch):
    write(SEGMENTATION, tmp_path / "out")

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "save_config", full_disk)
    for folder in ("out", "new"):
        with pytest.raises(OSError, match="No space left"):
            write(DEPTH_SAMPLE, tmp_path / folder, overwrite=True)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "ids.npz").exists()


@pytest.mark.parametrize(("sample", "rows"), [(SEGMENTATION, 3), (DEPTH_SAMPLE, 3), (BASELINE, 1)])
def test_contact_sheet_shows_the_very_frames(sample, rows):
    sheet = np.asarray(contact_sheet(sample))
    assert sheet.shape[1] == 92 + 5 * (192 + 4)
    # 24 pixels wide on 192: every pixel is a block of 8 x 8.
    bottom = sheet[-132 * rows : -132 * (rows - 1) or None][:128, 92:284]
    np.testing.assert_array_equal(bottom[4::8, 4::8], RGB[0])


def test_contact_sheet_takes_first_and_last_of_long_clips():
    long = replace(BASELINE, rgb=RGB[[0, 1, 1, 1, 1, 1, 1, 1, 2]])
    sheet = np.asarray(contact_sheet(long))
    np.testing.assert_array_equal(sheet[-132:-4, -196:-4][4::8, 4::8], RGB[2])


def test_long_prompts_and_single_frames_fit():
    sample = replace(BASELINE, prompt="a red disc moves left " * 30, rgb=RGB[:1])
    assert contact_sheet(sample).size[0] == 92 + 196


def test_side_by_side_enlarges_by_whole_pixels():
    frames = side_by_side(SEGMENTATION)
    assert frames.shape == (5, 192, 3 * 24 * 12, 3)
    np.testing.assert_array_equal(frames[:, 6::12, 6::12][:, :, :24], RGB)


def test_ids_are_painted_apart_and_unlabelled_is_black():
    painted = paint_ids(np.arange(256, dtype=np.int32).reshape(1, 16, 16))
    colors = painted.reshape(-1, 3)
    assert colors[0].tolist() == [0, 0, 0]
    assert len(np.unique(colors, axis=0)) == 256
    first = colors[1:9].astype(int)
    distances = np.linalg.norm(first[:, None] - first[None], axis=-1)
    assert distances[np.triu_indices(8, 1)].min() > 60
