"""Colormap noise curves: how well dense maps are read back from noisy or compressed pictures.

    python tests/benchmarks/bench_colormap_noise.py [depth] [h264] [ids] [--seeds 3]

Prints ours and, in brackets, the figures to reach; without words, all three tables.

depth: disparity drawn evenly from 0..1, painted, iid noise of sigma (8 bit), read back as the paper
does (k / 256). Spectral by `colormaps.depth`; the others with matplotlib's colours and the same
nearest-colour search.
h264: 25x240x360, 8 moving discs before a smooth field, through libx264; read back at mid-bin. The
clip behind the figures to reach is described no further, so theirs depend on another picture.
ids: 13x120x180 clips of tests/colormaps/noisy_clips.py. Cells: ARI over all pixels / mean IoU per
true entity / found minus true entities; random colours, colours 40 apart, the true palette given,
and the plain nearest colour of the true palette.
"""

import argparse
import importlib.util
import io
import sys
from pathlib import Path

import av
import cv2
import matplotlib
import numpy as np
from av.video.reformatter import Colorspace, Interpolation

from sat_udpdiff.colormaps import depth, pixelplanes
from sat_udpdiff.colormaps.nearest_color import NearestColor
from sat_udpdiff.evaluation.depth import depth_errors
from sat_udpdiff.evaluation.overlap import mean_iou, overlaps
from sat_udpdiff.evaluation.segmentation import adjusted_rand_index

SIGMAS = (0, 2, 5, 10, 20)
DEPTH_TO_REACH = {
    "Spectral_r": (
        ".0020/.0023/.004/.004 .0034/.0047/.008/.089 .0072/.0114/.018/.187 "
        ".0152/.0251/.039/.247 .0314/.0492/.098/.995"
    ),
    "turbo": ".0020/.0023 .0029/.0036 .0052/.0066 .0095/.0123 .0191/.0275",
    "gray": ".0020/.0023 .0041/.0052 .0091/.0115 .0177/.0223 .0347/.0438",
    "inferno": ".0020/.0023 .0037/.0047 .0075/.0096 .0144/.0187 .0286/.0374",
}
RAW_TO_REACH = ".0010 .0020 .002 .0012 .9991"
H264_TO_REACH = {
    ("yuv444p", 0): ".0012 .005 .014 .0016 .999",
    ("yuv444p", 10): ".0014 .006 .19 .0021 .999",
    ("yuv420p", 10): ".0039 .017 .99 .024 .993",
    ("yuv420p", 18): ".0040 .019 .99 .024-.026 .992",
    ("yuv420p", 23): ".0043 .023 .99 .024-.026 .991",
    ("yuv420p", 28): ".0047 .031 .99 .026 .989",
}
IDS_TO_REACH = {
    (10, 0): ".979/.890/-0.7 .985/.890 .979/.890 .973/.906",
    (10, 5): ".980/.886/-0.7 .985/.893 .980/.886 .966/.883",
    (10, 10): ".964/.756/-1.3 .984/.891 .970/.857 .938/.810",
    (10, 20): ".876/.656/-2.3 .945/.810 .928/.781 .872/.670",
    (20, 0): ".969/.792/-2.7 .969/.799 .969/.795 .941/.752",
    (20, 5): ".970/.797/-2.7 .971/.803 .970/.802 .935/.734",
    (20, 10): ".949/.721/-2.3 .953/.801 .958/.778 .898/.675",
    (20, 20): ".874/.561/-6.3 .854/.623 .890/.680 .763/.527",
    (40, 0): ".935/.741/-4.7 .939/.749 .936/.767 .881/.648",
    (40, 5): ".938/.752/-4.0 .943/.766 .939/.783 .873/.632",
    (40, 10): ".896/.712/-3.0 .936/.784 .929/.763 .811/.569",
    (40, 20): ".836/.445/-16 .842/.515 .807/.607 .584/.394",
}


def _noisy_clips():
    """The clips of the tests: `tests` is no package on the path of a script."""
    path = Path(__file__).parents[1] / "colormaps" / "noisy_clips.py"
    spec = importlib.util.spec_from_file_location("noisy_clips", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["noisy_clips"] = module
    spec.loader.exec_module(module)
    return module


def _read_noisy(name, disparity, *, sigma, rng):
    """Painted with a map, with noise, read back at k / 256."""
    if name == "Spectral_r":
        colors, read = depth.COLORS, lambda rgb: depth.decode(rgb, inverse="paper")
    else:
        # Rounded: matplotlib's own bytes are cut off, and make pairs of levels of gray equal.
        colors = np.rint(matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).astype(np.uint8)
        nearest = NearestColor(colors[1:])
        values = depth.sample_values("paper")
        read = lambda rgb: np.stack([values[nearest(frame)] for frame in rgb])  # noqa: E731
    painted = colors[np.minimum((disparity * 256).astype(int), 255)]
    noisy = painted + rng.normal(0, sigma, painted.shape)
    return read(np.clip(np.round(noisy), 0, 255).astype(np.uint8))


def depth_table():
    """Print errors of four maps by noise, and of Spectral by region."""
    disparity = np.random.default_rng(0).random((4, 250, 400), dtype=np.float32)
    print("depth, MAE/RMSE[/p95/max] by sigma", *SIGMAS)
    for name, to_reach in DEPTH_TO_REACH.items():
        cells = []
        for sigma in SIGMAS:
            found = _read_noisy(name, disparity, sigma=sigma, rng=np.random.default_rng(sigma))
            error = np.abs(found - disparity)
            cell = f"{error.mean():.4f}/{np.sqrt((error**2).mean()):.4f}"
            if name == "Spectral_r":
                cell += f"/{np.quantile(error, 0.95):.3f}/{error.max():.3f}"
            cells.append(cell)
        print(f"{name:11}", *cells, f"\n{'':11}({to_reach})", flush=True)
    found = _read_noisy("Spectral_r", disparity, sigma=10, rng=np.random.default_rng(10))
    error, region = np.abs(found - disparity), (disparity * 10).astype(int)
    print("Spectral, sigma 10, by region of .1: MAE/p95")
    parts = [error[region == k] for k in range(10)]
    print("           ", *(f"{e.mean():.3f}/{np.quantile(e, 0.95):.3f}" for e in parts))
    print("            ([.4, .6): .024-.034/.07-.14, elsewhere .009-.014)\n", flush=True)


def _discs(rng, *, shape=(25, 240, 360)):
    """Disparity of 8 moving discs, each of one distance, before a smooth field."""
    frames, height, width = shape
    field = cv2.GaussianBlur(rng.random((height, width)), (0, 0), height / 6)
    field = (field - field.min()) / np.ptp(field)
    clip = np.repeat(field[None].astype(np.float32), frames, axis=0)
    for distance in np.sort(rng.random(8)):
        center, velocity = rng.random(2) * [width, height], rng.normal(0, 3, 2)
        radius = rng.uniform(0.1, 0.25) * height
        for t in range(frames):
            at = np.round((center + velocity * t) * 16).astype(int)
            cv2.circle(clip[t], at.tolist(), round(radius * 16), float(distance), -1, shift=4)
    return clip


def _through_h264(rgb, *, pixel_format, crf):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("libx264", rate=8, options={"crf": str(crf)})
        stream.height, stream.width, stream.pix_fmt = *rgb.shape[1:3], pixel_format
        stream.codec_context.colorspace, stream.codec_context.color_range = 6, 1  # BT.601, limited
        for frame in rgb:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format=pixel_format, dst_colorspace=Colorspace.ITU601)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    flags = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    with av.open(io.BytesIO(buffer.getvalue())) as stored:
        return np.stack(
            [
                picture.reformat(
                    format="rgb24", src_colorspace=Colorspace.ITU601, interpolation=flags
                ).to_ndarray()
                for picture in stored.decode(video=0)
            ]
        )


def _error_row(found, true):
    error = np.abs(found - true)
    scores = depth_errors(true, found)
    return (
        f"{error.mean():.4f} {np.quantile(error, 0.99):.3f} {error.max():.3f} "
        f"{scores.rmse:.4f} {scores.delta1:.4f}"
    )


def h264_table():
    """Print errors of a depth clip by pixel format and rate factor."""
    true = _discs(np.random.default_rng(0))
    painted = depth.encode(true)
    print("h264: MAE p99 max RMSE delta1; last column with far colours refilled (delta1)")
    print(
        "raw 8 bit     ", _error_row(depth.decode(painted), true), "(.0010 .0020 .002 .0012 .9991)"
    )
    for (pixel_format, crf), to_reach in H264_TO_REACH.items():
        carried = _through_h264(painted, pixel_format=pixel_format, crf=crf)
        row = _error_row(depth.decode(carried), true)
        refilled = depth_errors(true, depth.decode(carried, reject_distance=25.0)).delta1
        print(f"{pixel_format} crf {crf:2d}", row, f"({to_reach}) {refilled:.4f}", flush=True)
    print()


def _score(found, *, true):
    shared = overlaps(true, found)
    return adjusted_rand_index(true, found), mean_iou(shared), shared.excess


def _cells(noisy, *, num_entities, sigma, seed):
    cells, oracle = [], []
    for distance in (0.0, 40.0):
        rng = np.random.default_rng(seed)
        ids = noisy.make_ids(num_entities=num_entities, shape=(13, 120, 180), rng=rng)
        colors = pixelplanes.draw_colors(num_entities, generator=rng, min_distance=distance)
        rgb = noisy.degrade(pixelplanes.encode(ids, colors=colors), sigma=sigma, rng=rng)
        cells.append(_score(pixelplanes.decode(rgb), true=ids))
        if not distance:
            rows = np.concatenate([np.zeros((1, 3), np.uint8), colors])
            plain = np.stack([NearestColor(rows)(frame) for frame in rgb]).astype(np.int32)
            known = pixelplanes.decode(rgb, palette=colors)
            oracle = [_score(known, true=ids), _score(plain, true=ids)]
    return cells + oracle


def ids_table(seeds):
    """Print the table of recovery of entities under noise."""
    noisy = _noisy_clips()
    head = ("random colours", "min-dist 40", "true palette", "plain nearest")
    print(f"{'K':>3}{'sigma':>6}  " + "".join(f"{h:20}" for h in head) + "(to reach)")
    for (count, sigma), to_reach in IDS_TO_REACH.items():
        runs = [_cells(noisy, num_entities=count, sigma=sigma, seed=s) for s in range(seeds)]
        mean = np.mean(runs, axis=0)
        row = "".join(f"{a:.3f}/{m:.3f}/{n:+5.1f}   " for a, m, n in mean)
        print(f"{count:3d}{sigma:6d}  {row}({to_reach})", flush=True)


def main():
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help="depth, h264, ids; none = all")
    parser.add_argument("--seeds", type=int, default=3, help="clips per cell of ids")
    options = parser.parse_args()
    tables = {"depth": depth_table, "h264": h264_table, "ids": lambda: ids_table(options.seeds)}
    if unknown := set(options.what) - set(tables):
        parser.error(f"expected {', '.join(tables)}, got {', '.join(sorted(unknown))}")
    for name in options.what or tables:
        tables[name]()


if __name__ == "__main__":
    main()
