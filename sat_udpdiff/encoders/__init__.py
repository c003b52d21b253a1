"""Frozen networks around the one that is trained: the video codec and the text encoder."""
