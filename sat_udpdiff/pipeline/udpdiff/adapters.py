"""LoRA files of our runs in the pipeline: adapters, and what was trained as a whole beside them."""

from pathlib import Path
from typing import Any

from diffusers.loaders.lora_pipeline import CogVideoXLoraLoaderMixin
from safetensors.torch import load_file

from sat_udpdiff.weights.lora_map import DENSE_FILE
from sat_udpdiff.weights.names import listed


class AdapterLoading(CogVideoXLoraLoaderMixin):
    """diffusers' loader of adapters, which also takes the weights that lie beside them."""

    transformer: Any

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Load adapters as diffusers does.

        A run that trained adapters on a network with a dense map trained its first and last layer
        and its task table as a whole. These are in a second file of the folder, and are loaded into
        the transformer; `unload_lora_weights` leaves them there.

        Args:
            pretrained_model_name_or_path_or_dict: Folder, file, hub id or state dict.
            adapter_name: As in diffusers.
            kwargs: As in diffusers.

        Raises:
            ValueError: The second file is not of this transformer; names it and the keys.
        """
        super().load_lora_weights(
            pretrained_model_name_or_path_or_dict, adapter_name=adapter_name, **kwargs
        )
        if not isinstance(pretrained_model_name_or_path_or_dict, str | Path):
            return
        place = Path(pretrained_model_name_or_path_or_dict).expanduser()
        file = (place if place.is_dir() else place.parent) / DENSE_FILE
        if place.exists() and file.is_file():
            self._load_whole(file)

    def _load_whole(self, file: Path) -> None:
        weights, own = load_file(file), self.transformer.state_dict()
        problems = listed("unexpected", sorted(weights.keys() - own.keys()))
        both = sorted(weights.keys() & own.keys())
        problems += listed("mis-shaped", [k for k in both if weights[k].shape != own[k].shape])
        if problems:
            raise ValueError(f"{file}: not the weights of this transformer: {'; '.join(problems)}")
        self.transformer.load_state_dict(weights, strict=False)
