"""The one schema of a run: YAML, command line and Python all build a :class:`RunConfig`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from ssl_vit.errors import UserError
from ssl_vit.methods import config_class
from ssl_vit.methods.base_config import (
    AUTO,
    Auto,
    Colour,
    Count,
    CountOrZero,
    Fraction,
    MethodConfig,
    Momentum,
    NonNegative,
    Positive,
    Section,
)
from ssl_vit.schedules import size_shares
from ssl_vit.settings import MAX_BAD

DEFAULT_METHOD = "dino"

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1, strict=False)]
DropRate = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _ascending(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] >= limits[1]:
        raise ValueError("low, then high")
    return limits


def _one_or_three(bands: tuple[int, ...]) -> tuple[int, ...]:
    if len(bands) not in (1, 3):
        raise ValueError("three bands, or one")
    return bands


def _minutes(given: object) -> object:
    """A length of time in minutes, from "90s", "30m", "2h30m" or a number of minutes."""
    if not isinstance(given, str):
        return float(given) if isinstance(given, int) and not isinstance(given, bool) else given
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch(rf"(?:{number}h)?\s*(?:{number}m)?\s*(?:{number}s)?", given.strip().lower())
    if not found or not any(found.groups()):
        raise ValueError("a length of time, as 90s, 30m, 2h30m or a number of minutes")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 60 * hours + minutes + seconds / 60


def _sizes(given: str) -> str:
    """A schedule of sizes, as it is written."""
    size_shares(given)
    return given


def as_minutes(given: object) -> float | None:
    """The minutes that a length of time has; None where it is none."""
    try:
        found = _minutes(given)
    except ValueError:
        return None
    return found if isinstance(found, float) else None


Limits = Annotated[tuple[float, float], Field(strict=False), AfterValidator(_ascending)]
Sizes = Annotated[str, AfterValidator(_sizes)]
Minutes = Annotated[float, BeforeValidator(_minutes), Field(gt=0)]
Numbers = Annotated[tuple[CountOrZero, ...], Field(strict=False), AfterValidator(_one_or_three)]


class DataConfig(Section):
    """Where the images are."""

    path: Text | Texts
    """Folder of images to learn from, or of tar archives (also: a list, "train-{000..099}.tar", a dataset as
    hf:owner/name,split=train or as save_to_disk wrote it), or several of these; no labels needed."""
    val: Text | None = None
    """Labelled images, on which k-NN scores the features as they are learnt: a folder with one sub-folder a class, or a
    dataset with classes."""
    outside_links: bool = False
    """Follow links that lead out of the folder, as where a set was put together of links to images elsewhere."""
    workers: Auto[CountOrZero] = AUTO
    """Processes that decode images, per device; 0 = none beside the training process."""
    timeout: Positive = 600.0
    """Seconds without a batch after which the processes that decode images are taken for hung and started anew."""
    max_bad: Fraction = MAX_BAD
    """Share of unreadable images, 0 to 1, above which the run stops."""
    mean: Auto[Colour] = AUTO
    """Mean of red, green and blue, of images in [0, 1], that is subtracted."""
    std: Auto[Colour] = AUTO
    """Deviation of red, green and blue that the images are divided by."""
    range: Auto[Limits | Literal["each"] | None] = AUTO
    """What becomes black and white, [low, high], in images of more than 8 bits a channel (clipped beyond), measured on
    the set where it isn't said; those of 8 bits stay as they are. null: there are none but these. each: every image by
    its own type or extremes, as in runs of before this setting."""
    bands: Auto[Numbers | None] = AUTO
    """Which bands of an image are red, green and blue, counted from 0, or a single one as grey; null: its own colours,
    with its opacity on white."""
    kernels: Auto[Literal["numba", "torch"]] = AUTO
    """What computes colours on a CPU: kernels that numba compiles (extra `numba`), four times as quick, or torch."""


class BackboneConfig(Section):
    """The network that is pretrained."""

    name: Auto[Text] = AUTO
    """Name of the network, as `ssl-vit list backbones` prints it."""
    weights: Text | None = None
    """File, folder or hub id (hf-hub:owner/name) of weights to start from, of any layout that `ssl-vit inspect` knows;
    random ones without."""
    args: dict[str, int | float | bool | str | Annotated[tuple[int | float, ...], Field(strict=False)]] = Field(
        default_factory=dict
    )
    """Further arguments of that network, by name."""
    image_size: Auto[Count] = AUTO
    """Side of a global crop, pixels."""
    drop_path: Auto[DropRate] = AUTO
    """Share of residual branches dropped at random in the deepest block (stochastic depth)."""


class OptimConfig(Section):
    """The optimiser and its schedules."""

    optimizer: Auto[Literal["adamw", "sgd", "adafactor", "lamb", "lars", "lion", "muon", "schedulefree"]] = AUTO
    """The optimiser: torch's AdamW or SGD, or timm's Adafactor (as in Scaling Vision Transformers: a quarter of AdamW's
    memory), LAMB, LARS, Lion or Muon, or AdamW without a schedule (pip install 'ssl_vit[schedulefree]').
    Rates are chosen for AdamW or SGD: set optim.lr with the others."""
    lr: Auto[Positive] = AUTO
    """Peak learning rate, as used: already scaled to the batch size."""
    lr_batch: Count | None = None
    """Images a step for which lr and min_lr of a recipe were made; with another train.batch_size both are scaled by
    the linear rule. An lr that is given after it, as by a flag, is used as it is."""
    beta2: Auto[Momentum] = AUTO
    """AdamW's share of old squared gradients kept at each step; SGD has none."""
    min_lr: Auto[NonNegative] = AUTO
    """Learning rate at the end of the cosine, or of the cool-down."""
    schedule: Literal["cosine", "rsqrt", "wsd", "constant"] = "cosine"
    """What the learning rate does after its warm-up: cosine /~\\_ falls from the start to the last step; rsqrt /\\._\\
    falls with the root of the step, then cools down; wsd /--\\ stays, then cools down; constant /--- stays."""
    cooldown_epochs: Auto[NonNegative] = AUTO
    """Epochs at the end in which the rate of rsqrt or wsd falls linearly to min_lr; a run can be cooled down from any
    of their steps."""
    backbone_rate: Auto[Annotated[float, Field(gt=0, le=1)]] = AUTO
    """The learning rate of the backbone over that of the heads beside it; 1 for the same in all, and less where it
    begins with trained weights (backbone.weights), which the heads' first gradients would destroy."""
    layer_decay: Auto[Annotated[float, Field(gt=0, le=1)]] = AUTO
    """The learning rate of a layer of the backbone over that of the next; 1 for the same in all."""
    heads_first: Auto[CountOrZero] = AUTO
    """Steps at the start in which only the heads learn, and the backbone stays as it is."""
    weight_decay: Auto[NonNegative] = AUTO
    """Weight decay at the start."""
    weight_decay_end: Auto[NonNegative] = AUTO
    """Weight decay at the end of its cosine."""
    head_weight_decay: Auto[NonNegative | None] = AUTO
    """Weight decay, constant, of what is trained beside the backbone; null: as the backbone's."""
    warmup_epochs: Auto[NonNegative] = AUTO
    """Epochs in which the learning rate rises linearly from 0."""
    clip: Auto[NonNegative] = AUTO
    """Largest gradient norm, of each tensor or of all together as the method has it; 0 = not clipped."""
    sam_rho: NonNegative = 0.0
    """How far from the weights, as a norm over all of them, the loss shall still be low (sharpness-aware minimisation;
    papers: 0.05 to 0.6): each step then takes its gradient at the worst point so near, in twice the time. 0 = off."""
    sam_global: bool = False
    """Of several devices, let all go to the same worst point, that of their mean gradient, and not each to its own."""

    @field_validator("min_lr")
    @classmethod
    def _cosine_descends(cls, min_lr: Auto[float], others: ValidationInfo) -> Auto[float]:
        lr = others.data.get("lr", AUTO)
        if AUTO not in (lr, min_lr) and min_lr > lr:
            raise ValueError(f"at most optim.lr, {lr:g}")
        return min_lr


class TrainConfig(Section):
    """How long, on what, and how it is kept."""

    epochs: Auto[Count] = AUTO
    """Passes over the images."""
    time: Minutes | None = None
    """Minutes that the whole run may take, scores, checkpoints and export included, also as 90s, 30m or 2h30m: it
    measures its own speed first and chooses train.epochs by it."""
    steps: Count | None = None
    """Steps after which the run ends, within its last epoch; null: when that is whole."""
    step_seconds: Positive | None = None
    """Seconds of a step as they were measured for train.time, which the run writes down."""
    sizes: Sizes | None = None
    """Sides of a global crop in the parts of a run, and the share of its steps that each has, as "112:0.75,224:0.25":
    small crops first, which cost less (FastDINOv2, 2507.03779); the last is backbone.image_size. null: one size."""
    batch_size: Auto[Count] = AUTO
    """Images a step, over all devices together."""
    devices: Auto[Count] = AUTO
    """GPUs (or CPU processes) on each machine."""
    nodes: Count = 1
    """Machines."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several devices share a model: each holds all of it (ddp), or a part of its weights, of the teacher's and of
    the optimiser's state (fsdp: for models that one device can't hold)."""
    precision: Auto[Literal["32-true", "bf16-mixed", "16-mixed"]] = AUTO
    """Number format of the forward and backward pass."""
    seed: Seed = 0
    """Seed of everything that is drawn at random."""
    checkpoint_every: Auto[Count] = AUTO
    """Steps between two checkpoints."""
    timeout: Positive = 15.0
    """Minutes that processes of a run wait for one of them before the run ends: longer than the longest k-NN score,
    checkpoint or export takes, which are the first one's work alone."""
    on_notice: Literal["save", "stop", "requeue"] = "save"
    """What SIGUSR1 and SIGUSR2 do, which schedulers send some time before they take a machine away: save and go on;
    save and stop; or save, stop and have Slurm start the job again (scontrol requeue), which then goes on with the
    run."""
    compile: Auto[bool] = AUTO
    """Compile the model with torch.compile: the first two steps take minutes, the others are quicker on a GPU."""
    accumulate: Count = 1
    """Parts in which a device works through its images of a step, so that a large batch fits into little memory. What
    compares images with each other (batch norm, the contrast of MoCo v3, Sinkhorn's targets) compares those of a part,
    and parts with more hidden patches than others count no more (BEiT)."""
    lean_cpu: bool = True
    """In bf16-mixed on a CPU, compute attention, GELU and linear layers in ways of our own, which are quicker than
    torch's and need less memory."""
    checkpoint_activations: bool = False
    """Keep less of the forward pass for the backward pass and compute it again there: the same numbers with less
    memory, in about a third more time."""
    diversify: NonNegative = 0.0
    """Weight of losses that keep the patches of an image apart in the last layer (patch diversification; paper: 1):
    their absolute cosine, and with blocks of one width each patch's contrast with itself in the first. 0 = off."""
    sparsity: DropRate = 0.0
    """Share of the weights of the backbone's linear layers and convolutions that are 0, which ones changes as it learns
    (SViTE; 0.5). 0 = off."""
    sparse_units: bool = False
    """With train.sparsity, let whole heads and hidden units of a plain ViT be 0, which `ssl-vit compress shrink` then
    cuts off."""
    space: Text | None = None
    """Train a supernet: each step a member of this space alone, drawn at random, that shares its weights with all
    others (AutoFormer). `ssl-vit compress search` sets it with the backbone that it belongs to. null: an ordinary
    network."""
    ema: Momentum = 0.0
    """Share of itself that a moving average of the trained backbone keeps at each step, for methods without a teacher
    to export (0.999 in long runs); it is exported beside the last weights, as export-ema. 0 = none."""
    swa: Fraction = 0.0
    """Last share of the run over whose steps the trained backbone's weights are averaged (stochastic weight averaging;
    0.25), exported beside the last ones, as export-swa. 0 = none."""

    def length(self, per_epoch: int) -> int:
        """Steps of the run, of so many an epoch."""
        assert isinstance(self.epochs, int)  # as it is resolved
        return min(self.epochs * per_epoch, self.steps or self.epochs * per_epoch)


class AdaptConfig(Section):
    """Going on from the weights of a file: what of them is trained, and what holds them to where they began."""

    lora_rank: Count | None = None
    """Train, in place of the backbone's weights, products of two matrices of this rank beside those of its linear
    layers (LoRA; 4 to 32), in less memory and time; null: the weights themselves."""
    lora_targets: Texts = ("attention", "mlp")
    """Beside which layers: attention, mlp, linear for all, or names of layers, as qkv or blocks.11.mlp.fc1."""
    anchor_pooled_cosine: NonNegative = 0.0
    """Weight of a pull towards what the network of the file says of the same crops: of one minus the cosine between
    their vectors (0.1 to 10; 0 = off)."""
    anchor_pooled_squared: NonNegative = 0.0
    """The same of the mean squared difference of their numbers."""
    anchor_patch_cosine: NonNegative = 0.0
    """As anchor_pooled_cosine, of patches that are not hidden."""
    anchor_patch_squared: NonNegative = 0.0
    """As anchor_pooled_squared, of patches that are not hidden."""
    anchor_every: Count = 4
    """Of how many crops one is compared with what the file's network says of it, which takes a forward pass; 1: all."""
    l2_sp: NonNegative = 0.0
    """Weight of half the squared distance of the backbone's weights from those of the file (L2-SP, 1802.01483:
    0.001 to 1); 0 = off."""


class HealthConfig(Section):
    """How often the run is checked for learning, collapse or harm."""

    every: Auto[Count] = AUTO
    """Steps between two health checks."""
    knn_every: Auto[Positive] = AUTO
    """Epochs between two k-NN scores, when data.val is given, and where the run begins with trained weights between two
    comparisons with these."""
    patience: CountOrZero = 3
    """So many comparisons in a row that find trained weights worse than they were end the run; 0 = never."""
    report: bool = True
    """Write report.html, with pictures of what is learnt, and keep it fresh while the run goes on, in less than 1 % of
    its time."""
    tracker: Literal["wandb", "mlflow", "comet"] | None = None
    """Tracker of experiments that is told the run's numbers and shown its pictures, too; what it needs to know (an
    account, an address, a project) it gets from its own environment variables. null = none."""


def _by_name(value: Any) -> Any:
    """Hand the method's settings to the class that ``name`` chooses; other inputs are pydantic's to refuse."""
    if not isinstance(value, dict) or not isinstance(name := value.get("name", DEFAULT_METHOD), str):
        return value
    try:
        return config_class(name).model_validate(value)
    except UserError as error:
        problem = PydanticCustomError("unknown_name", "{text}", {"text": str(error)})
        details = InitErrorDetails(type=problem, loc=("name",), input=name)
        raise ValidationError.from_exception_data("method", [details]) from error


class RunConfig(Section):
    """Everything that decides what a pretraining run computes; frozen. ``"auto"`` is resolved before the run."""

    data: DataConfig
    """Where the images are."""
    backbone: BackboneConfig = BackboneConfig()
    """The network that is pretrained."""
    # SerializeAsAny, since the method's own fields are its class's, not MethodConfig's.
    method: Annotated[SerializeAsAny[MethodConfig], BeforeValidator(_by_name)] = Field(
        default_factory=lambda: config_class(DEFAULT_METHOD).model_validate({})
    )
    """The self-supervised method, as `ssl-vit list methods` prints it, and its own settings."""
    optim: OptimConfig = OptimConfig()
    """The optimiser and its schedules."""
    train: TrainConfig = TrainConfig()
    """How long, on what, and how it is kept."""
    adapt: AdaptConfig = AdaptConfig()
    """Going on from the weights of a file: what of them is trained, and what holds them to where they began."""
    health: HealthConfig = HealthConfig()
    """How often the run is checked for learning or collapse."""
    plugins: dict[str, str] = Field(default_factory=dict)
    """Files and modules of your own that the run uses, with the sha256 of each. The run writes them down; they are
    imported only where `--plugin` names them again."""


class ResolvedConfig(RunConfig):
    """A configuration of which nothing is left to decide: what a run is made of, and keeps in ``config.yaml``."""

    @model_validator(mode="after")
    def _decided(self) -> ResolvedConfig:
        sections = {name: section for name, section in self if isinstance(section, Section)}
        left = [f"{name}.{key}" for name, section in sections.items() for key in section.undecided()]
        if left:
            raise ValueError(f"still auto: {', '.join(left)}")
        return self
