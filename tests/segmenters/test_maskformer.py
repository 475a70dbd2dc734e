"""MaskFormer against transformers' own: forward, matching and losses with the same weights, and weights both ways."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, SwinConfig
from transformers.models.maskformer.image_processing_pil_maskformer import MaskFormerImageProcessorPil

from ssl_vit.segmenters.mask_loss import MaskLoss, MaskPredictions, MaskTruth
from ssl_vit.segmenters.maskformer import MaskFormer
from ssl_vit.segmenters.maskformer_names import from_transformers, to_transformers
from ssl_vit.segmenters.panoptic import merged

CLASSES, QUERIES, DIM, SIDE = 5, 9, 32, 64


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = MaskFormerConfig(
        backbone_config=SwinConfig(
            image_size=SIDE, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        decoder_config=DetrConfig(d_model=DIM, decoder_layers=2, decoder_ffn_dim=48, num_queries=QUERIES),
        fpn_feature_size=DIM, mask_feature_size=DIM, num_labels=CLASSES,
    )  # fmt: skip
    model = MaskFormerForInstanceSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


class Encoder(nn.Module):
    """Their backbone, as ours sees one."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def pyramid(self, images):
        return list(self.encoder(images).feature_maps)


def network(theirs):
    encoder = theirs.model.pixel_level_module.encoder
    stages = [SimpleNamespace(channels=width, stride=4 << i) for i, width in enumerate(encoder.channels)]
    info = SimpleNamespace(stages=stages, mean=(0.5,) * 3, std=(0.25,) * 3)
    layout = SimpleNamespace(pyramid=lambda model, images: model.pyramid(images))
    backbone = SimpleNamespace(model=Encoder(encoder), layout=layout, info=info)
    return MaskFormer(backbone, [True] * CLASSES, queries=QUERIES, depth=2, dim=DIM, hidden=48).eval()


@pytest.fixture(scope="module")
def ours(theirs):
    model = network(theirs)
    state = from_transformers(theirs.state_dict(), model.state_dict())
    assert {name for name in model.state_dict() if not name.startswith("levels.")} == set(state)
    model.load_state_dict(state, strict=False)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def truth(counts=(3, 2), seed=2):
    rng = torch.Generator().manual_seed(seed)
    masks = [(torch.rand(n, SIDE, SIDE, generator=rng) > 0.6).float() for n in counts]
    return [MaskTruth(torch.randint(CLASSES, (len(own),), generator=rng), own) for own in masks]


def test_the_forward_pass_is_transformers(theirs, ours, images):
    with torch.inference_mode():
        wanted, found = theirs(images), ours(images)
    torch.testing.assert_close(found.logits, wanted.class_queries_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.masks, wanted.masks_queries_logits, atol=1e-4, rtol=1e-4)
    assert found.masks.abs().max() > 0.1
    assert len(found.earlier) == 1


def test_the_weights_go_back_to_transformers(theirs, ours, images):
    """The head's under their names, none over and none missing; and the same forward pass with them."""
    exported = to_transformers(ours.state_dict())
    own = {key: value for key, value in theirs.state_dict().items() if "pixel_level_module.encoder" not in key}
    assert set(exported) == set(own) - {"criterion.empty_weight"}
    assert all(torch.equal(value, own[key]) for key, value in exported.items())
    with pytest.raises(KeyError):
        from_transformers({}, ours.state_dict())


def test_matching_is_transformers(theirs):
    rng = torch.Generator().manual_seed(3)
    logits, masks = torch.randn(2, QUERIES, CLASSES + 1, generator=rng), torch.randn(2, QUERIES, 16, 16, generator=rng)
    targets = truth()
    wanted = theirs.matcher(masks, logits, [each.masks for each in targets], [each.labels for each in targets])
    for (query, own), (their_query, their_own) in zip(MaskLoss().match(logits, masks, targets), wanted, strict=True):
        assert query.tolist() == their_query.tolist()
        assert own.tolist() == their_own.tolist()


@pytest.mark.parametrize("counts", [(3, 2), (4, 0)])
def test_losses_and_gradients_are_transformers(theirs, counts):
    """Those of all layers: each is matched on its own."""
    rng = torch.Generator().manual_seed(4)
    layers = [
        (torch.randn(2, QUERIES, CLASSES + 1, generator=rng), torch.randn(2, QUERIES, 16, 16, generator=rng))
        for _ in range(3)
    ]
    targets, gradients = truth(counts), []
    for whose in ("theirs", "ours"):
        said = [(logits.clone().requires_grad_(), masks.clone().requires_grad_()) for logits, masks in layers]
        if whose == "ours":
            parts = MaskLoss()(MaskPredictions(*said[0], tuple(said[1:])), targets)
            total = torch.stack(list(parts.values())).sum()
            assert set(parts) == {"class", "mask", "dice"}
        else:
            earlier = [{"class_queries_logits": logits, "masks_queries_logits": masks} for logits, masks in said[1:]]
            wanted = theirs.get_loss_dict(
                said[0][1], said[0][0], [each.masks for each in targets], [each.labels for each in targets], earlier
            )
            total = theirs.get_loss(wanted)
        total.backward()
        gradients.append([float(total.detach()), *(value.grad for pair in said for value in pair)])
    assert gradients[1][0] == pytest.approx(gradients[0][0], rel=1e-5)
    for own, their in zip(gradients[1][1:], gradients[0][1:], strict=True):
        torch.testing.assert_close(own, their, atol=1e-5, rtol=1e-4)


def test_a_batch_without_segments_still_teaches_that_nothing_is_there():
    logits, masks = torch.randn(1, QUERIES, CLASSES + 1, requires_grad=True), torch.randn(1, QUERIES, 8, 8)
    parts = MaskLoss()(MaskPredictions(logits, masks), [MaskTruth(torch.empty(0).long(), torch.empty(0, 32, 32))])
    assert float(parts["mask"]) == float(parts["dice"]) == 0.0
    parts["class"].backward()
    assert (logits.grad[..., -1] < 0).all()


def test_segments_are_merged_as_transformers_merge_them():
    """Queries that are sure of their class: theirs weighs a mask's own area by the score too."""
    masks = torch.full((QUERIES, 40, 50), -6.0)
    for i in range(QUERIES):  # blocks that overlap a little, of which one is covered
        top, left = 13 * (i // 3), 16 * (i % 3)
        masks[i, top : top + 14, left : left + 17] = 4.0 + 0.1 * i
    masks[4] = masks[5] - 1.0
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 5, 2, 3, 1, 5, 0]), CLASSES + 1).float() * 40
    things = (True, True, False, False, True)
    outputs = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])
    fused = {label for label, thing in enumerate(things) if not thing}
    [wanted] = MaskFormerImageProcessorPil().post_process_panoptic_segmentation(
        outputs, 0.8, 0.5, 0.8, fused, [(40, 50)]
    )
    segments, labels = merged(logits, lambda kept: iter(masks[kept].sigmoid()), things)
    assert [each["label_id"] for each in wanted["segments_info"]] != []
    for number, label in enumerate(labels.tolist()):
        own = {int(value) for value in wanted["segmentation"][segments == number]}
        assert len(own) == 1
        assert {each["label_id"] for each in wanted["segments_info"] if each["id"] in own} == {label}
    assert (segments == -1).sum() == (wanted["segmentation"] == 0).sum()


def test_nothing_sure_is_no_segment():
    segments, labels = merged(torch.zeros(4, 3), lambda kept: iter(torch.ones(len(kept), 6, 7)), (True, True))
    assert segments.shape == (6, 7)
    assert (segments == -1).all()
    assert len(labels) == 0
