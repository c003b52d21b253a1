"""What lies beside weights: their configuration, and the frozen networks of a release."""

from pathlib import Path

from sat_udpdiff.weights.run_folder import CONFIG_FILE

SAT_TEXT_ENCODER = "t5-v1_1-xxl"
"""Folder of the text encoder in SAT's releases."""
_TRANSFORMER = "transformer"


def own_config_file(place: str | Path) -> Path | None:
    """The config.yaml of weights, in their run, checkpoint or converted folder; None without one.

    Args:
        place: File or folder, as the user named it.
    """
    path = Path(place).expanduser()
    if not path.exists():
        return None
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    # DST/transformer and DST/transformer/1 are parts of DST; no other parent is asked.
    folders = [folder, folder.parent, folder.parent.parent]
    names = [part.name for part in folders[:2]]
    last = names.index(_TRANSFORMER) + 1 if _TRANSFORMER in names else 0
    files = (folders[0] / CONFIG_FILE, folders[last] / CONFIG_FILE)
    return next((file for file in files if file.is_file()), None)


def frozen_beside(place: str) -> list[str]:
    """Settings that name the codec and the text encoder in a folder; [] where there are none."""
    found = []
    root = Path(place).expanduser().resolve()
    if (root / "vae" / "config.json").is_file():
        found += [f"codec.weights={root}", "codec.subfolder=vae"]
    if (root / "text_encoder" / "config.json").is_file():
        found.append(f"text.weights={root}")
    elif (root / SAT_TEXT_ENCODER / "config.json").is_file():
        found.append(f"text.weights={root / SAT_TEXT_ENCODER}")
    return found
