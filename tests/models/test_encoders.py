"""Media encoders: what stands around features, and how video frames are pooled."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.encoders import BasicImageEncoder, BasicVideoEncoder, TSPVideoEncoder, build_encoder
from models.mosaic import pool_grid
from runtime.errors import ExportError, InputError
from tests.models.tiny import VICUNA, VICUNA_SPECIALS, byte_tokenizer

TOKENIZER = byte_tokenizer(VICUNA, VICUNA_SPECIALS)  # it puts <s> in front of every text


def parent(tokens: int = 4) -> Any:
    """Tiles of value v become ``tokens`` rows counted up from 100 v; token ids become rows of that id."""

    def encode(tiles: torch.Tensor, block_sizes: Any = None) -> torch.Tensor:
        base = tiles[:, 0, 0, 0] * 100
        return (base[:, None] + torch.arange(tokens))[..., None].repeat(1, 1, 2)

    def embed(ids: torch.Tensor) -> torch.Tensor:
        return -ids.float()[:, None].repeat(1, 2)

    return SimpleNamespace(encode_images=encode, embed_tokens=embed, tokenizer=TOKENIZER, device="cpu")


def tile(value: float) -> torch.Tensor:
    return torch.full((3, 2, 2), float(value))


def ids_of(text: str) -> list[float]:
    return [-float(i) for i in TOKENIZER(text, add_special_tokens=False)["input_ids"]]


NEWLINE = ids_of("\n")


def test_behaviour_13_every_image_ends_with_a_line_break_and_no_bos() -> None:
    blocks = BasicImageEncoder(parent())([tile(1), torch.stack([tile(2), tile(3)])], {})
    assert len(NEWLINE) == 1
    assert [block[:, 0].tolist() for block in blocks] == [[100 * v + i for i in range(4)] + NEWLINE for v in (1, 2, 3)]


def test_start_and_end_tokens_may_be_several_or_none() -> None:
    encoder = BasicImageEncoder(parent(1), start_tokens="ab", end_tokens=None)
    assert encoder([tile(1)], {})[0][:, 0].tolist() == [*ids_of("ab"), 100]
    assert encoder.token_ids() == ([int(-i) for i in ids_of("ab")], [])


def test_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="no images"):
        BasicImageEncoder(parent())([], {})


def test_a_video_is_one_block_with_a_line_break_after_each_frame() -> None:
    videos = [torch.stack([tile(1), tile(2)]), torch.stack([tile(3)])]
    blocks = BasicVideoEncoder(parent(2))(videos, {"block_sizes": "ignored"})
    assert [block[:, 0].tolist() for block in blocks] == [
        [100, 101, *NEWLINE, 200, 201, *NEWLINE],
        [300, 301, *NEWLINE],
    ]


def test_behaviour_16_tsp_pools_and_places_tokens() -> None:
    encoder = TSPVideoEncoder(parent(4), [[2, 1, 1], [1, 2, 2]], start_tokens="s", end_tokens="e", sep_tokens="|")
    block = encoder([torch.stack([tile(v) for v in (1, 2, 3, 4)])], {})[0][:, 0].tolist()
    start, end, sep = ids_of("s"), ids_of("e"), ids_of("|")
    over_time = [[150, 151, 152, 153], [350, 351, 352, 353]]
    over_space = [[100 * v + 1.5] for v in (1, 2, 3, 4)]
    expected = [x for frame in over_time for x in [*start, *frame, *end]] + sep
    expected += [x for frame in over_space for x in [*start, *frame, *end]] + sep
    assert block == expected
    assert len(block) == 26


@pytest.mark.parametrize("size", [(3, 1, 1), (1, 2, 3), (1, 3, 2)])
def test_behaviour_16_pool_sizes_that_do_not_divide_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="does not divide"):
        pool_grid(torch.zeros(4, 16, 2), size)


def test_behaviour_16_pooling_is_the_mean_of_each_window() -> None:
    frames = torch.randn(4, 16, 3)
    pooled = pool_grid(frames, (2, 2, 1))
    grid = frames.reshape(4, 4, 4, 3)
    assert pooled.shape == (2, 8, 3)
    torch.testing.assert_close(pooled[1, 3], grid[2:4, 0:2, 3].mean(dim=(0, 1)))
    torch.testing.assert_close(pooled[0, 4], grid[0:2, 2:4, 0].mean(dim=(0, 1)))


def test_behaviour_33_encoders_come_from_json_or_objects_through_a_table() -> None:
    fields = {"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[8, 1, 1]], "sep_tokens": "|"}
    for description in (fields, json.dumps(fields)):
        encoder = build_encoder(description, parent())
        assert isinstance(encoder, TSPVideoEncoder)
        assert (encoder.pool_sizes, encoder.sep_tokens, encoder.end_tokens) == ([(8, 1, 1)], "|", "\n")
    assert isinstance(build_encoder({"_target_": "BasicVideoEncoder"}, parent()), BasicVideoEncoder)
    for wrong in ({"_target_": "os.system"}, {}, "{", "[1]"):
        with pytest.raises(ExportError):
            build_encoder(wrong, parent())
    with pytest.raises(ExportError, match="pool_size"):
        build_encoder({"_target_": "TSPVideoEncoder", "pool_sizes": [], "pool_size": 1}, parent())
