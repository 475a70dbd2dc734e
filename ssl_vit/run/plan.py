"""What "auto" becomes: each value decided once, from the architecture, the images and the devices, with its reason.

Published values come from the official DINO recipes (2104.14294) unless a line says otherwise; what replaces them on
small sets was measured on small sets of posed digits and icons, where the official head collapses to uniform.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch

from ssl_vit.backbones import backbone_info, create_backbone
from ssl_vit.backbones.backbone import BackboneInfo
from ssl_vit.backbones.intermediates import layer_count
from ssl_vit.backbones.registry import usual_size
from ssl_vit.checkpoints.inspection import Inspection
from ssl_vit.checkpoints.load import fitted_weights, opened
from ssl_vit.config import ResolvedConfig, RunConfig, check_data
from ssl_vit.data.sources import Source, open_source
from ssl_vit.errors import UserError
from ssl_vit.methods import check_recipe, config_class
from ssl_vit.methods.base_config import SMALL, Choices, Situation
from ssl_vit.methods.continuing import AT_RANDOM, continued
from ssl_vit.run.adapting import check_adaptation
from ssl_vit.run.facts import IMAGENET_MEAN, IMAGENET_STD, Facts, gather_facts
from ssl_vit.run.sizes import sizes_of_run
from ssl_vit.run.spans import check_spans
from ssl_vit.run.techniques import check_techniques
from ssl_vit.schedules import size_shares
from ssl_vit.training.compiler import PAYS

WIDE = 48  # characters of a setting in a table; what is longer pushes only its own reason
FOR_FEW = "simclr"  # on posed digits and drawn icons ahead of DINO for each seed (benchmarks/results/learning.txt)
SMALL_SIDE = 112  # pixels of a crop below which patches of 16 pixels are too few
EPOCHS = ((5_000, 200), (50_000, 150), (math.inf, 100))  # up to so many images: epochs; 100 is DINO's shortest recipe


class Decision(NamedTuple):
    """One resolved setting, for people."""

    key: str
    value: Any
    why: str
    override: str


def resolve(config: RunConfig) -> tuple[ResolvedConfig, list[Decision]]:
    """The configuration without "auto", and why each value was chosen; trains nothing."""
    check_data(config)
    return resolve_for(config, open_source(config.data.path, config.data.outside_links))


def resolve_for(config: RunConfig, source: Source) -> tuple[ResolvedConfig, list[Decision]]:
    """As :func:`resolve`, for images that are open."""
    return resolve_config(config, gather_facts(source, config.data), start_weights(config))


def start_weights(config: RunConfig) -> Inspection | None:
    """What the run is to start from, read and not yet loaded."""
    return opened(config.backbone.weights) if config.backbone.weights is not None else None


def resolve_config(
    config: RunConfig, facts: Facts, weights: Inspection | None = None
) -> tuple[ResolvedConfig, list[Decision]]:
    """The configuration with every "auto" decided, and the decisions; weights: those that the run is to start from.

    UserError where the backbone cannot do what the method needs, or the weights are of another one.
    """
    resolver = _Resolver(config)
    _choose_size_by_schedule(resolver)
    if weights is not None:
        _choose_model_of(resolver, weights)
    _choose_model(resolver, facts)
    part = resolver.tree["backbone"]
    info = backbone_info(part["name"], image_size=part["image_size"], model_args=part["args"])
    if weights is None:
        config = _choose_method(config, resolver, facts, info)
    _choose_run(resolver, facts)
    _choose_cooldown(resolver)
    _scale_rate(resolver)
    given = _situation(resolver, facts, info, weights)
    recipe = _recipe(config, resolver, given)
    check_recipe(config.method.name, recipe, resolver.tree)
    for key, (value, why) in recipe.items():
        resolver.decide(key, value, why)
    _choose_compile(resolver, facts)
    resolver.tree["optim"]["lr_batch"] = _made_for(config, resolver)
    chosen = RunConfig.model_validate(resolver.tree)
    _refuse(chosen, info)
    for each in sizes_of_run(chosen, given, info):
        chosen.method.check(each)
    check_spans(chosen, max(1, facts.images // given.batch_size) * given.epochs)
    check_techniques(chosen)
    if said := check_adaptation(chosen):
        resolver.decisions.append(Decision("adapt.lora_rank", chosen.adapt.lora_rank, said, "--set adapt.lora_rank=…"))
    if weights is not None:
        with torch.device("meta"):
            backbone = create_backbone(part["name"], image_size=part["image_size"], model_args=part["args"])
            _, notes = fitted_weights(backbone, weights)
        resolver.decisions.append(Decision("backbone.weights", weights.file, "; ".join(notes), "--weights FILE"))
        _choose_colours_of(resolver, info, weights)
    _choose_data(resolver, facts)  # last, as it decodes images: all that can be refused has been
    return ResolvedConfig.model_validate(resolver.tree), resolver.decisions


def _choose_method(config: RunConfig, resolver: _Resolver, facts: Facts, info: BackboneInfo) -> RunConfig:
    """Another method than the usual one for few images and a transformer, where nobody has chosen or set up one."""
    given = config.method.model_fields_set
    if "name" in given or facts.images >= SMALL or info.kind != "transformer":
        return config
    usual = config.method.name
    if given:
        keys = " and ".join(f"method.{key}" for key in sorted(given))
        why = f"{keys}: set without --method, so it is {usual}'s; --method {FOR_FEW} learns more from few images"
        resolver.decisions.append(Decision("method.name", usual, why, "--method NAME"))
        return config
    method = config_class(FOR_FEW).model_validate({})
    resolver.tree["method"] = method.model_dump(mode="json")
    why = f"fewer than {SMALL:,} images: the plain contrast learns most in a short time"
    resolver.decisions.append(Decision("method.name", FOR_FEW, why, "--method NAME"))
    return config.model_copy(update={"method": method})


def _recipe(config: RunConfig, resolver: _Resolver, given: Situation) -> Choices:
    """The method's recipe, or what it becomes where trained weights are to get better and not to be lost."""
    recipe = config.method.choose(given)
    if given.weights is not None and not config.method.keeps_backbone:
        return recipe | continued(recipe, given)
    for key, value in AT_RANDOM.items():  # what nobody would ask about is not worth a line
        section, name = key.split(".")
        if resolver.tree[section][name] == "auto" and key not in recipe:
            resolver.tree[section][name] = value
    return recipe


def _situation(resolver: _Resolver, facts: Facts, info: BackboneInfo, weights: Inspection | None) -> Situation:
    """What a method's recipe may depend on."""
    epochs, batch_size = resolver.get("train.epochs"), resolver.get("train.batch_size")
    return Situation(
        images=facts.images,
        epochs=epochs,
        steps=resolver.length(max(1, facts.images // batch_size)),
        dim=info.dim,
        image_size=resolver.get("backbone.image_size"),
        batch_size=batch_size,
        kind=info.kind,
        any_size=info.any_size,
        multiple=info.multiple,
        smallest=info.smallest,
        drops_paths=info.drops_paths,
        grid=info.grid,
        parts=resolver.get("train.accumulate"),
        weights=weights.layout if weights is not None else resolver.get("backbone.weights"),  # as one resumed began
        own=weights is not None and weights.ours,
        products=resolver.get("adapt.lora_rank") is not None,
        layers=partial(_layers, resolver.tree["backbone"]),
    )


def _layers(part: dict[str, Any]) -> int:
    """The number of the backbone's layers."""
    with torch.device("meta"):
        return layer_count(create_backbone(part["name"], image_size=part["image_size"], model_args=part["args"]))


class _Resolver:
    """The settings under decision; ``decide`` fills in one that is still "auto"."""

    def __init__(self, config: RunConfig) -> None:
        self.tree: dict[str, Any] = config.model_dump(mode="json")
        self.decisions: list[Decision] = []

    def get(self, key: str) -> Any:
        section, name = key.split(".")
        return self.tree[section][name]

    def length(self, per_epoch: int) -> int:
        """Steps of the run, of so many an epoch."""
        whole: int = self.get("train.epochs") * per_epoch
        return min(whole, self.get("train.steps") or whole)

    def decide(self, key: str, value: Any, why: str) -> None:
        section, name = key.split(".")
        if self.tree[section][name] != "auto":
            return
        self.tree[section][name] = value
        self.decisions.append(Decision(key, value, why, f"--set {key}=…"))


def _choose_size_by_schedule(resolver: _Resolver) -> None:
    """Crops as large as a schedule of sizes ends with."""
    sizes = resolver.get("train.sizes")
    if sizes is None:
        return
    last = size_shares(sizes)[-1][0]
    resolver.decide("backbone.image_size", last, "the last of train.sizes")
    if (size := resolver.get("backbone.image_size")) != last:
        raise UserError(
            f"train.sizes: ends with {last} pixels, and backbone.image_size is {size}; end with {size}, or leave "
            "backbone.image_size out"
        )


def _choose_model_of(resolver: _Resolver, weights: Inspection) -> None:
    """Backbone, its arguments and crop size as the file of weights says them, where nothing else was chosen."""
    fits, part = weights.architecture, resolver.tree["backbone"]
    if part["name"] == "auto" and fits is None:
        raise UserError(f"{weights.file}: does not say its architecture; add --backbone NAME ({weights.where()})")
    if fits is None or part["name"] not in ("auto", fits.name):
        return
    resolver.decide("backbone.name", fits.name, f"what {weights.file} holds")
    if fits.model_args and not part["args"]:
        part["args"] |= fits.model_args
        resolver.decisions.append(
            Decision("backbone.args", fits.model_args, f"as in {weights.file}", "--set backbone.args.depth=…")
        )
    if fits.size is not None:
        resolver.decide("backbone.image_size", fits.size[0], f"of the images that {weights.file} was trained on")


def _choose_colours_of(resolver: _Resolver, info: BackboneInfo, weights: Inspection) -> None:
    """Images normalised as those that the weights were trained on, however other the run's images are."""
    colours = weights.colours(info.name, (info.mean, info.std))
    for key, value in (("data.mean", colours.mean), ("data.std", colours.std)):
        resolver.decide(key, list(value), f"that of the weights' images, {colours.why}")


def _choose_model(resolver: _Resolver, facts: Facts) -> None:
    """Backbone, crop size and patch: small images get small crops, and on a CPU a small network with a coarse grid."""
    named = resolver.get("backbone.name") != "auto"
    if facts.gpus:
        resolver.decide("backbone.name", "vit_small_patch16_224", "a transformer that one GPU pretrains well")
    else:
        resolver.decide("backbone.name", "vit_tiny_patch16_224", "no GPU found: the smallest usual transformer")
    name, args = resolver.get("backbone.name"), resolver.tree["backbone"]["args"]
    side, usual = _side(args), usual_size(name, args)
    if side is not None or named or facts.side >= usual:
        resolver.decide("backbone.image_size", side or usual, f"what {name} was built for")
    else:  # no crop is larger than the images are
        fitting = max(32, facts.side // 16 * 16)
        resolver.decide("backbone.image_size", fitting, f"the images are {facts.side} pixels, median short side")
    size = resolver.get("backbone.image_size")
    if named or args or size >= (SMALL_SIDE if facts.gpus else usual):
        return
    wanted = size // 8 if size >= SMALL_SIDE else max(4, size // (32 if facts.gpus else 16) * 4)
    patch = next((each for each in range(wanted, 1, -1) if size % each == 0), size)  # a divisor, so that a grid fits
    args |= {"global_pool": "avg", "weight_init": "moco", "patch_size": patch}
    why = "small crops: small patches, their mean as the image's vector, and wide initial weights"
    if not facts.gpus:
        args |= {"embed_dim": 128, "depth": 4, "num_heads": 4}
        why += "; four blocks, for a CPU"
    resolver.decisions.append(Decision("backbone.args", dict(args), why, "--set backbone.args.depth=…"))


def _side(args: dict[str, Any]) -> int | None:
    """The side that backbone.args.img_size says; crops are square."""
    given = args.get("img_size")
    sides = set(given) if isinstance(given, list | tuple) else {given}
    if sides == {None}:
        return None
    side = sides.pop() if len(sides) == 1 and (not isinstance(given, list | tuple) or len(given) == 2) else None
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise UserError(
            f"backbone.args.img_size: {given}; crops are square: leave it out, and set backbone.image_size to one "
            "number of pixels"
        )
    return side


def _choose_data(resolver: _Resolver, facts: Facts) -> None:
    measured = facts.measured
    if (low_high := measured.pixels.range) is not None:
        resolver.decide("data.range", list(low_high), measured.range_why)
    if (bands := measured.pixels.bands) is not None:
        resolver.decide("data.bands", list(bands), measured.bands_why)
    for key in ("range", "bands"):  # what an ordinary set needs is not worth a line
        if resolver.get(f"data.{key}") == "auto":
            resolver.tree["data"][key] = None
    if "auto" in (resolver.get("data.mean"), resolver.get("data.std")):
        mean, std = facts.colours()
        usual = max(abs(a - b) for a, b in zip(mean + std, IMAGENET_MEAN + IMAGENET_STD, strict=True)) < 0.1
        why = "as ImageNet's, from which yours hardly differ" if usual else "measured on your images"
        resolver.decide("data.mean", list(IMAGENET_MEAN if usual else mean), why)
        resolver.decide("data.std", list(IMAGENET_STD if usual else std), why)
    _choose_kernels(resolver, facts)
    devices = facts.gpus or 1
    workers = min(8, max(1, facts.cpus // devices - (0 if facts.gpus else 1)))
    resolver.decide("data.workers", workers, f"{facts.cpus} CPU cores, {devices} of them busy with training")


def _choose_kernels(resolver: _Resolver, facts: Facts) -> None:
    if facts.numba and not facts.gpus:
        resolver.decide("data.kernels", "numba", "it is installed, and a CPU computes the colours")
    else:
        why = "the GPU computes the colours" if facts.gpus else "numba is not installed: pip install 'ssl_vit[numba]'"
        resolver.decide("data.kernels", "torch", why)
    if resolver.get("data.kernels") == "numba" and not facts.numba:
        raise UserError("data.kernels: numba is not installed; pip install 'ssl_vit[numba]', or set data.kernels=torch")


def _choose_run(resolver: _Resolver, facts: Facts) -> None:
    """Batch, length, precision, and how often things are looked at."""
    resolver.decide("train.devices", facts.gpus or 1, "all GPUs" if facts.gpus else "no GPU found")
    world = resolver.get("train.devices") * resolver.get("train.nodes")
    batch = _batch_size(facts, resolver.get("backbone.image_size"), world)
    resolver.decide("train.batch_size", batch, "what a device holds of such crops, and at least 16 steps an epoch")
    if resolver.get("train.batch_size") % world:
        raise UserError(
            f"train.batch_size: {resolver.get('train.batch_size')} images can't be shared by {world} processes; "
            f"set a multiple of {world}"
        )
    parts = resolver.get("train.accumulate")
    if resolver.get("train.batch_size") // world % parts:
        raise UserError(
            f"train.batch_size: the {resolver.get('train.batch_size') // world} images of a step and device can't be "
            f"divided into train.accumulate = {parts} parts; set a multiple of {parts * world}"
        )
    per_epoch = max(1, facts.images // resolver.get("train.batch_size"))
    resolver.decide("train.epochs", *_epochs(facts, resolver.get("train.steps"), per_epoch))
    why = "bfloat16 is quicker here, and keeps float32's range" if facts.bfloat16 else "bfloat16 is not quicker here"
    resolver.decide("train.precision", "bf16-mixed" if facts.bfloat16 else "32-true", why)
    epochs = resolver.get("train.epochs")
    for key, (value, reason) in cadence(epochs, resolver.length(per_epoch), per_epoch).items():
        resolver.decide(key, value, reason)


def _epochs(facts: Facts, steps: int | None, per_epoch: int) -> tuple[int, str]:
    if steps is not None:
        return math.ceil(steps / per_epoch), f"{steps} steps of {per_epoch} an epoch"
    epochs = next(epochs for most, epochs in EPOCHS if facts.images <= most)
    return epochs, f"{facts.images} images: the fewer, the more often each is seen"


def cadence(epochs: int, steps: int, per_epoch: int) -> dict[str, tuple[Any, str]]:
    """How often a run of such a length is saved and looked at, and why."""
    checks = max(10, min(steps // 50, max(25, per_epoch // 4), 500))
    return {
        "train.checkpoint_every": (max(50, min(per_epoch, 1000)), "an epoch, but 50 to 1000 steps"),
        "health.every": (checks, "50 checks a run, and in a long epoch four"),
        "health.knn_every": (max(1.0, float(epochs // 10)), "about 10 scores a run"),
    }


def _scale_rate(resolver: _Resolver) -> None:
    """Bring the rates of a recipe to the run's batch, by the linear rule (1706.02677) of the published ones."""
    part, batch = resolver.tree["optim"], resolver.get("train.batch_size")
    made_for = part["lr_batch"]
    if made_for is None or made_for == batch:
        return
    for key in ("lr", "min_lr"):
        if part[key] != "auto":
            before, part[key] = part[key], float(f"{part[key] * batch / made_for:.12g}")
            why = f"{before:g} x {batch} / {made_for}: the recipe's, made for batches of {made_for}"
            resolver.decisions.append(Decision(f"optim.{key}", part[key], why, f"--set optim.{key}=…"))


def _made_for(config: RunConfig, resolver: _Resolver) -> int | None:
    """The batch that the rate fits, so that the run's configuration is a recipe too; None of a user's rate."""
    known = "lr" in config.optim.undecided() or config.optim.lr_batch is not None
    return resolver.get("train.batch_size") if known else None


def _choose_cooldown(resolver: _Resolver) -> None:
    """What other schedules don't have is not worth a line."""
    schedule, share = resolver.get("optim.schedule"), 0.2
    if schedule in ("rsqrt", "wsd"):
        epochs = share * resolver.get("train.epochs")
        resolver.decide("optim.cooldown_epochs", epochs, f"a fifth of the run, to end {schedule}")
    elif resolver.get("optim.cooldown_epochs") == "auto":
        resolver.tree["optim"]["cooldown_epochs"] = 0.0


def _choose_compile(resolver: _Resolver, facts: Facts) -> None:
    """Where the method's recipe does not say it: on a GPU, in a run that takes far longer than compiling."""
    images = facts.images * resolver.get("train.epochs") * (resolver.get("backbone.image_size") / 224) ** 2
    resolver.decide("train.compile", *_compile(facts, images))


def _compile(facts: Facts, images: float) -> tuple[bool, str]:
    """Whether it pays, and why; images: of 224 pixels, in all."""
    if not facts.gpus:
        return False, "compiling takes minutes, and makes little difference on a CPU"
    if not facts.compiler:
        return False, "it lacks Triton for these GPUs, a C compiler or Python's headers"
    if images < PAYS:
        return False, f"compiling takes minutes, which a run of {PAYS / 1e6:.0f} million images wins back"
    return True, f"a run of {images / 1e6:.1f} million images wins back the minutes that compiling takes"


def _batch_size(facts: Facts, image_size: int, world: int) -> int:
    """A power of two a device: 64 of 224 pixels (the official DINO), more of smaller ones, a quarter on a CPU."""
    room = 64 * (224 / image_size) ** 2 * (1.0 if facts.gpus else 0.25)
    most = min(room, 256, facts.images / (16 * world))
    return world * int(2 ** max(1, int(math.log2(max(most, 2)))))


def _refuse(config: RunConfig, info: BackboneInfo) -> None:
    """What the method asks of the backbone is checked against what the backbone can do, before any image is read."""
    if config.method.plain_only and not info.drops_patches:
        raise UserError(
            f"method.name: {config.method.name} can't pretrain {info.name}: it is {config.method.plain_only}; choose "
            "another method, or a vit or deit"
        )
    size = config.backbone.image_size
    for view in config.method.views(size).views:
        fits = info.any_size and view.size % info.multiple == 0 and view.size >= info.smallest
        if not fits and view.size != size:
            able = (
                f"multiples of {info.multiple} from {info.smallest} on"
                if info.any_size
                else f"{info.size[0]} pixels only"
            )
            raise UserError(
                f"{config.method.name} asks for {view.name} crops of {view.size} pixels, and {info.name} takes {able}; "
                f"set method.{view.name}_size accordingly, or choose another backbone"
            )


def table(decisions: list[Decision]) -> str:
    """The decisions as aligned lines: key = value, the reason."""
    settings = [f"{d.key} = {d.value}" for d in decisions]
    width = max((len(text) for text in settings if len(text) <= WIDE), default=0)
    lines = [f"{text:{width}}  {d.why}" for text, d in zip(settings, decisions, strict=True)]
    return "\n".join(["auto settings (change one with --set KEY=VALUE):", *lines])
