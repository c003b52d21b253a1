"""UDPDiff: from text to a video and its entity segmentation or depth map, in one pass."""
