"""How much of a picture is text: PaddleOCR's detector through OpenCV, with weights of the user."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from data_loaders.schema import DataError

# Of the detector's own configuration (PaddleOCR, and OpenCV Zoo's text_detection_ppocr).
_PIXEL_THRESHOLD = 0.3
_BOX_THRESHOLD = 0.5
_UNCLIP_RATIO = 2.0
_MEAN = np.asarray((0.485, 0.456, 0.406), np.float32)
_DEVIATION = np.asarray((0.229, 0.224, 0.225), np.float32)
_MULTIPLE = 32
_THINNEST = 3
"""Sides of boxes, pixels, below which PaddleOCR drops them."""


class TextDetector:
    """Differentiable binarisation (Liao et al. 2020), as PP-OCRv3 trained it; on the CPU.

    The network through OpenCV; from its map of probabilities to boxes ourselves, because
    TextDetectionModel_DB of OpenCV 5.0 fails on maps of four axes, which the published files give.
    """

    def __init__(self, weights: str) -> None:
        """Load the network.

        Args:
            weights: ONNX file such as text_detection_en_ppocrv3_2023may.onnx of OpenCV Zoo.

        Raises:
            DataError: It cannot be loaded.
        """
        self._weights = weights
        try:
            self._net = cv2.dnn.readNetFromONNX(weights)
        except cv2.error as error:
            raise DataError(
                f"text_weights {weights}: expected the ONNX file of a text detector, "
                f"got: {' '.join(str(error).split())[:200]}"
            ) from error

    def share(self, frames: UInt8[np.ndarray, "t h w 3"], *, rows: int) -> float:
        """Share of the pictures within boxes of text, 0..1, the mean over the frames.

        Args:
            frames: RGB, 0..255.
            rows: Height at which text is looked for; the aspect ratio is kept to a multiple of 32.

        Raises:
            DataError: The network is no text detector.
        """
        return float(np.mean([box_mask(self._map(frame, rows=rows)).mean() for frame in frames]))

    def _map(self, frame: UInt8[np.ndarray, "h w 3"], *, rows: int) -> Float32[np.ndarray, "h2 w2"]:
        """Probability of text per pixel."""
        height, width = frame.shape[:2]
        size = [
            max(_MULTIPLE, round(side * rows / height / _MULTIPLE) * _MULTIPLE)
            for side in (width, height)
        ]
        area = cv2.INTER_AREA if height > size[1] else cv2.INTER_LINEAR
        picture = cv2.resize(frame, size, interpolation=area)
        # PaddleOCR reads blue first and takes these means in that order.
        values = (picture[..., ::-1].astype(np.float32) / 255 - _MEAN) / _DEVIATION
        try:
            self._net.setInput(np.ascontiguousarray(values.transpose(2, 0, 1))[None])
            found = np.asarray(self._net.forward())
        except cv2.error as error:
            raise DataError(
                f"text_weights {self._weights}: expected a text detector, "
                f"got: {' '.join(str(error).split())[:200]}"
            ) from error
        if found.size != size[0] * size[1]:
            raise DataError(
                f"text_weights {self._weights}: expected a map of 1x1x{size[1]}x{size[0]}, "
                f"got {'x'.join(map(str, found.shape))}"
            )
        return found.reshape(size[1], size[0])


def box_mask(probability: Float32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """1 within boxes of text, else 0, by the rule of PaddleOCR's DBPostProcess.

    Each connected part above the pixel threshold gets its smallest rectangle, which counts when the
    mean probability within the part is above the box threshold. The network is trained on text
    areas shrunk by a margin; area * ratio / perimeter on every side gives it back.
    """
    binary = (probability > _PIXEL_THRESHOLD).astype(np.uint8)
    outlines, _ = cv2.findContours(binary, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    inside = np.zeros(probability.shape, np.uint8)
    for outline in outlines:
        centre, (width, height), angle = cv2.minAreaRect(outline)
        if min(width, height) < _THINNEST or _mean_within(outline, probability) < _BOX_THRESHOLD:
            continue
        margin = width * height * _UNCLIP_RATIO / (2 * (width + height))
        grown = (centre, (width + 2 * margin, height + 2 * margin), angle)
        cv2.fillPoly(inside, [np.round(cv2.boxPoints(grown)).astype(np.int32)], 1)
    return inside


def _mean_within(outline: np.ndarray, probability: Float32[np.ndarray, "h w"]) -> float:
    left, top, width, height = cv2.boundingRect(outline)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [outline - np.asarray((left, top), np.int32)], 1)
    return cv2.mean(probability[top : top + height, left : left + width], mask)[0]
