"""The demo models' training code, and the checkpoints that it made."""

from __future__ import annotations

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    SiglipVisionModel,
)

from runtime.sources.scenes import ALL_PAIRS, HELD_OUT_PAIRS, sample_scene
from scripts import make_demo_video
from scripts.demo_model import checkpoint, evalset, evaluation, packing, pictures, questions, vocabulary
from scripts.demo_model.architecture import DemoModel, square_order, tile_index
from scripts.demo_model.augment import occlude
from scripts.demo_model.batches import Vision, prepare, s2_tiles, training_batch
from scripts.demo_model.dense_head import DenseHead, patch_targets
from scripts.demo_model.optimizer import build_optimizers, learning_rate
from scripts.demo_model.pictures import FAMILIES, GRIDS, Family
from scripts.demo_model.release import MAX_BYTES, checkpoint_files, load_for_evaluation

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "models" / "demo"
BAR = 97.0  # mean exact match in percent, the goal; the committed models have 99 and more


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=FAMILIES)
def released(request: pytest.FixtureRequest) -> tuple[DemoModel, packing.Packer]:
    """A committed checkpoint, read by the evaluation."""
    return load_for_evaluation(request.param, DEMO / request.param)


def tokens_of(model: DemoModel, vision: Vision) -> torch.Tensor:
    index = (vision.index.fine, vision.index.coarse) if vision.index else ()
    with torch.no_grad():
        return model.image_tokens(model.features(vision.tiles, *index))


# ---------------------------------------------------------------- questions and evaluation set


def test_every_kind_is_asked_and_answered() -> None:
    rng = np.random.default_rng(0)
    asked: dict[str, set[str]] = {kind: set() for kind in questions.KINDS}
    for _ in range(400):
        for kind, question, answer in questions.ask_all(sample_scene(rng), rng):
            assert question[0].isupper()
            assert question[-1] in "?."
            asked[kind].add(answer)
    assert asked["exists"] == {"yes", "no"}
    assert asked["size"] == {"large", "small"}
    assert asked["relation"] == {"left of", "right of", "above", "below"}
    assert len(asked["where"]) == 9
    assert asked["count"] == {"0", "1", "2", "3", "4"}


def test_training_never_speaks_of_the_held_out_pairs() -> None:
    rng = np.random.default_rng(1)
    names = [" ".join(pair) for pair in HELD_OUT_PAIRS]
    for _ in range(600):
        for _, question, answer in questions.ask_all(sample_scene(rng), rng, unseen=HELD_OUT_PAIRS):
            assert not any(name in question or name in answer for name in names)


def test_random_streams_of_training_and_evaluation_are_disjoint() -> None:
    assert len(set(pictures.PURPOSES.values())) == len(pictures.PURPOSES)
    states = {
        str(pictures.generator(purpose, seed, key).bit_generator.state["state"])
        for purpose in pictures.PURPOSES
        for seed in range(4)
        for key in range(4)
    }
    assert len(states) == 16 * len(pictures.PURPOSES)


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_set_is_a_function_of_its_arguments(family: Family) -> None:
    first, again = (evalset.digest(evalset.eval_items(5, 3, family)) for _ in range(2))
    others = [
        evalset.digest(evalset.eval_items(5, 4, family)),
        evalset.digest(evalset.eval_items(5, 3, family, count=2)),
        *(evalset.digest(evalset.eval_items(5, 3, family, condition=c)) for c in get_args(evalset.Condition)[1:]),
    ]
    assert first == again
    assert len({first, *others}) == len(others) + 1


def test_held_out_scenes_show_a_held_out_pair_and_the_natural_ones_never() -> None:
    names = [" ".join(pair) for pair in HELD_OUT_PAIRS]
    for item in evalset.eval_items(20, 0, "demo-llava", "held_out"):
        described = item.qas[0][2]
        assert any(name in described for name in names)
    for item in evalset.eval_items(60, 0, "demo-llava"):
        assert not any(name in question + answer for _, question, answer in item.qas for name in names)


def test_a_grid_for_every_shape_and_a_shape_for_every_grid() -> None:
    assert set(GRIDS) == {(1, 4), (4, 1), (2, 2), (1, 5), (5, 1), (1, 6), (6, 1), (2, 3), (3, 2)}
    table = {(640, 480): (2, 3), (1920, 1080): (2, 3), (500, 500): (2, 2), (480, 640): (3, 2), (1000, 200): (1, 5)}
    assert {size: pictures.closest_grid(*size) for size in table} == table
    rng = np.random.default_rng(0)
    for grid in GRIDS:
        assert pictures.closest_grid(*pictures.size_for_grid(rng, grid)) == grid
        items = list(evalset.eval_items(2, 0, "demo-nvila", grid=grid))
        assert [item.grid for item in items] == [grid, grid]


def test_occlusion_hides_at_most_a_fifth() -> None:
    rng = np.random.default_rng(2)
    changed = 0
    for _ in range(60):
        scene = sample_scene(rng, 1.0, 2)
        image = np.full((96, 96, 3), 255, np.uint8)
        hidden = (occlude(image, scene, rng) != 255).any(-1)
        cover = evalset_masks(scene)
        assert ((cover * hidden).sum((1, 2)) / cover.sum((1, 2)) <= 0.2001).all()
        changed += bool(hidden.any())
    assert changed > 30


def evalset_masks(scene: object) -> np.ndarray:
    from runtime.sources.scene_render import masks

    return masks(scene, 96, 96)  # type: ignore[arg-type]


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_tokens_are_those_of_the_chat_template(family: Family) -> None:
    tokenizer = vocabulary.build_tokenizer(family)
    packer = packing.Packer(tokenizer, family)
    qas = [("Describe the image.", "a red star left of a blue square"), ("What shape is blue?", "square")]
    row = packer.pack([packing.Row(3, qas, conversation=True)])
    messages = [
        {"role": role, "content": ("<image>\n" if j == 0 and role == "user" else "") + text}
        for j, qa in enumerate(qas)
        for role, text in zip(("user", "assistant"), qa, strict=True)
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    newline = "\n" if family == "demo-nvila" else ""  # VILA's image encoder appends it
    expected = tokenizer(text.replace("<image>", "<image>" * 3 + newline)).input_ids
    trailing = 1 if family == "demo-nvila" else 0  # the template's newline after the last turn
    assert row.ids[0].tolist() == expected[: len(expected) - trailing]
    asked = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    asked_ids = tokenizer(asked.replace("<image>", "<image>" * 3 + newline)).input_ids
    assert [*packer.prefix(3), *packer.question(qas[0][0])] == asked_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_message_content_may_be_parts(family: Family) -> None:
    tokenizer = vocabulary.build_tokenizer(family)
    parts = [{"type": "image"}, {"type": "text", "text": "What shape is blue?"}]
    whole = "<image>\nWhat shape is blue?"
    rendered = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        for content in (parts, whole)
    ]
    assert rendered[0] == rendered[1]


def test_a_packed_row_equals_separate_sequences(released: tuple[DemoModel, packing.Packer]) -> None:
    model, packer = released
    items = list(evalset.eval_items(3, 5, packer.family))
    vision = prepare([item.image for item in items], packer.family)
    tokens = tokens_of(model, vision)
    rows = [packing.Row(n, [(q, a) for _, q, a in item.qas]) for n, item in zip(vision.tokens, items, strict=True)]

    @torch.no_grad()
    def hidden(packed: packing.Packed, image_tokens: torch.Tensor) -> torch.Tensor:
        return model.decode(model.embed(packed.ids, packed.is_image, image_tokens), packed.visible, packed.positions)

    packed = packer.pack(rows)
    together, start = hidden(packed, tokens), 0
    for b, row in enumerate(rows):
        for j, qa in enumerate(row.qas):
            alone = packer.pack([packing.Row(row.num_image_tokens, [qa])])
            single = hidden(alone, tokens[start : start + row.num_image_tokens])
            torch.testing.assert_close(
                together[b][packed.segment[b] == j + 1], single[0][alone.segment[0] == 1], atol=2e-3, rtol=1e-3
            )
        start += row.num_image_tokens


# ---------------------------------------------------------------- pictures, targets, training


def test_image_tokens_read_the_mosaic_row_by_row() -> None:
    """Each tile's patches are numbered by where they are; the index must undo the tiling."""
    for rows, columns in GRIDS:
        fine = np.arange(rows * 4 * columns * 4).reshape(rows * 4, columns * 4)
        tiles = fine.reshape(rows, 4, columns, 4).transpose(0, 2, 1, 3).reshape(-1, 16)
        coarse = np.arange(16)
        flat = np.concatenate([coarse + 1000, tiles.ravel()])
        index = tile_index([(rows, columns)], [1 + rows * columns])
        assert np.array_equal(flat[index.fine], square_order(rows, columns))
        whole = np.repeat(np.repeat(coarse.reshape(4, 4), rows, 0), columns, 1)  # area interpolation to a multiple
        assert np.array_equal(flat[index.coarse] - 1000, whole.ravel()[square_order(rows, columns)])
        first = square_order(rows, columns)[:8]
        assert first.tolist() == [0, 1, columns * 4, columns * 4 + 1, 2, 3, columns * 4 + 2, columns * 4 + 3]


def test_tiles_are_the_whole_picture_and_its_grid() -> None:
    image = np.zeros((128, 192, 3), np.uint8)
    image[64:, 128:] = 200
    tiles = s2_tiles(image, (2, 3))
    assert tiles.shape == (7, 64, 64, 3)
    assert [int(tile.mean()) > 190 for tile in tiles[1:]] == [False] * 5 + [True]
    assert tiles[0][48, 56].min() > 150 > tiles[0][16, 16].max()


def test_targets_point_at_the_figures() -> None:
    rng = np.random.default_rng(3)
    scene = sample_scene(rng, 1.0, 2)
    targets = patch_targets(scene, 6, 6)
    at = int(scene.figures[0].y // 16) * 6 + int(scene.figures[0].x // 16)
    assert targets.figure[at]
    assert vocabulary_name(targets, at) == (scene.figures[0].color, scene.figures[0].shape)
    assert abs(targets.center[at][0] - (scene.figures[0].x / 48 - 1)) < 1e-6


def vocabulary_name(targets: object, at: int) -> tuple[str, str]:
    from runtime.sources.scenes import COLORS, SHAPES

    return COLORS[targets.color[at]], SHAPES[targets.shape[at]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_a_function_of_seed_and_step(family: Family) -> None:
    packer = packing.Packer(vocabulary.build_tokenizer(family), family)
    first, again, other = (training_batch(family, 0, step, packer) for step in (7, 7, 8))
    assert torch.equal(first.vision.tiles, again.vision.tiles)
    assert first.packed is not None and again.packed is not None and other.packed is not None
    for field in fields(packing.Packed):
        assert torch.equal(getattr(first.packed, field.name), getattr(again.packed, field.name))
    assert first.vision.tiles.shape == other.vision.tiles.shape
    assert first.packed.ids.shape == other.packed.ids.shape
    assert not torch.equal(first.vision.tiles, other.vision.tiles)
    assert len(first.targets.color) == first.vision.num_tokens * (4 if family == "demo-nvila" else 1)


def test_rate_warms_up_stays_and_decays() -> None:
    rates = [learning_rate(step, 1000, 400, peak=1.0) for step in range(1001)]
    assert rates[0] < 0.02
    assert rates[100] == rates[599] == 1.0
    assert abs(rates[800] - 0.5) < 1e-9
    assert rates[-1] == 0.01


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    def parts() -> tuple[DemoModel, DenseHead, list[torch.optim.Optimizer]]:
        model = DemoModel("demo-llava")
        head = DenseHead(model.feature_width)
        return model, head, build_optimizers(model, head)

    model, head, optimizers = parts()
    loss = head(model.features(torch.randn(2, 3, 96, 96)))[0].square().mean()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    checkpoint.save(tmp_path, model, head, optimizers, {"step": 3})
    again = parts()
    assert checkpoint.load(tmp_path / checkpoint.STATE, *again) == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.STATE]
    for before, after in zip((model, head), again[:2], strict=True):
        assert all(torch.equal(value, after.state_dict()[key]) for key, value in before.state_dict().items())
    for before_optimizer, after_optimizer in zip(optimizers, again[2], strict=True):
        old, new = before_optimizer.state_dict()["state"], after_optimizer.state_dict()["state"]
        assert old.keys() == new.keys()
        assert all(torch.equal(old[j][name], new[j][name]) for j in old for name in old[j])


# ---------------------------------------------------------------- the committed checkpoints


def test_committed_checkpoint_reaches_its_bar(released: tuple[DemoModel, packing.Packer]) -> None:
    model, packer = released
    items = list(evalset.eval_items(100, 31, packer.family))
    assert evaluation.summarize(evaluation.outcomes(model, packer, items))["mean"]["percent"] >= BAR


@pytest.mark.parametrize("family", FAMILIES)
def test_committed_checkpoint_is_small_and_complete(family: Family) -> None:
    files = checkpoint_files(DEMO / family)
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {"README.md", "training.json", "evaluation.json", "config.json"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


@pytest.mark.parametrize("family", FAMILIES)
def test_card_says_what_was_measured(family: Family) -> None:
    record = json.loads((DEMO / family / "evaluation.json").read_text())
    card = (DEMO / family / "README.md").read_text()
    assert f"| {record['natural']['mean']['percent']:.2f} |" in card
    assert record["sha256"][:16] in card
    assert record["scenes"] >= 2000
    assert all(record["describe_by_count"][n]["questions"] >= 600 for n in "123")


def test_transformers_opens_demo_llava_and_writes_the_same_answers() -> None:
    folder = DEMO / "demo-llava"
    model, info = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    processor = AutoProcessor.from_pretrained(folder)
    ours, packer = load_for_evaluation("demo-llava", folder)
    for item in evalset.eval_items(2, 12, "demo-llava"):
        found = evaluation.outcomes(ours, packer, [item])[0]
        for (_, question, answer), (_, right) in zip(item.qas[:3], found, strict=False):
            message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            prompt = processor.apply_chat_template(message, add_generation_prompt=True)
            inputs = processor(images=image_of(item.image), text=prompt, return_tensors="pt")
            assert inputs["input_ids"][0].tolist() == [*packer.prefix(36), *packer.question(question)]
            torch.testing.assert_close(inputs["pixel_values"], prepare([item.image], "demo-llava").tiles)
            written = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
            assert (processor.decode(written, skip_special_tokens=True).strip() == answer) == right


def image_of(pixels: np.ndarray) -> object:
    from PIL import Image

    return Image.fromarray(pixels)


def test_transformers_opens_the_parts_of_demo_nvila() -> None:
    folder = DEMO / "demo-nvila"
    llm, info = AutoModelForCausalLM.from_pretrained(folder / "llm", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tower, info = SiglipVisionModel.from_pretrained(folder / "vision_tower", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    config = json.loads((folder / "config.json").read_text())
    assert config["mm_hidden_size"] == 2 * tower.config.hidden_size
    assert config["hidden_size"] == llm.config.hidden_size
    tokenizer = AutoTokenizer.from_pretrained(folder / "llm")
    built = vocabulary.build_tokenizer("demo-nvila")
    assert tokenizer.get_vocab() == built.get_vocab()
    text = built.apply_chat_template([{"role": "user", "content": "<image>\nHow many stars?"}], tokenize=False)
    assert tokenizer(text).input_ids == built(text).input_ids


# ---------------------------------------------------------------- the demo video


def test_demo_video_is_what_the_script_writes(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    film = make_demo_video.film()
    truth = [json.loads(line) for line in (ROOT / "runtime/demo/demo_truth.jsonl").read_text().splitlines()]
    assert truth == [{"frame": i, "caption": p.caption, "ambiguous": p.ambiguous} for i, p in enumerate(film)]
    video = cv2.VideoCapture(str(ROOT / "runtime/demo/demo.avi"))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == make_demo_video.FRAMES
    for picture in film[:45]:
        ok, frame = video.read()
        assert ok
        assert np.abs(frame[..., ::-1].astype(int) - picture.rgb).mean() < 12
    video.release()


def test_motion_jpeg_container_is_read_by_opencv(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    file, frames = tmp_path / "grey.avi", []
    for level in (10, 120, 240):
        data = io.BytesIO()
        image_of(np.full((48, 64, 3), level, np.uint8)).save(data, "JPEG")  # type: ignore[attr-defined]
        frames.append(data.getvalue())
    file.write_bytes(make_demo_video.motion_jpeg(frames, 64, 48, 5))
    video = cv2.VideoCapture(str(file))
    levels = [int(video.read()[1].mean()) for _ in frames]
    assert levels == [10, 120, 240]
    assert not video.read()[0]
    assert video.get(cv2.CAP_PROP_FPS) == 5
    video.release()


def test_all_pairs_are_seen_or_held_out() -> None:
    assert len(ALL_PAIRS) == 24
    assert set(HELD_OUT_PAIRS) < set(ALL_PAIRS)
