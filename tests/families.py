"""One small model for every family, for tests that run over all of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import timm
import torch

from ssl_vit.backbones import list_backbones
from ssl_vit.backbones.shapes import ShapesAlone

_TINY: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3}
# family: (name, image_size, model_args); sizes leave a grid of 2 × 2 or more
_TABLE: dict[str, tuple[str, int, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", 32, _TINY),
    "byoanet": ("botnet26t_256", 64, {}),
    "byobnet": ("test_byobnet", 64, {}),
    "cait": ("cait_xxs24_224", 32, {"depth": 2}),
    "coat": ("coat_tiny", 64, {}),
    "convit": ("convit_tiny", 32, {"depth": 3}),
    "convmixer": ("convmixer_768_32", 32, {}),
    "convnext": ("test_convnext", 64, {}),
    "cpubone": ("cpubone_nano", 64, {}),
    "crossvit": ("crossvit_tiny_240", 240, {}),
    "csatv2": ("csatv2", 128, {}),
    "cspnet": ("cs3darknet_focus_s", 64, {}),
    "cspnext": ("cspnext_tiny", 64, {}),
    "davit": ("davit_tiny", 64, {"embed_dims": (24, 48, 96, 192), "depths": (1, 1, 1, 1)}),
    "deepseek_vit": ("deepseek_vit_412m", 56, {"depth": 2, "embed_dim": 48, "num_heads": 2}),
    "deit": ("deit_tiny_patch16_224", 32, {"depth": 2}),
    "densenet": ("densenet121", 64, {}),
    "dla": ("dla46x_c", 64, {}),
    "dpn": ("dpn48b", 64, {}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "efficientformer": ("efficientformer_l1", 224, {}),
    "efficientformer_v2": ("efficientformerv2_s0", 64, {}),
    "efficientnet": ("test_efficientnet", 64, {}),
    "efficientvim": ("efficientvim_m1", 128, {}),
    "efficientvit_mit": ("efficientvit_b0", 64, {}),
    "efficientvit_msra": ("efficientvit_m0", 128, {}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", 32, {"depth": 2}),
    "fasternet": ("fasternet_t0", 64, {}),
    "fastvit": ("fastvit_t8", 64, {}),
    "focalnet": ("focalnet_tiny_srf", 64, {}),
    "gcvit": ("gcvit_xxtiny", 64, {}),
    "gemma4_vit": ("gemma4_vit_167m", 48, {"depth": 2, "embed_dim": 48, "intermediate_size": 96, "num_heads": 1}),
    "ghostnet": ("ghostnet_050", 64, {}),
    "hardcorenas": ("hardcorenas_b", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "hiera": ("hiera_tiny_224", 64, {"embed_dim": 24}),
    "hieradet_sam2": ("sam2_hiera_tiny", 64, {"embed_dim": 24}),
    "hrnet": ("hrnet_w18_small", 64, {}),
    "iformer": ("iformer_t", 64, {}),
    "inception_next": ("inception_next_atto", 64, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 128, {}),
    "inception_v3": ("inception_v3", 128, {}),
    "inception_v4": ("inception_v4", 128, {}),
    "lcnetv2": ("lcnetv2_small", 64, {}),
    "levit": ("levit_128s", 128, {}),
    "lowformer": ("lowformer_b0", 64, {}),
    "mambaout": ("test_mambaout", 64, {}),
    "maxxvit": ("test_coatnet", 64, {}),
    "metaformer": ("poolformerv2_s12", 64, {}),
    "mlp_mixer": ("gmlp_ti16_224", 32, {}),
    "mobilenetv3": ("lcnet_035", 64, {}),
    "mobilenetv5": ("mobilenetv5_base", 64, {}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "mvitv2": ("mvitv2_tiny", 64, {}),
    "naflexvit": ("naflexvit_base_patch16_gap", 32, _TINY),
    "nasnet": ("nasnetalarge", 64, {}),
    "nest": ("nest_tiny", 64, {}),
    "nextvit": ("nextvit_small", 64, {}),
    "nfnet": ("test_nfnet", 64, {}),
    "pit": ("pit_ti_224", 64, {}),
    "pnasnet": ("pnasnet5large", 64, {}),
    "pvt_v2": ("pvt_v2_b0", 64, {}),
    "qwen3_vit": ("qwen3_vit_88m", 32, {"depth": 2, "embed_dim": 64, "num_heads": 2}),
    "rdnet": ("rdnet_tiny", 64, {}),
    "regnet": ("regnetx_002", 64, {}),
    "repghost": ("repghostnet_050", 64, {}),
    "repvit": ("repvit_m1", 64, {}),
    "res2net": ("res2next50", 64, {}),
    "resnest": ("resnest14d", 64, {}),
    "resnet": ("test_resnet", 64, {}),
    "resnetv2": ("resnetv2_18", 64, {}),
    "rexnet": ("rexnet_100", 64, {}),
    "selecsls": ("selecsls42", 128, {}),
    "senet": ("legacy_seresnet18", 64, {}),
    "sequencer": ("sequencer2d_s", 56, {"layers": (1, 1, 1, 1)}),
    "shvit": ("shvit_s1", 128, {}),
    "sknet": ("skresnet18", 64, {}),
    "starnet": ("starnet_s050", 64, {}),
    "swiftformer": ("swiftformer_xs", 64, {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 64, {"embed_dim": 24, "depths": (2, 2, 1, 1)}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", 64, {"embed_dim": 24, "depths": (2, 2, 1, 1)}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 64, {"embed_dim": 24, "depths": (2, 2, 1, 1)}),
    "tiny_vit": ("tiny_vit_5m_224", 64, {}),
    "tnt": ("tnt_s_patch16_224", 32, {"depth": 2}),
    "tresnet": ("tresnet_m", 64, {}),
    "twins": ("twins_svt_small", 64, {"embed_dims": (16, 32, 64, 128), "depths": (1, 1, 2, 1)}),
    "vgg": ("vgg11", 64, {"mlp_ratio": 0.01}),
    "visformer": ("visformer_tiny", 64, {}),
    "vision_transformer": ("test_vit", 32, {}),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 64, {"depth": 2}),
    "vision_transformer_relpos": ("test_vit_relpos", 32, {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", 32, {**_TINY, "neck_chans": 32}),
    "vitamin": ("vitamin_small_224", 32, {"depth": 2}),
    "volo": ("volo_d1_224", 32, {}),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, {}),
    "xception": ("legacy_xception", 64, {}),
    "xception_aligned": ("xception41p", 64, {}),
    "xcit": ("xcit_nano_12_p8_224", 32, {"depth": 2}),
    # our own
    "as_mlp": ("asmlp_tiny", 64, {"depths": (1, 1, 1, 1), "embed_dim": 24}),
    "augvit": ("augvit_small", 32, {}),
    "autoformer": ("autoformer_tiny", 32, {"depth": 2}),
    "cat": ("cat_tiny", 64, {}),
    "ccs_mlp": ("ccs_mlp_s16", 32, {"depth": 2, "embed_dim": 48}),
    "cmt": ("cmt_ti", 64, {}),
    "cotnet": ("cotnet50", 64, {}),
    "cswin": ("cswin_tiny_224", 64, {}),
    "dvt": ("dvt_t2t_vit_12", 32, {"depth": 2}),
    "dynamicvit": ("dynamicvit_deit_small_patch16_224", 32, {**_TINY, "stages": (1,)}),
    "cyclemlp": ("cyclemlp_b1", 64, {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)}),
    "focal": ("focal_tiny_patch4_window7_224", 64, {}),
    "glit": ("glit_tiny_patch16_224", 32, {"depth": 3}),
    "gfnet": ("gfnet_h_ti", 64, {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)}),
    "hat_net": ("hat_net_tiny", 64, {}),
    "lg_transformer": ("lg_transformer_tiny", 64, {}),
    "linmapper": ("linmapper_tiny", 224, {}),
    "multi_stream": ("multi_stream_vit_tiny_patch16_224", 32, {}),
    "p2t": ("p2t_tiny", 64, {}),
    "pgt": ("pgt_tiny", 64, {}),
    "pvt": ("pvt_tiny", 64, {}),
    "rams_trans": ("rams_trans_base_patch32_448", 64, {}),
    "refiner": ("refiner_vit_s", 32, {}),
    "regionvit": ("regionvit_tiny_224", 224, {}),
    "rest": ("rest_lite", 64, {}),
    "pruned_vit": (
        "pruned_vit",
        32,
        {**_TINY, "heads": (2, 3), "values": (7, 4), "hidden": (50, 9), "mlp_inputs": (5, 48)},
    ),
    "scaling_vit": ("vit_giant_patch14_map_224", 28, {**_TINY, "mlp_ratio": 4.0}),
    "s2_mlp": ("s2mlp_deep", 32, {"depth": 2, "embed_dim": 48}),
    "shuffle": ("shuffle_vit_tiny_patch4_window7_224", 64, {}),
    "t2t_vit": ("t2t_vit_7", 32, {}),
    "vip": ("vip_s7", 56, {"depths": (1, 1), "dims": (48, 96), "shares": (6, 12)}),
    "vision_xformer": ("vit_tiny_linformer_patch16_224", 32, {}),
    "vit_early_conv": ("vit_c_1gf", 32, {}),
    "vmoe": (
        "vmoe_small_patch32_last2_e8_224",
        32,
        {**_TINY, "patch_size": 16, "layers": (1,), "experts": 4},
    ),
    "widenet": ("widenet_base_patch16_224", 32, _TINY),
}


# Their smallest published model has 40 to 90 million parameters, of layers that other families have too.
HEAVY = {"inception_resnet_v2", "inception_v4", "mobilenetv5", "nasnet", "pnasnet"}

# Of the others those whose smallest model takes a second or more a step.
COSTLY = HEAVY | {
    *("coat", "cotnet", "crossvit", "csatv2", "densenet", "dpn", "efficientformer", "focal", "hat_net", "inception_v3"),
    *("lg_transformer", "linmapper", "lowformer", "nextvit", "rams_trans", "rdnet", "refiner", "regionvit", "repghost"),
    *("cat", "cmt", "dvt", "efficientvit_msra", "fastvit", "focalnet", "hrnet", "metaformer", "res2net", "rexnet"),
    *("selecsls", "sequencer", "shuffle", "shvit", "swiftformer", "swin_transformer_v2", "swin_transformer_v2_cr"),
    *("tiny_vit", "tresnet", "augvit", "convmixer", "cswin", "efficientformer_v2", "gcvit", "mvitv2", "nest", "p2t"),
    *("pgt", "repvit", "xception", "xception_aligned"),
}


@cache
def cheapest() -> dict[str, tuple[str, dict[str, Any]]]:
    """family: (name, keyword arguments of create_backbone), for timm's families and for our own.

    A family that the table lacks gives its model with the fewest parameters, as published.
    """
    found = {family: (name, {"image_size": size, "model_args": args}) for family, (name, size, args) in _TABLE.items()}
    others: dict[str, list[str]] = {}
    for row in list_backbones():
        if row.family not in found:
            others.setdefault(row.family, []).append(row.name)
    return found | {family: (min(names, key=_parameters), {}) for family, names in others.items()}


def _parameters(name: str) -> int:
    with torch.device("meta"), ShapesAlone():
        return sum(parameter.numel() for parameter in timm.create_model(name, num_classes=0).parameters())
