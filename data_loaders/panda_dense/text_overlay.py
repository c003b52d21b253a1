"""How much of a picture is text: PaddleOCR's detector through OpenCV, with weights of the user."""

import cv2
import numpy as np
from jaxtyping import UInt8

from data_loaders.schema import DataError

# Of the detector's own configuration (PaddleOCR, and OpenCV Zoo's text_detection_ppocr).
_BINARY_THRESHOLD = 0.3
_POLYGON_THRESHOLD = 0.5
_UNCLIP_RATIO = 2.0
_MOST_BOXES = 200
_MEAN = (123.675, 116.28, 103.53)
_SCALE = tuple(1 / (255 * deviation) for deviation in (0.229, 0.224, 0.225))
_MULTIPLE = 32


class TextDetector:
    """Differentiable binarisation (Liao et al. 2020), as PP-OCRv3 trained it; on the CPU."""

    def __init__(self, weights: str) -> None:
        """Load the network.

        Args:
            weights: ONNX file such as text_detection_en_ppocrv3_2023may.onnx of OpenCV Zoo.

        Raises:
            DataError: It cannot be loaded.
        """
        try:
            self._model = cv2.dnn.TextDetectionModel_DB(cv2.dnn.readNetFromONNX(weights))
        except cv2.error as error:
            raise DataError(
                f"text_weights {weights}: expected the ONNX file of a text detector, "
                f"got: {str(error).strip().splitlines()[-1]}"
            ) from error
        self._model.setBinaryThreshold(_BINARY_THRESHOLD)
        self._model.setPolygonThreshold(_POLYGON_THRESHOLD)
        self._model.setUnclipRatio(_UNCLIP_RATIO)
        self._model.setMaxCandidates(_MOST_BOXES)
        self._model.setInputMean(_MEAN)
        self._model.setInputScale(_SCALE)

    def share(self, frames: UInt8[np.ndarray, "t h w 3"], *, rows: int) -> float:
        """Share of the pictures within boxes of text, 0..1, the mean over the frames.

        Args:
            frames: RGB, 0..255.
            rows: Height at which text is looked for; the aspect ratio is kept to a multiple of 32.
        """
        height, width = frames.shape[1:3]
        size = tuple(
            max(_MULTIPLE, round(side * rows / height / _MULTIPLE) * _MULTIPLE)
            for side in (width, height)
        )
        self._model.setInputSize(size)
        return float(np.mean([self._share(frame, size=size) for frame in frames]))

    def _share(self, frame: UInt8[np.ndarray, "h w 3"], *, size: tuple[int, ...]) -> float:
        area = cv2.INTER_AREA if frame.shape[0] > size[1] else cv2.INTER_LINEAR
        picture = cv2.resize(frame, size, interpolation=area)
        # PaddleOCR reads blue first and takes these means in that order.
        boxes, _ = self._model.detect(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        inside = np.zeros(picture.shape[:2], np.uint8)
        for box in boxes:
            cv2.fillPoly(inside, [np.asarray(box, np.int32)], 1)
        return float(inside.mean())
