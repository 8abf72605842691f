"""How much memory the jobs of one trainer need, and how much there is.

Pure, but for asking the disk and the device. The sizes of what a trainer works on at once are defined here: the trainer
imports them.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from orchestrator.bounded_file import read_text
from orchestrator.config import synthetic
from orchestrator.config.activation_functions import ACTIVATIONS
from orchestrator.config.job import JobConfig, SubjectConfig
from orchestrator.estimates.flops import depth, known_width
from orchestrator.estimates.subject_files import model_folder
from orchestrator.settings import Settings

CPU_PASS_TOKENS = 4096
"""Tokens of one forward pass on a CPU: more gains nothing there, and the matrices still fit its caches."""
SAMPLE_TOKENS = 16_384
"""Normalised activations that μ, v and the geometric median are measured on."""
EVALUATED_TOKENS = 2048
"""Tokens of the held-out set that an evaluation encodes at once."""
_FLOAT = 4
_STATE_COPIES = 5
"""Weights, gradients, Adam's two moments and the averaged weights."""
_PASS_TOKENS = {"cpu": CPU_PASS_TOKENS, "cuda": 32_768}
"""Tokens of one forward pass. On a GPU the trainer sizes it by the device's memory: an assumption."""
_PASS_WIDTHS = 20
"""Widths that the widest block holds of each token: queries, keys, values, the MLP's inner layer."""
_TILES, _TILES_BY_HAND = 3, 1
"""Matrices of tokens × n_latents that an evaluation, or a step under autograd or in a graph, was seen to hold at once;
and the most that a step with gradients by hand holds."""
_DEAD_COPIES = 3
"""Copies of a matrix of weights that a small step has room for, where every latent may be dead: rows of W_dec, and the
gradients in them and in those of W_enc."""
_SAMPLE_COPIES = 4
"""Copies of the sample that measuring it holds at once; one of them is what the stream begins with."""
PROGRAM_BYTES = {"cpu": 550 << 20, "cuda": 800 << 20}
"""torch and transformers themselves; on a GPU its context and the libraries' work space."""
_UNKNOWN_WIDTH, _UNKNOWN_DEPTH, _UNKNOWN_SUBJECT = 4096, 32, 32 << 30
"""What is assumed of a model that is not on this disk: a large one, 8 billion parameters in float32."""
_USABLE = 0.9
"""Share of what is free that a trainer may use."""
_BLIND_JOBS = 2
"""Jobs of one trainer where nothing tells how much memory its device has."""
_INNER = 4
"""Width of the MLP's inner layer, in widths of the model."""
_GROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""A control group's limit and use in bytes, where a container sees its own: version 2, version 1."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8, "auto": 4}
"""Of a value, by its precision; auto takes 4 at most."""


class Room:
    """How much memory of its device one trainer may use."""

    def __init__(self, settings: Settings, device: str, *, threads: int | None = None) -> None:
        """Remember the device; it is asked when an answer is needed. `threads` of the cores are the trainer's part."""
        self._settings, self._device, self._threads = settings, device, threads

    def ask(self) -> None:
        """Ask the device now, which may take seconds; no later answer has to wait for it."""
        _ = self.bytes, self.kind

    @cached_property
    def kind(self) -> str:
        """Return cuda or cpu."""
        return "cpu" if self._device.startswith("cpu") or self._free_on_gpu is None else "cuda"

    @cached_property
    def bytes(self) -> int | None:
        """Return how much there is for the trainer; None where nothing tells."""
        if self._settings.memory_bytes is not None:
            return self._settings.memory_bytes
        if self._device.startswith("cuda") or self.kind == "cuda":
            return None if self._free_on_gpu is None else int(_USABLE * self._free_on_gpu)
        cores = os.cpu_count() or 1
        return int(_USABLE * free_in_memory() * min(1.0, (self._threads or cores) / cores))

    def holds(self, configs: Sequence[JobConfig]) -> bool:
        """Say whether one trainer can train all of them together; one alone always may try."""
        if len(configs) <= 1:
            return True
        if self.bytes is None:
            return len(configs) <= _BLIND_JOBS
        return trainer_bytes(configs, kind=self.kind) <= self.bytes

    def fits(self, config: JobConfig) -> int:
        """Return how many jobs like this one a trainer would take."""
        most = self._settings.jobs_per_trainer
        return next((n for n in range(most, 1, -1) if self.holds([config] * n)), 1)

    @cached_property
    def _free_on_gpu(self) -> int | None:
        index = self._device.partition("+")[0].partition(":")[2]
        return None if self._device.startswith("cpu") else _free_on_gpu(int(index or 0))


SMALL_STEP_FLOPS = 2**28
"""Of the encoder's product, in a step that one thread of a CPU takes."""
BESIDE_LATENTS, BESIDE_JOBS = 2048, 8
"""Jobs of small steps and at most so many latents are taken side by side, so many at most."""


def trainer_bytes(configs: Sequence[JobConfig], *, kind: str = "cpu") -> int:
    """Return the most memory that training some jobs together takes.

    The subject, one forward pass of it, each tuned lens, a window of activations for each hook point, a held-out set
    for each place, the state of every job; and of what each needs only for a while, one after another, the largest. On
    a GPU the steps keep memory of their own, of the largest of them: that of their CUDA graphs.
    """
    places = {(config.subject, config.sae.lens, config.sae.normalize): config for config in configs}
    hooks = {hook: config for config in configs for hook in hook_keys(config.subject)}
    first = configs[0]
    lenses = {config.sae.lens: config for config in configs if config.sae.lens is not None}
    windows = sum(_window(config, kind) for config in hooks.values())
    heldout = sum(config.training.heldout_tokens * _vector_bytes(config) for config in places.values())
    one_pass = _PASS_TOKENS[kind] * _PASS_WIDTHS * max(map(_width, configs)) * _FLOAT
    lasting = PROGRAM_BYTES[kind] + _subject_bytes(first.subject) + windows + heldout + sum(map(state_bytes, configs))
    lasting += sum(map(_lens_bytes, lenses.values()))
    step = max(_step_bytes(config, kind) for config in configs)
    other = max(one_pass, _beside_bytes(configs) if kind == "cpu" else 0, *map(_passing_bytes, configs))
    return lasting + (step + other if kind == "cuda" else max(step, other))


def state_bytes(config: JobConfig) -> int:
    """Return what a job holds from its start to its end: 5 · 4 · (2·n·D + n + D)."""
    return _STATE_COPIES * _weights(config)


def hook_keys(subject: SubjectConfig) -> list[tuple[str, ...]]:
    """Return what tells hook points apart before the model is loaded, for each that is read."""
    return [(place.hook or "", str(place.layer), place.site) for place in subject.places(_depth(subject))]


def _step_bytes(config: JobConfig, kind: str) -> int:
    """Return what a step needs: its pre-activations, for the most part."""
    n, d, batch = config.sae.latents(_width(config)), _width(config), config.training.batch_tokens * _layers(config)
    by_hand = kind == "cpu" and ACTIVATIONS[config.sae.activation].selects_per_token
    of_dead = _DEAD_COPIES * n * d if by_hand and _is_small(config) else 0
    return (batch * ((_TILES_BY_HAND if by_hand else _TILES) * n + 4 * d) + of_dead) * _FLOAT


def _passing_bytes(config: JobConfig) -> int:
    """Return what a job needs at times besides: averaged weights and those of an evaluation."""
    n, d = config.sae.latents(_width(config)), _width(config)
    evaluation = _weights(config) + EVALUATED_TOKENS * (_TILES * n + 3 * d) * _FLOAT
    return max(evaluation, _SAMPLE_COPIES * SAMPLE_TOKENS * _vector_bytes(config))


def _beside_bytes(configs: Sequence[JobConfig]) -> int:
    """Return what jobs need to take steps, and measure points of their curves, side by side."""
    beside = [c for c in configs if _is_small(c) and c.sae.latents(_width(c)) <= BESIDE_LATENTS]
    needs = (max(_passing_bytes(config), _step_bytes(config, "cpu")) for config in beside)
    return sum(sorted(needs)[-BESIDE_JOBS:])


def _is_small(config: JobConfig) -> bool:
    n_vectors, d = config.training.batch_tokens * _layers(config), _width(config)
    return 2 * n_vectors * config.sae.latents(d) * d <= SMALL_STEP_FLOPS


def _weights(config: JobConfig) -> int:
    d = _width(config)
    n = config.sae.latents(d)
    return (2 * n * d + n + d) * _FLOAT


def _window(config: JobConfig, kind: str) -> int:
    # On a GPU the next window is captured while one is trained on.
    buffers = 2 if kind == "cuda" else 1
    return buffers * config.training.shuffle_tokens * _width(config) * _BYTES[config.subject.dtype]


def _lens_bytes(config: JobConfig) -> int:
    """Return what the lens of a config takes: a map for each block of the model, whichever are read."""
    d = _width(config)
    return (depth(config.subject) or _UNKNOWN_DEPTH) * (d * d + d) * _FLOAT


def _width(config: JobConfig) -> int:
    subject = config.subject
    return (known_width(subject) or _UNKNOWN_WIDTH) * (1 if subject.has_model_width else _INNER)


def _vector_bytes(config: JobConfig) -> int:
    """Return what the vectors of one token take."""
    return _layers(config) * _width(config) * _FLOAT


def _layers(config: JobConfig) -> int:
    return len(config.subject.places(_depth(config.subject)))


def _depth(subject: SubjectConfig) -> int:
    return (depth(subject) if subject.layers == "all" else None) or _UNKNOWN_DEPTH


def _subject_bytes(subject: SubjectConfig) -> int:
    if synthetic.is_synthetic(subject.model):
        return synthetic.parse(subject.model).n_parameters * _FLOAT
    folder = model_folder(subject)
    try:
        sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    except OSError:  # the hub's cache has links, and what they point to may be gone
        sizes = []
    if not sizes:
        return _UNKNOWN_SUBJECT
    try:
        found = json.loads(read_text(folder / "config.json", what="a model's config"))
        stored = str(found.get("dtype") or found.get("torch_dtype") or "float32")
    except (OSError, ValueError, AttributeError):
        stored = "float32"
    return sum(sizes) * _BYTES[subject.dtype] // _BYTES.get(stored, 4)


def free_in_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many bytes of main memory are free, by the machine and by our control group."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in _GROUP_FILES:  # a container may have less than its machine
        try:
            left = int((groups / limit).read_text()) - int((groups / used).read_text())
        except (OSError, ValueError):
            continue
        free = min(free, max(0, left))
    return free


def _free_on_gpu(index: int) -> int | None:
    # `index` counts the visible devices, which are named by number or UUID; nvidia-smi counts all of the machine.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [word.strip() for word in (visible or "").split(",") if word.strip()]
    try:
        name = str(index) if visible is None else names[index]
        command = ["nvidia-smi", "-i", name, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        return int(answer.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
