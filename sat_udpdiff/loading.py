"""A network that can be sampled: weights with their configuration and frozen encoders."""

import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sat_udpdiff.config import Config
from sat_udpdiff.config_checks import check_device
from sat_udpdiff.config_io import to_values
from sat_udpdiff.encoders.source import DTYPES, TINY
from sat_udpdiff.generation import Encoders, GeneratedSample, Network, SampleRequest, generate
from sat_udpdiff.parallel.layout import Layout
from sat_udpdiff.parallel.sampling import GuidanceParallel, Helpers, ask_all, helpers_of
from sat_udpdiff.weights.beside import frozen_beside, own_config_file
from sat_udpdiff.weights.find import find_weights, is_on_hub
from sat_udpdiff.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from sat_udpdiff.model.transformer import UDPDiffTransformer

_PACKAGES = ("torch", "numpy", "diffusers", "transformers", "SwissArmyTransformer")


def settings_beside(load: str, *, names_base: bool) -> tuple[list[str], list[str]]:
    """Value files and settings that weights bring along; what the user names goes on top.

    Args:
        load: Run, checkpoint, weights file, `tiny` or hub id, as the user named it.
        names_base: Whether the user names value files, which weights without their own need.

    Returns:
        (files, settings); files are [] or the configuration of the run.

    Raises:
        ValueError: Nothing lies there, or it has no configuration and none is named.
    """
    own = None if load == TINY else own_config_file(load)
    if own is None and not names_base:
        if load != TINY and not Path(load).exists() and not is_on_hub(load):
            raise ValueError(f"--load: nothing lies at {load}")
        raise ValueError(f"--base: expected configuration files, since {load} has none")
    return [] if own is None else [str(own)], frozen_beside(load)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Model:
    """Everything that makes samples; `load` makes it."""

    config: Config
    network: Network
    """In evaluation mode, frozen."""
    encoders: Encoders
    facts: dict[str, Any]
    """What all its samples have in common, for sample.json."""
    helpers: Helpers = field(default_factory=Helpers)
    """Processes that make samples together with this one."""

    @classmethod
    def load(
        cls,
        load: str,
        *,
        config: Config,
        ema: bool = False,
        device: torch.device | None = None,
    ) -> "Model":
        """Load weights that are there, then the encoders, which take longer.

        Args:
            load: As for `settings_beside`; of a run the newest checkpoint.
            config: Of the network and its encoders.
            ema: Take the averaged weights.
            device: None = the GPU, if there is one.

        Raises:
            ValueError: Weights or encoders are missing, damaged or of another network, or the
                device cannot hold numbers of the configured kind.
        """
        # From here on this very file, for a run that trains on makes new ones.
        weights = find_weights(load, ema=ema).resolve()
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        check_device(config, device=device.type)
        encoders = Encoders.load(config, device=device)
        network = load_network(weights, config=config, device=device)
        facts = common_facts(weights, config=config, network=network, encoders=encoders)
        facts["weights"] |= {"load": load, "ema": ema}
        return cls(config=config, network=network, encoders=encoders, facts=facts)

    @classmethod
    def load_together(
        cls, load: str, *, config: Config, layout: Layout, device: torch.device, ema: bool = False
    ) -> "Model":
        """`load` on all processes of `layout`, each of which keeps its share of the network.

        Raises:
            ValueError: On all processes, where one cannot load, or they found different weights.
        """
        from sat_udpdiff.sat_compat import ensure_model_parallel

        # SAT makes groups when a network is built: all processes do, or none.
        ensure_model_parallel()
        model = fault = None
        try:
            model = cls.load(load, config=config, ema=ema, device=device)
        except ValueError as error:
            fault = str(error)
        found = ask_all((fault, model and model.facts["weights"]["sha256"]))
        faults = [one for one, _ in found if one is not None]
        if model is None or faults:
            raise ValueError(faults[0])
        if len({sha256 for _, sha256 in found}) > 1:
            raise ValueError(
                f"--load: the processes found different weights at {load}: a run that trains on "
                "makes new ones; name one of its checkpoints"
            )
        return replace(
            model,
            network=_shared(model.network, layout=layout),
            facts=model.facts | {"processes": layout.sizes._asdict()},
            helpers=helpers_of(layout, device=device),
        )

    def generate(
        self, request: SampleRequest, *, on_step: Callable[[int], object] | None = None
    ) -> list[GeneratedSample]:
        """One sample per seed of the request; see `generation.generate`."""
        return generate(
            self.network,
            request,
            encoders=self.encoders,
            config=self.config,
            on_step=on_step,
            helpers=self.helpers,
        )

    def record(
        self, sample: GeneratedSample, *, request: SampleRequest, folder: Path
    ) -> dict[str, Any]:
        """Content of sample.json in the sample's folder."""
        words = ["python", "sat_udpdiff/sample.py", "--base", str(folder / "config.yaml")]
        words += ["--load", self.facts["weights"]["file"]]
        words += ["--task", sample.task] if sample.task else []
        words += ["--prompt", sample.prompt, "--seed", str(sample.seed), "--output", "AGAIN"]
        return {
            "prompt": sample.prompt,
            "task": sample.task,
            "seed": sample.seed,
            "num_frames": request.num_frames,
            "height": request.height,
            "width": request.width,
            "batch": list(request.seeds),
            "command": shlex.join(words),
            **self.facts,
        }


def load_network(weights: Path, *, config: Config, device: torch.device) -> "UDPDiffTransformer":
    """The network with weights that `find_weights` found, frozen."""
    # SAT takes seconds to import; a request that cannot be met is refused without it.
    from sat_udpdiff.model.transformer import build_network
    from sat_udpdiff.weights.adapted import load_weights

    network = build_network(config.model, dtype=DTYPES[config.train.precision], device=device)
    load_weights(network, config, weights=str(weights), expand=False)
    return network.eval().requires_grad_(False)


def _shared(network: Any, *, layout: Layout) -> Network:
    """This process's share of a network that all processes of `layout` have whole."""
    from sat_udpdiff.parallel.network import share_out

    share_out(network, layout=layout)
    if layout.sizes.guidance == 1:
        return network
    return GuidanceParallel(network, group=layout.make_group("guidance"))


def unseen_words(prompts: Sequence[str], *, encoders: Encoders) -> list[str]:
    """What the text encoder will not see of prompts, a line each."""
    text, lines = encoders.text, []
    for prompt in dict.fromkeys(prompts):
        if (count := text.num_tokens(prompt)) > text.text_length:
            lines.append(
                f"{prompt!r} has {count} tokens; those after {text.text_length} are cut off "
                "(model.text_length)"
            )
        if unknown := text.unknown_words(prompt):
            lines.append(
                f"unknown to the text encoder: {', '.join(unknown)}. "
                f"It knows: {' '.join(sorted(text.known_words()))}"
            )
    return lines


def idle_decoders(config: Config, *, layout: Layout, batch_size: int) -> list[str]:
    """A line where processes wait while others of the same sample decode."""
    processes = prod(layout.sizes[1:])
    views = batch_size * (1 + config.model.dense_groups)
    if config.codec.tiling or processes <= views:
        return []
    return [
        f"of {processes} processes per sample {processes - views} wait while the others decode; "
        "codec.tiling=true shares out tiles, whose edges are blended"
    ]


def common_facts(
    weights: Path,
    *,
    config: Config,
    network: "UDPDiffTransformer",
    encoders: Encoders,
) -> dict[str, Any]:
    """What all samples of a network have in common."""
    return {
        "weights": {"file": str(weights), "sha256": fingerprint(network)},
        "codec": {"weights": config.codec.weights, "sha256": fingerprint(encoders.codec.vae)},
        "text": {"weights": config.text.weights, "sha256": fingerprint(encoders.text.model)},
        "config": to_values(config),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "device": str(encoders.codec.device),
    }
