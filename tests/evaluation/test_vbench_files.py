import json
from dataclasses import replace

import pytest

from sat_udpdiff.evaluation.measure import Score
from sat_udpdiff.evaluation.vbench_files import (
    JudgedVideo,
    eval_results,
    full_info,
    write_vbench_files,
)

VIDEOS = {
    "one": JudgedVideo(path="/videos/a red disc-3.mp4"),
    "two": JudgedVideo(path="/videos/two.mp4", prompt="a blue box"),
}


def score(name, value, **per_video):
    return Score(name=name, value=value, higher_is_better=True, per_video=per_video)


SCORES = [
    score("fvd", 300.0),
    score("motion_smoothness_flow", 0.4, one=0.4, two=0.4),
    score("motion_smoothness", 0.9, one=1.0, two=0.8),
    replace(score("background_consistency", 0.5, one=0.5, two=0.25), counts={"one": 4, "two": 2}),
]


def test_files_have_the_shape_of_vbench(tmp_path):
    results, info = write_vbench_files(tmp_path, name="tiny", scores=SCORES, videos=VIDEOS)
    assert results.name == "tiny_eval_results.json" and info.name == "tiny_full_info.json"
    one, two = "/videos/a red disc-3.mp4", "/videos/two.mp4"
    assert json.loads(results.read_text()) == {
        "background_consistency": [
            0.5,
            [
                {"video_path": one, "video_results": 0.5, "video_sim": 2.0, "cnt_per_video": 4},
                {"video_path": two, "video_results": 0.25, "video_sim": 0.5, "cnt_per_video": 2},
            ],
        ],
        "motion_smoothness": [
            0.9,
            [{"video_path": one, "video_results": 1.0}, {"video_path": two, "video_results": 0.8}],
        ],
    }
    dimensions = ["background_consistency", "motion_smoothness"]
    assert json.loads(info.read_text()) == [
        {"prompt_en": "a red disc", "dimension": dimensions, "video_list": [one]},
        {"prompt_en": "a blue box", "dimension": dimensions, "video_list": [two]},
    ]
    assert results.read_text().startswith('{\n    "background_consistency"')
    assert {path.name for path in tmp_path.iterdir()} == {info.name, results.name}


@pytest.mark.parametrize(
    ("file", "prompt"),
    [("a dog.mp4", "a dog"), ("a dog-0.mp4", "a dog"), ("a-b-12.mp4", "a-b"), ("x-1a.mp4", "x-1a")],
)
def test_prompts_from_names(file, prompt):
    (entry,) = full_info([JudgedVideo(path=f"/v/{file}")])
    assert entry["prompt_en"] == prompt


def test_a_video_that_nobody_named_is_an_error():
    with pytest.raises(ValueError, match=r"motion_smoothness: .*missing \['three'\]"):
        eval_results([score("motion_smoothness", 0.9, three=0.9)], videos=VIDEOS)


def test_a_number_that_is_none_is_never_written(tmp_path):
    bad = [score("motion_smoothness", float("nan"), one=float("nan"))]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_vbench_files(tmp_path, name="x", scores=bad, videos=VIDEOS)
    assert list(tmp_path.iterdir()) == []
