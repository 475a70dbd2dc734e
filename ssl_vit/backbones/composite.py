"""Composite backbones: several copies of one network, each fed with what the one before it saw (CBNetV2, 2107.00420).

Every copy but the last assists. The input of a stage of the next copy gets the maps of that stage and of all coarser
ones from the copy before, each through a convolution of 1 x 1 and a norm that begins with 0, enlarged to its size
(dense higher-level composition). So at first the last copy, which leads, gives what the single network gives. Where a
stage begins is told by timm's ``feature_info``; the module there is fed by a hook that lives for one pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.layers import Size
from ssl_vit.backbones.layout import FeatureLayout, TimmModel, grids
from ssl_vit.errors import UserError

FINEST = 4  # stride of the first stage that takes part
AUXILIARY = 0.5  # weight of the loss on the maps of each network that assists, by the same head
_PREFIX = 16  # tokens in front that are no patch, at most


class Entry(NamedTuple):
    """An entry says where a stage begins, and what it is given there."""

    level: int  # of the pyramid
    module: str
    channels: int
    kind: str  # "NCHW", "NHWC" or "tokens"
    stride: int = 1  # of tokens: pixels a patch
    prefix: int = 0  # of tokens: those in front


class Link(nn.Sequential):
    """A map of one stage becomes what another is fed with; nothing at first. The norm keeps its statistics."""

    def __init__(self, dim: int, out: int) -> None:
        norm = nn.BatchNorm2d(out)
        nn.init.zeros_(norm.weight)
        super().__init__(nn.Conv2d(dim, out, 1, bias=False), norm)
        self.train()

    def train(self, mode: bool = True) -> Link:
        """Set the mode of all but the norm, as the official code has it."""
        super().train(mode)
        self[1].eval()
        return self


class Lent(nn.Module):
    """In the place of a module, this gives what another network's has given in the same pass."""

    def __init__(self) -> None:
        super().__init__()
        self.given: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        """Return what was lent."""
        return self.given


class Composite(nn.Module):
    """The networks of a composite, the last of which leads.

    shared: so many first stages, and what comes before them, are computed once, by the first network.
    """

    def __init__(self, backbone: AdaptedBackbone, count: int, shared: int) -> None:
        super().__init__()
        self.layout = backbone.layout
        self.entries = entries(backbone)
        stages = backbone.info.stages
        self.shared = _shared_modules(backbone.model, self.entries, shared, backbone.info.name)
        first = backbone.model
        self.networks = nn.ModuleList([first, *(_following(first, self.shared) for _ in range(count - 1))])
        self.links = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList(Link(stages[source.level].channels, entry.channels) for source in self.entries[place:])
                for place, entry in enumerate(self.entries)
                if place >= shared
            )
            for _ in range(count - 1)
        )
        self.first_fed = shared
        self._seen: list[list[Tensor]] = []  # the maps of those that assisted in the last pass
        self._instead: int | None = None

    @property
    def assistants(self) -> int:
        """So many networks assist."""
        return len(self.networks) - 1

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps of the network that leads, finest first; images: [B, 3, H, W]."""
        if self._instead is not None:
            return self._seen[self._instead]
        lent, seen = dict[str, Any](), list[list[Tensor]]()
        for place, network in enumerate(self.networks):
            with ExitStack() as hooks:
                if place == 0:
                    hooks.enter_context(_noted(network, self.shared, lent))
                else:
                    hooks.enter_context(_lending(network, lent))
                    feeds = self._feeds(seen[-1], place - 1)
                    hooks.enter_context(_fed(network, feeds, (images.shape[-2], images.shape[-1])))
                seen.append(self.layout.pyramid(network, images))
        self._seen = seen[:-1] if self.training else []
        return seen[-1]

    def _feeds(self, maps: list[Tensor], place: int) -> dict[Entry, list[Tensor]]:
        """What each entry is fed with, by the maps of the network before."""
        own = [cast(nn.ModuleList, links) for links in cast(nn.ModuleList, self.links[place])]
        return {
            entry: [link(maps[source.level]) for link, source in zip(links, self.entries[at:], strict=True)]
            for at, (entry, links) in enumerate(
                zip(self.entries[self.first_fed :], own, strict=True), start=self.first_fed
            )
        }

    @contextmanager
    def instead(self, place: int) -> Iterator[None]:
        """Give the maps of a network that assisted in the last pass, without another pass."""
        self._instead = place
        try:
            yield
        finally:
            self._instead = None

    def forget(self) -> None:
        """Let the maps of the last pass go."""
        self._seen = []


@dataclass(frozen=True)
class CompositeLayout(FeatureLayout):
    """The layout of a composite reads the maps of the network that leads."""

    def pyramid(self, model: TimmModel, images: Tensor) -> list[Tensor]:
        """Return the map of every stage, finest first; images: [B, 3, H, W]."""
        maps: list[Tensor] = model(images)
        return maps


class CompositeBackbone(AdaptedBackbone):
    """A composite stands under a detector or a segmenter as any backbone does; it has a pyramid and nothing else."""

    def __init__(self, backbone: AdaptedBackbone, count: int, shared: int = 0) -> None:
        nn.Module.__init__(self)
        self.model = Composite(backbone, count, shared)
        self.layout = CompositeLayout(stride=backbone.layout.stride)
        self.info = replace(
            backbone.info,
            name=f"{count} x {backbone.info.name}",
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            drops_patches=False,
        )
        self.model_args = {}
        self.mask_token = None


def composite_of(trunk: nn.Module) -> Composite | None:
    """Return the composite that the backbone of a detector or a segmenter is; None where it is a single network."""
    inside = trunk.model if isinstance(trunk, CompositeBackbone) else trunk
    return inside if isinstance(inside, Composite) else None


@torch.no_grad()
def entries(backbone: AdaptedBackbone) -> tuple[Entry, ...]:
    """Find where the stages of stride 4 and more begin, by a pass of an image of zeros.

    Raises:
        UserError: the network doesn't say it, or runs them in another way.
    """
    model, layout, info = backbone.model, backbone.layout, backbone.info
    levels = layout.levels or (0,)
    starts = [0, *(level + 1 for level in levels[:-1])]
    taking = [place for place, stage in enumerate(info.stages) if stage.stride >= FINEST] or [len(info.stages) - 1]
    told = f"{info.name}: can't be told where its stages begin, which a composite is fed by; leave --composite out"
    given = dict[str, list[Any]]()
    try:
        names = {place: str(model.feature_info[starts[place]]["module"]) for place in taking}
        with ExitStack() as hooks:
            for name in names.values():
                take = given.setdefault(name, []).append
                handle = model.get_submodule(name).register_forward_pre_hook(lambda _, x, take=take: take(x))
                hooks.callback(handle.remove)
            mode = model.training
            layout.pyramid(model.eval(), next(model.parameters()).new_zeros(2, 3, *info.size))
            model.train(mode)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise UserError(told) from error
    found = []
    for place, name in names.items():
        inputs = given[name]
        entry = _entry(place, name, inputs[0][0], backbone) if len(inputs) == 1 and inputs[0] else None
        if entry is None:
            raise UserError(told)
        found.append(entry)
    return tuple(found)


def _entry(level: int, module: str, x: Any, backbone: AdaptedBackbone) -> Entry | None:
    """What a stage is given, by what it was given for an image of the size that the network was built for."""
    size, stages = backbone.info.size, backbone.info.stages
    if not isinstance(x, Tensor) or x.ndim not in (3, 4):
        return None
    if x.ndim == 4:
        last = backbone.layout.channels_last
        fits = [_alike(shape, size) for shape in (x.shape[2:], x.shape[1:3])]
        if fits[0] and not (last and fits[1]):
            return Entry(level, module, x.shape[1], "NCHW")
        return Entry(level, module, x.shape[3], "NHWC") if fits[1] else None
    for stride in (stages[level].stride, stages[max(0, level - 1)].stride):
        for rows, columns in grids(size, stride):
            if 0 <= (prefix := x.shape[1] - rows * columns) <= _PREFIX:
                return Entry(level, module, x.shape[2], "tokens", stride, prefix)
    return None


def _alike(shape: tuple[int, ...], size: Size) -> bool:
    """Whether a map has the sides of an image, as nearly as whole cells allow."""
    return abs(shape[0] * size[1] - shape[1] * size[0]) <= max(size)


def _shared_modules(model: TimmModel, found: tuple[Entry, ...], shared: int, name: str) -> tuple[str, ...]:
    """The modules that run before the first stage that is not shared."""
    if shared >= len(found):
        raise UserError(
            f"--composite-shared {shared}: {name} has {len(found)} stages, of which one is left; give fewer"
        )
    if not shared:
        return ()
    modules = [str(each["module"]) for each in model.feature_info]
    return tuple(modules[: modules.index(found[shared].module)])


def _following(model: TimmModel, shared: tuple[str, ...]) -> TimmModel:
    """A copy of a network; in the place of shared modules there is what the first network lends."""
    if not shared:
        return copy.deepcopy(model)
    before = []
    for name, child in model.named_children():
        if any(module == name or module.startswith(f"{name}.") for module in shared):
            break
        before.append(child)
    lent = {model.get_submodule(module): Lent() for module in shared}
    known = {id(child): child for child in before} | {id(module): stub for module, stub in lent.items()}
    return copy.deepcopy(model, known)


@contextmanager
def _noted(network: nn.Module, modules: tuple[str, ...], into: dict[str, Any]) -> Iterator[None]:
    """Note what modules give."""
    with _hooked(network, modules, lambda name: lambda _, __, out: into.__setitem__(name, out)):
        yield


@contextmanager
def _hooked(network: nn.Module, modules: tuple[str, ...], hook: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    handles = [network.get_submodule(name).register_forward_hook(hook(name)) for name in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _lending(network: nn.Module, lent: Mapping[str, Any]) -> Iterator[None]:
    """Fill the places of modules that another network has run."""
    places = [(network.get_submodule(name), out) for name, out in lent.items()]
    for place, out in places:
        place.given = out
    try:
        yield
    finally:
        for place, _ in places:
            place.given = None  # type: ignore[assignment]  # torch types all attributes


@contextmanager
def _fed(network: nn.Module, feeds: Mapping[Entry, list[Tensor]], size: Size) -> Iterator[None]:
    """Add to what stages are given; size: (height, width) of the images."""

    def fed(entry: Entry, maps: list[Tensor]) -> Callable[..., Any]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            return _added(given[0], maps, entry, size), *given[1:]

        return hook

    handles = [
        network.get_submodule(entry.module).register_forward_pre_hook(fed(entry, maps)) for entry, maps in feeds.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _added(x: Tensor, maps: list[Tensor], entry: Entry, size: Size) -> Tensor:
    """What a stage is given with maps [B, C, h, w] enlarged to it and added."""
    if entry.kind == "tokens":
        patches = x.shape[1] - entry.prefix
        grid = next(grid for grid in grids(size, entry.stride) if grid[0] * grid[1] == patches)
        total = _enlarged(maps, grid).flatten(2).mT
        return x + F.pad(total, (0, 0, entry.prefix, 0)).to(x.dtype)
    if entry.kind == "NHWC":
        return x + _enlarged(maps, (x.shape[1], x.shape[2])).permute(0, 2, 3, 1).to(x.dtype)
    return x + _enlarged(maps, (x.shape[2], x.shape[3])).to(x.dtype)


def _enlarged(maps: list[Tensor], size: Size) -> Tensor:
    """The sum of maps, each enlarged to one size by repetition."""
    return torch.stack([F.interpolate(map_, size, mode="nearest") for map_ in maps]).sum(0)
