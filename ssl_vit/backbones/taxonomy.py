"""Where each kind of attention and each other mixer of tokens stands: one table for every name that has a place.

The places of attention are those of "A Survey of Transformers" (2106.04554), section 4; the others are what takes the
place of attention. A network may stand in several. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch

PLACES: Mapping[str, str] = {
    "full": "Softmax attention of every token to every token, the survey's starting point",
    "sparse": "Attention to some tokens alone: windows, stripes, axes, groups, or those that are chosen (4.1)",
    "linear": "Linearised attention: features of queries and keys in place of the softmax, no map of tokens (4.2)",
    "prototype": "Query prototypes and memory compression: attention to fewer keys, pooled, strided or mixed (4.3)",
    "low-rank": "Low-rank attention: the map is approximated through a few landmarks (4.4)",
    "prior": "Attention with a prior: biases of position, or maps of another layer, beside what the tokens say (4.5)",
    "heads": "Improved multi-head: heads that are mixed, expanded or searched for (4.6)",
    "static": "A learned matrix over tokens, the same for every image",
    "dynamic": "Weights over neighbours that each place makes anew, without comparing tokens",
    "shift": "Channels are moved, and a linear layer mixes them",
    "fourier": "Tokens are mixed among their frequencies",
    "pooled": "Neighbours are averaged, and nothing is learned of it",
}

# Names by shell patterns, the first that fits; ours before timm's.
_TABLE: tuple[tuple[str, str], ...] = (
    ("asmlp_* cyclemlp_* s2mlp_*", "shift"),
    ("augvit_*_*", "full static"),
    ("augvit_*", "full"),
    ("autoformer_*", "full prior heads"),
    ("cat_*", "sparse"),
    ("ccs_mlp_*", "static fourier"),
    ("cmt_*", "prototype prior"),
    ("cotn* se_cotn*", "dynamic"),
    ("cswin_*", "sparse"),
    ("dvt_*", "full prior"),
    ("dynamicvit_*", "full sparse"),
    ("focal_* focalv2_*", "sparse prototype prior"),
    ("gfnet_*", "fourier"),
    ("glit_*", "full static"),
    ("hat_net_* transcnn_*", "sparse prototype"),
    ("lg_transformer_*", "sparse"),
    ("linmapper_*", "static"),
    ("multi_stream_* pruned_vit rams_trans_* vit_c_* vit_p_* vmoe_* widenet_* vit_gi*_map_*", "full"),
    ("p2t_* pvt_*", "prototype"),
    ("pgt_*", "sparse"),
    ("refiner_*", "full heads"),
    ("regionvit_*", "sparse prototype prior"),
    ("rest_*", "prototype heads"),
    ("shuffle_*", "sparse prior"),
    ("t2t_vit_t_*", "full"),
    ("t2t_vit_*", "linear full"),
    ("vip_*", "static"),
    ("vit_*_performer_*", "linear"),
    ("vit_*_linformer_*", "prototype"),
    ("vit_*_nystrom_*", "low-rank"),
    ("vit_*_fnet_*", "fourier"),
    ("mixer_* gmixer_* resmlp_* gmlp_*", "static"),
    ("poolformer*", "pooled"),
    ("caformer_*", "full"),
    ("beit* levit_* convit_*", "full prior"),
    ("cait_*", "full heads"),
    ("swin* gcvit_* maxvit_*", "sparse prior"),
    ("davit_* nest_* jx_nest_* hiera_*", "sparse"),
    ("twins_svt_*", "sparse prototype"),
    ("twins_pcpvt_* nextvit_*", "prototype"),
    ("mvitv2_*", "prototype prior"),
    ("xcit_* coat_* efficientvit_b? efficientvit_l?", "linear"),
    ("volo_*", "dynamic full"),
    ("focalnet_*", "dynamic"),
    ("vit_relpos_*", "full prior"),
    ("vit_* deit_* deit3_* tnt_* pit_* crossvit_* eva* flexivit_* naflexvit_* test_vit*", "full"),
)


def places_of(name: str) -> tuple[str, ...]:
    """The places of a backbone of this name; none for one that is not in the table, as convolutional networks.

    >>> places_of("vit_tiny_performer_patch16_224"), places_of("resnet50")
    (('linear',), ())
    """
    for patterns, places in _TABLE:
        if any(fnmatch(name, pattern) for pattern in patterns.split()):
            return tuple(places.split())
    return ()
