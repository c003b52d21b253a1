import io
import re
from base64 import b64decode
from dataclasses import replace

import av
import numpy as np
import pytest

from data_loaders import page_parts
from data_loaders.shard_cli import main
from data_loaders.shard_page import choose_samples, page
from data_loaders.shard_writer import Entry, write_manifest, write_shard
from data_loaders.shards import ShardIndex, write_shards


@pytest.fixture
def folder(tmp_path, noise_sample):
    write_shards((noise_sample(i) for i in range(5)), tmp_path / "data", samples_per_shard=2)
    return tmp_path / "data"


def videos_of(html):
    """Decoded frames of every video of a page, with the names of their panels."""
    found = []
    pattern = r'src="data:video/mp4;base64,([^"]+)"></video>\s*<div class="panels">(.*?)</div>'
    for content, panels in re.findall(pattern, html, flags=re.S):
        with av.open(io.BytesIO(b64decode(content))) as container:
            frames = list(container.decode(video=0))
        assert container.format.name.startswith("mov") and frames[0].format.name == "yuv420p"
        names = re.findall(r"<span>(.*?)</span>", panels)
        found.append((names, np.stack([frame.to_ndarray(format="rgb24") for frame in frames])))
    return found


def test_samples_are_spread_over_the_whole_folder_by_the_seed():
    chosen = choose_samples(1000, num_samples=24, seed=1)
    assert len(set(chosen)) == 24 and chosen == sorted(chosen)
    assert [24 * i // 1000 for i in chosen] == list(range(24))
    assert chosen == choose_samples(1000, num_samples=24, seed=1)
    assert chosen != choose_samples(1000, num_samples=24, seed=2)
    assert choose_samples(3, num_samples=24, seed=5) == [0, 1, 2]
    assert choose_samples(3, num_samples=0, seed=5) == []


def test_the_page_stands_alone_and_shows_every_sample(folder, noise_sample):
    html = page(ShardIndex.open(folder))
    assert not re.search(r'(src|href)="(?!data:)|https?://|@import|<script|url\(', html)
    for i in range(5):
        assert f"<h3>clip-{i:04d} <small>shard-{i // 2:06d}.tar, sample {i}</small>" in html
        assert f"<p>short {i}</p>" in html
    assert html.count('poster="data:image/jpeg;base64,') == 5
    assert html.count("<video autoplay loop muted playsinline") == 5
    videos = videos_of(html)
    assert [names for names, _ in videos] == [["video", "entity ids", "depth"]] * 5
    # 16 x 24 is enlarged 15 times, whole pixels.
    assert {frames.shape for _, frames in videos} == {(5, 240, 3 * 24 * 15, 3)}


def test_the_panels_are_the_video_the_ids_and_the_depth(tmp_path, noise_sample):
    sample = noise_sample(0, frames=1, height=32, width=48)
    rgb = np.zeros_like(sample.rgb)
    rgb[..., 0] = 200
    ids = np.zeros(rgb.shape[:3], np.uint16)
    ids[:, :, 24:] = 60000
    depth = np.zeros(rgb.shape[:3], np.uint16)
    depth[:, 16:] = 65535
    meta = replace(sample.meta, num_entities=1)
    write_shards([replace(sample, rgb=rgb, entity_ids=ids, depth=depth, meta=meta)], tmp_path)
    ((_, frames),) = videos_of(page(ShardIndex.open(tmp_path)))
    frame = frames[0].astype(int)
    height, width = frame.shape[:2]
    third = width // 3
    assert abs(frame[height // 2, third // 2] - [200, 0, 0]).max() < 12
    left, right = frame[height // 2, third + third // 4], frame[height // 2, third + 3 * third // 4]
    assert left.max() < 12 and np.linalg.norm(right) > 50
    # Spectral_r: far is blue, near is red.
    far, near = frame[height // 4, 2 * third + third // 2], frame[-height // 4, -third // 2]
    assert far[2] > far[0] + 40 and near[0] > near[2] + 40


@pytest.mark.parametrize(
    ("labels", "panels"),
    [
        ({"ids": False}, ["video", "depth"]),
        ({"depth": False}, ["video", "entity ids"]),
        ({"ids": False, "depth": False}, ["video"]),
    ],
)
def test_folders_without_labels_have_a_page_too(tmp_path, noise_sample, labels, panels):
    # Large and odd: reduced to about 240 rows, and even for 4:2:0.
    sample = noise_sample(0, frames=2, height=301, width=203, **labels)
    write_shards([sample], tmp_path, rgb_codec="ffv1")
    ((names, frames),) = videos_of(page(ShardIndex.open(tmp_path)))
    assert names == panels
    width = len(panels) * 162
    assert frames.shape == (2, 240, width + width % 2, 3)


def test_captions_are_text_and_not_html(tmp_path, noise_sample):
    attack = "<script>alert('x')</script> & \"more\""
    samples = [replace(noise_sample(0), caption_short=attack, caption_long=attack)]
    write_shards(samples, tmp_path)
    html = page(ShardIndex.open(tmp_path))
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;more") == 2


def damage(folder, i, member):
    stored = ShardIndex.open(folder).sample(i)
    with stored.path.open("r+b") as file:
        file.seek(stored.members[member].offset)
        file.write(b"\0\1\2\3")


def test_damaged_samples_are_shown_as_damaged(folder):
    damage(folder, 1, "seg.mkv")
    damage(folder, 3, "json")
    (folder / "shard-000002.index.json").write_text("{}")
    html = page(ShardIndex.open(folder))
    assert html.count('<article class="damaged">') == 3
    assert "sample &#x27;clip-0001&#x27;, member &#x27;seg.mkv&#x27;: damaged" in html
    assert "sample &#x27;clip-0003&#x27;, member &#x27;json&#x27;: damaged" in html
    assert "shard-000002.index.json: expected the index" in html
    assert html.count("<video ") == 2


def test_many_entities_have_colours(tmp_path, noise_sample):
    write_shards([noise_sample(0, frames=1, height=48, width=64, entities=2000)], tmp_path)
    ((_, frames),) = videos_of(page(ShardIndex.open(tmp_path)))
    assert len(frames) == 1


def test_the_command_prints_figures_and_writes_the_page(folder, tmp_path, capsys):
    out = tmp_path / "page.html"
    command = ["inspect", str(folder), "--html", str(out), "--samples", "2", "--seed", "3"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert re.search(r"^samples +5$", text, flags=re.M)
    assert re.search(r"^with depth +5 \(100%\)$", text, flags=re.M)
    assert re.search(r"^short captions +2 to 2 words, 2\.0 on the mean$", text, flags=re.M)
    assert re.search(r"^seg\.mkv +5 ", text, flags=re.M)
    assert re.search(r"^  16x24  #{32}  5$", text, flags=re.M)
    html = out.read_text()
    assert html.count("<video ") == 2 and "2 of 5, seed 3" in html
    assert not list(tmp_path.glob("*.partial"))


def test_histograms_stay_short(tmp_path, noise_sample, capsys):
    samples = [noise_sample(i, frames=1, entities=3 * i + 1) for i in range(60)]
    write_shards(samples, tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    rows = capsys.readouterr().out.split("entities per clip\n")[1].splitlines()
    assert len(rows) <= 24
    assert sum(int(row.split()[-1]) for row in rows) == 60


def test_other_kinds_have_figures_but_no_page(tmp_path, capsys):
    entries = [Entry(key="a", members={"latent": b"1" * 1500}), Entry(key="b", members={})]
    shard = write_shard(tmp_path / "shard-000000.tar", entries)
    write_manifest(tmp_path, [shard], kind="latents", extra={"codec": "tiny"})
    assert main(["inspect", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 1
    out, error = capsys.readouterr()
    assert re.search(r"^damaged samples +1$", out, flags=re.M)
    assert re.search(r"^extra: codec +tiny$", out, flags=re.M)
    assert re.search(r"^latent +1 +1\.5 kB", out, flags=re.M)
    assert error.strip() == f"error: --html: a page shows clips, but {tmp_path} holds latents"
    assert not (tmp_path / "page.html").exists()


def test_a_panel_keeps_its_pixels_when_enlarged():
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 2, 3, 3)
    large = page_parts.fit(rgb, exact=True)
    np.testing.assert_array_equal(large[:, ::120, ::120], rgb)
