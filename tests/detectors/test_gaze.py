"""What queries look at: attention computed by hand, and points that are known before training."""

import math

import pytest
import torch

from ssl_vit.detectors.deformable_attention import DeformableAttention
from ssl_vit.detectors.detector import Predictions
from ssl_vit.detectors.gaze import gaze, surest
from tests.detectors.test_detectors import small


def test_detr_looks_as_the_softmax_of_its_queries_and_keys_says():
    torch.manual_seed(0)
    detector = small("detr").eval()
    images = torch.randn(2, 3, 96, 64)
    attention = detector.transformer.decoder.layers[-1].multihead_attn
    given = []
    handle = attention.register_forward_pre_hook(lambda _, args: given.append(args))
    expected = detector(images)
    handle.remove()
    seen = gaze(detector, images)
    torch.testing.assert_close(seen.predictions.boxes, expected.boxes)
    assert seen.grid == (3, 2)

    query, keys, _ = given[0]
    dim, heads = attention.embed_dim, attention.num_heads
    q, k = (
        (x @ attention.in_proj_weight[part].T + attention.in_proj_bias[part]).unflatten(-1, (heads, -1))
        for x, part in ((query, slice(dim)), (keys, slice(dim, 2 * dim)))
    )
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(dim // heads)).softmax(-1).mean(1)
    torch.testing.assert_close(seen.weights, weights, atol=1e-6, rtol=1e-4)
    corners = [[0.25, 1 / 6], [0.75, 1 / 6], [0.25, 0.5]]
    torch.testing.assert_close(seen.points[1, 2, :3], torch.tensor(corners))


def test_an_untrained_deformable_detr_looks_around_its_reference_points():
    """Weights are equal, and the points of head h lie 1, 2, … cells from the reference in its direction."""
    torch.manual_seed(0)
    detector = small("deformable").eval()
    attention = detector.transformer.decoder.layers[-1].cross_attn
    assert isinstance(attention, DeformableAttention)
    images = torch.randn(1, 3, 64, 64)
    seen = gaze(detector, images)
    count = attention.heads * attention.levels * attention.points
    torch.testing.assert_close(seen.weights, torch.full_like(seen.weights, 1 / count))
    assert seen.grid is None
    places = detector.query_embed.weight.chunk(2, -1)[0]
    reference = detector.transformer.reference_points(places).sigmoid()
    sizes = [map_.shape[-1] for map_ in detector.maps(images)]
    points = seen.points[0].unflatten(1, (attention.heads, attention.levels, attention.points))
    for level, cells in enumerate(sizes):  # the first head looks to the right, the third downwards
        steps = torch.arange(1, attention.points + 1) / cells
        torch.testing.assert_close(points[:, 0, level, :, 0] - reference[:, :1], steps.expand(len(points), -1))
        torch.testing.assert_close(points[:, 2, level, :, 1] - reference[:, 1:], steps.expand(len(points), -1))


@pytest.mark.parametrize("focal", [True, False])
def test_the_surest_queries_are_those_of_the_likeliest_object(focal):
    logits = torch.tensor([[[0.0, 1.0, 9.0], [3.0, -5.0, -9.0], [-1.0, 2.0, -9.0]]])
    said = Predictions(logits, torch.zeros(1, 3, 4))
    assert surest(said, focal, 2).tolist() == ([[0, 1]] if focal else [[1, 2]])
    assert surest(said, focal, 9).shape == (1, 3)
