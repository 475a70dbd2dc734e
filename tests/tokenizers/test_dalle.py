"""DALL-E's tokenizer from a local file; the networks themselves are held against goldens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssl_vit.errors import UserError
from ssl_vit.tokenizers.dalle import Dalle, DalleEncoder
from tests.golden import verify

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "dalle__dalle_encoder.json").read_text())


@pytest.mark.slow
def test_words_are_the_likeliest_on_pixels_squeezed_into_the_open_interval(tmp_path: Path) -> None:
    """Section A.3's map of pixels, 0.8 x + 0.1; a file in half precision is read as well."""
    weights = verify.official_weights(GOLDEN)
    torch.save({name: value.half() for name, value in weights.items()}, tmp_path / "encoder.pth")
    tokenizer = Dalle(tmp_path / "encoder.pth", (0.5,) * 3, (0.25,) * 3)
    pixels = torch.rand(1, 3, 32, 32)
    plain = DalleEncoder()
    plain.load_state_dict({name: value.half().float() for name, value in weights.items()})
    with torch.no_grad():
        expected = plain(0.8 * pixels + 0.1).argmax(1)
        found = tokenizer((pixels - 0.5) / 0.25, (4, 4))
    assert (found == expected).float().mean() > 0.9  # (x / 0.25) * 0.25 rounds
    assert tokenizer((pixels - 0.5) / 0.25, (2, 2)).shape == (1, 2, 2)


def test_a_file_of_another_shape_is_refused_by_its_first_name(tmp_path: Path) -> None:
    save_file({"blocks.input.w": torch.zeros(256, 3, 5, 5)}, tmp_path / "a.safetensors")
    with pytest.raises(
        UserError,
        match=r"tokenizer_weights: .*a.safetensors: blocks.input.w is \[256, 3, 5, 5\], DALL-E's encoder has \[256, 3",
    ):
        Dalle(tmp_path / "a.safetensors", (0.5,) * 3, (0.5,) * 3)
    save_file({"blocks.input.w": torch.zeros(256, 3, 7, 7)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"blocks.input.b is missing, DALL-E's encoder has \[256\]"):
        Dalle(tmp_path / "b.safetensors", (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match=r"nowhere"):
        Dalle(tmp_path / "nowhere.pth", (0.5,) * 3, (0.5,) * 3)
