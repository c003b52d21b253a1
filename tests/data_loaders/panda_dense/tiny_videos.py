"""Videos whose every frame says which one it is, in the containers and codecs that users have."""

import io
from fractions import Fraction

import av
import numpy as np


def numbered(number, *, height=32, width=48):
    """A frame that shows a number 0..65535 as 16 blocks, black or white, over a gray wedge."""
    frame = np.tile(np.linspace(90, 160, width).astype(np.uint8)[None, :, None], (height, 1, 3))
    for bit in range(16):
        row, column = divmod(bit, 8)
        level = 235 if number >> bit & 1 else 16
        frame[row * 16 : row * 16 + 16, column * 6 : column * 6 + 6] = level
    return frame


def number_of(frame):
    """The number that `numbered` drew, read from the middle of its blocks."""
    height, width = frame.shape[:2]
    found = 0
    for bit in range(16):
        row, column = divmod(bit, 8)
        y, x = int((row * 16 + 8) * height / 32), int((column * 6 + 3) * width / 48)
        found |= int(frame[y, x].mean() > 128) << bit
    return found


def make_video(
    frames,
    *,
    fps=Fraction(24),
    container="mp4",
    codec="libx264",
    key_every=48,
    options=None,
    offset=Fraction(0),
):
    """Bytes of a video.

    Args:
        frames: uint8 (h, w, 3), one after the other.
        fps: Rate.
        container: libav muxer.
        codec: libav encoder.
        key_every: Most frames from one key frame to the next.
        options: Encoder options.
        offset: Time stamp of the first frame, seconds.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps, options=options or {})
        for i, array in enumerate(frames):
            if i == 0:
                stream.height, stream.width = array.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.gop_size = key_every
                stream.codec_context.thread_count = 1
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = i + round(offset * fps), 1 / fps
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()
