"""What gates or zeros leave of a plain ViT becomes a smaller network: fewer rows and columns, not masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.families.pruned_vit import PACE, Gate, PrunedViT
from ssl_vit.backbones.registry import create_backbone
from ssl_vit.errors import UserError

NAME = "pruned_vit"
SAME = 1e-4  # of the largest output: how far the same network in another form may be
_PARTS = ((1, "attn"), (2, "mlp"))  # of a block, by the number of the norm before
WEAKEST = 1e-2  # of a layer's mean: a gate begins no smaller


class Left(NamedTuple):
    """What is left of one block, by numbers in ascending order."""

    attn_inputs: Tensor  # of the tokens' channels [a]
    values: Tensor  # of each head's channels of values [heads, v], counted over all heads
    heads: Tensor  # [heads]
    mlp_inputs: Tensor  # of the tokens' channels [m]
    hidden: Tensor  # units [h]


def prunable(backbone: AdaptedBackbone, gates: float = 0.0) -> AdaptedBackbone:
    """The same network in a form that can be pruned, `PrunedViT`; gates: weight of the penalty on gates, 0: none.

    Gates begin as strong as the weights before and behind them say, with a mean of 1 in each layer; what comes out
    is the same.

    Raises:
        UserError: no plain ViT of timm's usual layers.
    """
    args = _args_of(backbone) | ({"gates": gates} if gates else {})
    info = backbone.info
    made = create_backbone(NAME, image_size=info.size, model_args=args)
    state = dict(backbone.model.state_dict())
    if gates:
        state |= _gated(made.model, state)
    missing, unexpected = made.model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise _not_plain(info.name, f"it has {', '.join([*unexpected, *missing][:3])}")
    made.info = replace(made.info, mean=info.mean, std=info.std)
    _check_same(backbone, made)
    return made


def _args_of(backbone: AdaptedBackbone) -> dict[str, Any]:
    """The arguments of the `PrunedViT` that a plain ViT is."""
    model, name = backbone.model, backbone.info.name
    if isinstance(model, PrunedViT):
        args = {key: value for key, value in backbone.model_args.items() if key != "img_size"}
        if args.pop("gates", 0):
            raise _not_plain(name, "it has gates that are still to be pruned")
        return args
    if type(model) is not VisionTransformer:
        raise _not_plain(name, f"it is a {type(model).__name__}")
    blocks: list[Any] = list(model.blocks)
    for block in blocks:
        layers = (block.attn.norm, block.mlp.norm)
        usual = type(block) is Block and type(block.attn) is Attention and type(block.mlp) is Mlp
        if not usual or not all(isinstance(each, nn.Identity) for each in layers) or block.attn.gate is not None:
            raise _not_plain(name, "its blocks are not the usual ones")
        if type(block.mlp.act) is not nn.GELU or not isinstance(block.ls1, nn.Identity | LayerScale):
            raise _not_plain(name, f"it has {type(block.mlp.act).__name__}")
    first = blocks[0]
    return {
        "patch_size": int(model.patch_embed.patch_size[0]),
        "embed_dim": int(model.embed_dim),
        "depth": len(blocks),
        "num_heads": int(first.attn.num_heads),
        "mlp_ratio": first.mlp.fc1.out_features / model.embed_dim,
        "qkv_bias": first.attn.qkv.bias is not None,
        "qk_norm": not isinstance(first.attn.q_norm, nn.Identity),
        "proj_bias": first.attn.proj.bias is not None,
        "class_token": bool(model.has_class_token),
        "reg_tokens": int(model.num_reg_tokens),
        "no_embed_class": bool(model.no_embed_class),
        "pos_embed": "learn" if model.pos_embed is not None else "none",
        "pre_norm": not isinstance(model.norm_pre, nn.Identity),
        "final_norm": not (isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity)),
        "fc_norm": not isinstance(model.fc_norm, nn.Identity),
        "global_pool": str(model.global_pool),
        "hidden": tuple(block.mlp.fc1.out_features for block in blocks),
    } | ({"init_values": 1e-5} if isinstance(first.ls1, LayerScale) else {})


def _not_plain(name: str, why: str) -> UserError:
    return UserError(
        f"{name}: can't be pruned, as it is no plain ViT ({why}); give a run of a vit or deit of timm's usual layers, "
        "or distil it into a smaller network with --method distill"
    )


def _check_same(backbone: AdaptedBackbone, made: AdaptedBackbone) -> None:
    """UserError where the other form gives other outputs, so that something in it is not as it is taken for."""
    ours, theirs = torch.tensor(made.fingerprint()), torch.tensor(backbone.fingerprint())
    apart = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))
    if not apart < SAME:
        raise _not_plain(backbone.info.name, f"taken for one, its outputs are {apart:.1g} of the largest apart")


def _blocks(model: Any) -> Iterator[tuple[str, Any]]:
    for depth, block in enumerate(model.blocks):
        yield f"blocks.{depth}.", block


def _numbers(state: Mapping[str, Tensor], layers: str, dim: int) -> Tensor:
    """The numbers of the tokens' channels that some layers of a block read, ascending."""
    return state.get(f"{layers}.pick.index", torch.arange(dim))


def _gated(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gates of a model, and the weights behind them divided by them."""
    new: dict[str, Tensor] = {}
    for at, block in _blocks(model):
        norms = [state[f"{at}norm{i}.weight"][_numbers(state, at + part, model.embed_dim)] for i, part in _PARTS]
        values = slice(2 * block.attn.heads * block.attn.head_dim, None)
        for gate, layer, before in (
            ("attn.gate", "attn.qkv", norms[0]),
            ("attn.proj_gate", "attn.proj", state[f"{at}attn.qkv.weight"][values].norm(dim=1)),
            ("mlp.gate", "mlp.fc1", norms[1]),
            ("mlp.hidden_gate", "mlp.fc2", state[f"{at}mlp.fc1.weight"].norm(dim=1)),
        ):
            weight = state[f"{at}{layer}.weight"]
            strength = before.abs() * weight.norm(dim=0)
            strength = (strength / strength.mean().clamp_min(1e-12)).clamp_min(WEAKEST)
            new[f"{at}{gate}.tenths"] = strength / PACE
            new[f"{at}{layer}.weight"] = weight / strength
    return new


def strongest(gates: list[Tensor], keep: float) -> list[Tensor]:
    """Which of all gates are above one threshold, so that exactly a share is: masks of the same shapes.

    Of equally strong ones the first are kept.
    """
    everything = torch.cat([gate.abs() for gate in gates])
    order = everything.argsort(descending=True, stable=True)
    mask = torch.zeros(len(everything), dtype=torch.bool)
    mask[order[: round(keep * len(everything))]] = True
    return list(torch.split(mask, [len(gate) for gate in gates]))


def left_of_gates(model: PrunedViT, keep: float) -> list[Left]:
    """What one threshold over the gates of all layers leaves of each block: the strongest share of all of them.

    Every layer keeps its strongest input at least. A head without a channel of its values above the threshold goes as
    a whole; the others keep equally many, their strongest, together as many as there are above it.
    """
    gates = [module.factors().detach().abs() for module in model.modules() if isinstance(module, Gate)]
    masks = iter(zip(gates, strongest(gates, keep), strict=True))
    found = []
    for _, block in _blocks(model):
        attn, proj, mlp, hidden = (next(masks) for _ in range(4))
        heads, values = _values(*(each.view(block.attn.heads, -1) for each in proj))
        found.append(Left(_kept(*attn), values, heads, _kept(*mlp), _kept(*hidden)))
    return found


def _kept(gate: Tensor, mask: Tensor) -> Tensor:
    """The numbers under a mask, and of an empty one that of the strongest."""
    return mask.nonzero()[:, 0] if mask.any() else gate.argmax()[None]


def _values(gate: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Heads [h] that are left, and the numbers of their channels [h, v]; gate, mask: [heads, channels]."""
    heads = mask.any(1).nonzero()[:, 0] if mask.any() else gate.amax(1).argmax()[None]
    each = max(1, round(int(mask.sum()) / len(heads)))
    chosen = gate[heads].argsort(dim=1, descending=True, stable=True)[:, :each].sort(1).values
    return heads, chosen + heads[:, None] * gate.shape[1]


def left_of_zeros(model: PrunedViT) -> list[Left]:
    """What is left of each block without the heads and hidden units that nothing reads, as their weights are 0."""
    found = []
    for _, block in _blocks(model):
        attn, mlp = block.attn, block.mlp
        channels = attn.proj.weight.detach().abs().amax(0).view(attn.heads, attn.values)
        heads, all_values = channels.amax(1).nonzero()[:, 0], torch.arange(channels.numel()).view_as(channels)
        heads = heads if len(heads) else torch.zeros(1, dtype=torch.long)
        units = mlp.fc2.weight.detach().abs().amax(0).nonzero()[:, 0]
        units = units if len(units) else torch.zeros(1, dtype=torch.long)
        inputs = (torch.arange(attn.qkv.in_features), torch.arange(mlp.fc1.in_features))
        found.append(Left(inputs[0], all_values[heads], heads, inputs[1], units))
    return found


def shrunk(backbone: AdaptedBackbone, left: list[Left]) -> AdaptedBackbone:
    """A `PrunedViT` with what is left, its gates in the weights behind them: a smaller network, and a new one."""
    args = {key: value for key, value in backbone.model_args.items() if key not in ("gates", "img_size")}
    args |= {
        "heads": tuple(len(each.heads) for each in left),
        "values": tuple(each.values.shape[1] for each in left),
        "attn_inputs": tuple(len(each.attn_inputs) for each in left),
        "mlp_inputs": tuple(len(each.mlp_inputs) for each in left),
        "hidden": tuple(len(each.hidden) for each in left),
    }
    info = backbone.info
    made = create_backbone(NAME, image_size=info.size, model_args=args)
    state = {key: value for key, value in backbone.model.state_dict().items() if not key.endswith(".tenths")}
    for (at, block), each in zip(_blocks(backbone.model), left, strict=True):
        state |= _cut(at, block, each, state, backbone.model.embed_dim)
    wanted = made.model.state_dict()
    made.model.load_state_dict({key: value for key, value in state.items() if key in wanted})
    made.info = replace(made.info, mean=info.mean, std=info.std)
    return made


def _cut(at: str, block: Any, left: Left, state: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    """The tensors of a block that are another shape in the smaller one."""
    attn, mlp = block.attn, block.mlp
    rows = torch.arange(attn.heads * attn.head_dim).view(attn.heads, -1)[left.heads].flatten()
    wide, values = attn.heads * attn.head_dim, left.values.flatten()
    out = torch.cat([rows, wide + rows, 2 * wide + values])
    found = {
        f"{at}attn.pick.index": _numbers(state, f"{at}attn", dim)[left.attn_inputs],
        f"{at}mlp.pick.index": _numbers(state, f"{at}mlp", dim)[left.mlp_inputs],
    }
    for name, layer, gate, kept_out, kept_in in (
        ("attn.qkv", attn.qkv, attn.gate, out, left.attn_inputs),
        ("attn.proj", attn.proj, attn.proj_gate, None, values),
        ("mlp.fc1", mlp.fc1, mlp.gate, left.hidden, left.mlp_inputs),
        ("mlp.fc2", mlp.fc2, mlp.hidden_gate, None, left.hidden),
    ):
        weight = layer.weight.detach()
        weight = weight * gate.factors().detach() if isinstance(gate, Gate) else weight
        found[f"{at}{name}.weight"] = (weight if kept_out is None else weight[kept_out])[:, kept_in].clone()
        if layer.bias is not None:
            found[f"{at}{name}.bias"] = (layer.bias if kept_out is None else layer.bias[kept_out]).detach().clone()
    return found
