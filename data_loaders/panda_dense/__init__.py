"""Panda-Dense: from videos to captioned, segmented and depth-mapped shards, one file per stage."""
