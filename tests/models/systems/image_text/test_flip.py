"""FLIP beyond the recorded cases (tests/golden/flip): its T5X files, the published sizes, another grid, and what section 3 of the paper
says of masks and padding, by invariants and gradients."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from models.checkpoints import CheckpointError, detect, families, fit, import_checkpoint, read_checkpoint, t5x
from models.layers.patches import sincos_table
from models.merge_schedule import MergeSchedule
from models.systems.image_text.flip import FLIP, PUBLISHED, FLIPConfig
from tests.golden.case import find_cases, published_keys, read_case, unpack
from tests.golden.replays.flip import answers, flip_config, load

GOLDEN = Path(__file__).parents[3] / "golden" / "flip"
CASES = list(find_cases(GOLDEN))
KEYS: dict[str, Any] = published_keys("flip")

SMALL = FLIPConfig(
    image_size=32,
    patch_size=8,
    width=24,
    depth=2,
    heads=3,
    mlp_ratio=1.5,
    text_width=16,
    text_depth=2,
    text_heads=2,
    text_hidden=32,
    vocabulary=40,
    text_length=6,
    joint_width=12,
)


def make(config: FLIPConfig = SMALL) -> FLIP:
    torch.manual_seed(0)
    return FLIP(config).eval()


def pictures(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def captions(count: int = 3) -> Tensor:
    return torch.randint(1, 40, (count, 6), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("name", "millions"), [("flip_large16", 413.2), ("flip_huge14", 966.7)])
def test_published_checkpoints_load_strictly_at_full_size(name: str, millions: float) -> None:
    shapes = KEYS[name]["params"]
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert detect(weights) == ["flip"]
    found = fit(weights, families()["flip"], {})
    assert found.perfect
    assert found.config() == PUBLISHED[name]
    with torch.device("meta"):
        model = FLIP(found.config())
    model.load_state_dict(found.weights, strict=True, assign=True)
    assert round(sum(value.numel() for value in model.state_dict().values()) / 1e6, 1) == millions
    assert {key: list(value.shape) for key, value in families()["flip"].export(model.state_dict()).items()} == shapes


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_a_checkpoint_survives_the_way_to_our_names_and_back(folder: Path) -> None:
    published, family = read_checkpoint(folder / "checkpoint.pth"), families()["flip"]
    settings = vars(flip_config(read_case(folder).config))
    found = fit(published, family, settings)
    exported = family.export(found.weights)
    assert exported.keys() == published.keys()
    assert all(torch.equal(exported[key], value) for key, value in published.items())
    assert all(torch.equal(fit(exported, family, settings).weights[key], value) for key, value in found.weights.items())


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_a_checkpoint_and_its_heads_give_the_whole_config(folder: Path) -> None:
    config = flip_config(read_case(folder).config)
    found = fit(read_checkpoint(folder / "checkpoint.pth"), families()["flip"], {"heads": config.heads, "text_heads": config.text_heads})
    assert replace(found.config(), mask_ratio=config.mask_ratio) == config


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_bfloat16_stays_within_two_percent(folder: Path) -> None:
    case = read_case(folder)
    with torch.inference_mode():
        outputs = answers(case, load(case).bfloat16()).outputs
    for name in ("train_image_features", "train_text_features", "eval_image_features", "eval_text_features"):
        recorded = case.outputs[name]
        assert ((outputs[name].float() - recorded).norm(dim=1) < 0.02 * recorded.norm(dim=1)).all(), name


def test_patches_may_come_in_any_order() -> None:
    """The patches in the order of their noise are still all patches: pooling ignores the order (section 3)."""
    model = make(replace(SMALL, mask_ratio=0.0))
    images, noise = pictures(), torch.rand(3, 16)
    torch.testing.assert_close(model.encode_images(images, noise=noise), model.encode_images(images))


def test_what_is_masked_is_not_seen() -> None:
    model, images = make(), pictures(1)
    noise = torch.linspace(0, 0.9, 16).flip(0).unsqueeze(0)  # the last 8 patches, the lower half, are kept
    other = images.clone()
    other[:, :, :16] = torch.randn(1, 3, 16, 32)
    assert torch.equal(model.encode_images(images, noise=noise), model.encode_images(other, noise=noise))
    other[:, :, 16:] += 1
    assert not torch.allclose(model.encode_images(images, noise=noise), model.encode_images(other, noise=noise))


def test_of_patches_with_the_same_noise_the_first_are_seen() -> None:
    model, images = make(replace(SMALL, image_size=48, mask_ratio=0.75)), torch.randn(1, 3, 48, 48)
    first = torch.arange(36.0).unsqueeze(0)
    assert torch.equal(model.encode_images(images, noise=torch.zeros(1, 36)), model.encode_images(images, noise=first))


def test_a_mask_ratio_is_truncated() -> None:
    assert FLIPConfig(mask_ratio=0.75).visible == 49
    assert FLIPConfig(patch_size=14, mask_ratio=0.75).visible == 64
    assert replace(SMALL, mask_ratio=0.7).visible == 4


def test_the_class_token_has_no_position_and_is_part_of_the_mean() -> None:
    model, images = make(), pictures()
    before = model.encode_images(images)
    model.vision.pos_embed[:, 0] += 5
    assert torch.equal(model.encode_images(images), before)
    tokens: list[Tensor] = []
    model.vision.norm.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    features = model.vision(images).features
    torch.testing.assert_close(features, tokens[0].mean(dim=1))


def test_merged_tokens_count_by_their_size_in_the_mean() -> None:
    model, images = make(), pictures()
    tokens: list[Tensor] = []
    model.vision.norm.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    answer = model.vision(images, merge=MergeSchedule.constant(3))
    assert answer.size is not None and answer.tokens_out == 11
    torch.testing.assert_close(answer.features, (tokens[0] * answer.size).sum(dim=1) / 17)


def test_padding_is_read_like_words() -> None:
    model, texts = make(), captions()
    texts[:, 4:] = 0
    before = model.encode_texts(texts)
    model.text.token_embed.weight.data[0] += 1
    assert not torch.allclose(model.encode_texts(texts), before)
    with pytest.raises(ValueError, match="texts of 4 word pieces where exactly 6 are needed"):
        model.encode_texts(texts[:, :4])


@pytest.mark.parametrize(("logarithm", "scale", "moves"), [(-1.0, 1.0, False), (2.0, 7.389056, True), (6.0, 100.0, False)])
def test_the_scale_is_clipped_and_gets_no_gradient_outside(logarithm: float, scale: float, moves: bool) -> None:
    model = make()
    assert model.logit_scale is not None
    model.logit_scale.data.fill_(logarithm)
    model(pictures(), captions()).loss.backward()
    assert float(model.scale().detach()) == pytest.approx(scale)
    assert model.logit_scale.grad is not None
    assert bool(model.logit_scale.grad.abs().max() > 0) is moves


def test_the_masked_forward_is_one_graph() -> None:
    model, arrays = make(), (pictures(), captions(), torch.rand(3, 16))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(*arrays).loss, model(*arrays).loss)


def test_both_towers_learn_and_the_fixed_table_does_not() -> None:
    model = make()
    model(pictures(), captions(), torch.rand(3, 16)).loss.backward()
    idle = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert idle == {"vision.pos_embed"}


def test_training_starts_as_published() -> None:
    """Section 9 of the published recipe: q, k and v each uniform of variance 1 / (2 · width), the rest Xavier."""
    model = FLIP(replace(SMALL, width=256, heads=4, mlp_ratio=4.0))
    block = model.vision.blocks[0]
    assert float(block.attn.qkv.weight.detach().var()) == pytest.approx(0.5 / 256, rel=0.05)
    assert float(block.mlp.fc1.weight.detach().var()) == pytest.approx(2 / (256 + 1024), rel=0.05)
    assert float(model.vision.patch_embed.proj.weight.detach().var()) == pytest.approx(2 / (192 + 256), rel=0.05)
    assert float(model.text.token_embed.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(block.attn.qkv.bias.detach().abs().max()) == 0
    assert torch.equal(model.vision.pos_embed, sincos_table(256, 4))
    assert float(model.scale().detach()) == pytest.approx(1 / 0.07)


def test_another_grid_computes_the_table_again() -> None:
    case = read_case(GOLDEN / "tiny_m50_t5x")
    config = replace(flip_config(case.config), image_size=64)
    found = fit(read_checkpoint(case.checkpoint), families()["flip"], vars(config))
    assert found.perfect
    assert torch.equal(found.weights["vision.pos_embed"], sincos_table(config.width, 8))


def test_a_t5x_folder_becomes_a_zero_shot_bundle() -> None:
    arguments: dict[str, Any] = {"labels": None, "name": "flip", "version": "1", "license": "unknown"}
    spec, _ = import_checkpoint(unpack(GOLDEN / "tiny_m50_t5x"), family=None, overrides={"heads": "4", "text_heads": "2"}, **arguments)
    assert (spec.task, spec.architecture, spec.config["heads"], spec.config["text_heads"]) == ("zero-shot", "flip", 4, 2)


def write_array(folder: Path, name: str, array: np.ndarray[Any, Any], chunks: list[int], **changes: Any) -> None:
    """Write an array in zarr format 2 without compression; the chunks at the end stick out."""
    location = folder / f"target.{name}"
    location.mkdir(parents=True)
    metadata = {"chunks": chunks, "compressor": None, "dtype": "<f4", "fill_value": None, "filters": None, "order": "C"}
    (location / ".zarray").write_text(json.dumps({**metadata, "shape": array.shape, "zarr_format": 2, **changes}))
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True)]
    full = np.zeros([count * chunk for count, chunk in zip(counts, chunks, strict=True)], array.dtype)
    full[tuple(slice(size) for size in array.shape)] = array
    for place in np.ndindex(*counts):
        part = full[tuple(slice(i * chunk, (i + 1) * chunk) for i, chunk in zip(place, chunks, strict=True))]
        (location / (".".join(map(str, place)) or "0")).write_bytes(part.tobytes("F" if changes.get("order") == "F" else "C"))


def write_index(folder: Path, target: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint").write_bytes(msgspec.msgpack.encode({"version": 3, "optimizer": {"target": target, "state": {}}}))


def inline(array: np.ndarray[Any, Any], dtype: str) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(1, msgspec.msgpack.encode([array.shape, dtype, array.tobytes()]))


ELSEWHERE = {"driver": "zarr", "dtype": "float32", "kvstore": {"driver": "gcs", "bucket": "dummy"}, "path": "../../nowhere"}


def test_arrays_are_read_from_folders_and_from_the_index(tmp_path: Path) -> None:
    matrix = np.arange(35, dtype=np.float32).reshape(5, 7)
    halves = np.array([1.5, -2.0], np.float32).view(np.uint16)[1::2]  # the upper half of a float32 is a bfloat16
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 3}, "chunks": {"1": inline(matrix[0, 4:6], "float32")}}
    chunked["chunks"] |= {"0": inline(matrix[0, :4], "float32")}
    write_index(tmp_path, {"a": {"kernel": ELSEWHERE, "turned": ELSEWHERE}, "b": inline(halves, "bfloat16"), "c": chunked, "d": ELSEWHERE})
    write_array(tmp_path, "a.kernel", matrix, [2, 4])
    write_array(tmp_path, "a.turned", matrix, [2, 7], order="F")
    write_array(tmp_path, "d", np.array(3.0, np.float32), [])
    read = read_checkpoint(tmp_path)
    assert set(read) == {"a.kernel", "a.turned", "b", "c", "d"}
    assert torch.equal(read["a.kernel"], torch.from_numpy(matrix))
    assert torch.equal(read["a.turned"], torch.from_numpy(matrix))
    assert torch.equal(read["b"], torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    assert torch.equal(read["c"], torch.arange(6.0).view(2, 3))
    assert read["d"].shape == () and float(read["d"]) == 3.0


def test_of_many_steps_the_last_is_read(tmp_path: Path) -> None:
    for step in (900, 1000, 80):
        write_index(tmp_path / f"checkpoint_{step}", {"step": inline(np.array([step], np.float32), "float32")})
    (tmp_path / "checkpoint_2000").mkdir()  # its copying was cut off
    assert float(read_checkpoint(tmp_path)["step"]) == 1000


def damage(folder: Path, mode: str) -> None:
    chunk = folder / "target.w" / "0.0"
    match mode:
        case "missing":
            chunk.unlink()
        case "short":
            chunk.write_bytes(chunk.read_bytes()[:-4])
        case "long":
            chunk.write_bytes(chunk.read_bytes() + b"0000")
        case "no gzip":
            metadata = json.loads((folder / "target.w" / ".zarray").read_text())
            (folder / "target.w" / ".zarray").write_text(json.dumps({**metadata, "compressor": {"id": "gzip"}}))
        case "blosc" | "objects" | "huge" | "order" | "no chunk":
            changes = {
                "blosc": {"compressor": {"id": "blosc"}},
                "objects": {"dtype": "|O"},
                "huge": {"shape": [1 << 40, 4]},
                "order": {"order": "K"},
                "no chunk": {"chunks": [0, 4]},
            }[mode]
            metadata = json.loads((folder / "target.w" / ".zarray").read_text())
            (folder / "target.w" / ".zarray").write_text(json.dumps({**metadata, **changes}))
        case "outside":
            write_index(folder, {"/../w": ELSEWHERE})
        case "no index":
            (folder / "checkpoint").write_bytes(b"\x01\x02")
        case "no text":
            (folder / "checkpoint").write_bytes(b"\x81\xa2\xff\xfe\x01")


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("missing", r"target\.w/0\.0: missing"),
        ("short", r"target\.w/0\.0: 28 bytes where 32 are needed"),
        ("long", r"target\.w/0\.0: more than 32 bytes"),
        ("no gzip", r"target\.w/0\.0: damaged"),
        ("blosc", "only plain numbers in gzip are read"),
        ("objects", "only plain numbers in gzip are read"),
        ("huge", "cannot be"),
        ("order", r"target\.w: its \.zarray cannot be read \(Invalid enum value 'K' - at `\$\.order`\)"),
        ("no chunk", r"target\.w: its \.zarray cannot be read \(Expected `int` >= 1 - at `\$\.chunks\[0\]`\)"),
        ("outside", "'/../w' is not a name of an array"),
        ("no index", "no index of a T5X checkpoint"),
        ("no text", "no index of a T5X checkpoint"),
    ],
)
def test_damaged_folders_are_refused_with_the_place(mode: str, sentence: str, tmp_path: Path) -> None:
    write_index(tmp_path, {"w": ELSEWHERE})
    write_array(tmp_path, "w", np.ones((2, 4), np.float32), [2, 4])
    damage(tmp_path, mode)
    with pytest.raises(CheckpointError, match=sentence):
        read_checkpoint(tmp_path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder, and none of T5X"):
        read_checkpoint(tmp_path)


def test_download_that_is_no_folder_is_named_for_what_it_is(tmp_path: Path) -> None:
    folder = unpack(GOLDEN / "tiny_m50_t5x") / "checkpoint_1001"
    with pytest.raises(CheckpointError, match="the index of a T5X checkpoint: name its folder"):
        read_checkpoint(folder / "checkpoint")
    archive = shutil.make_archive(str(tmp_path / "flip"), "zip", folder.parent, folder.name)
    with pytest.raises(CheckpointError, match="an archive of a T5X checkpoint: unpack it and name the folder"):
        read_checkpoint(Path(archive))


def test_a_written_index_says_of_each_array_what_its_folder_says(tmp_path: Path) -> None:
    weights = {"a.kernel": torch.arange(6.0).view(2, 3), "a.b.half": torch.tensor([1.5]).bfloat16(), "c": torch.tensor(3)}
    t5x.write(tmp_path / "folder", weights)
    back = read_checkpoint(tmp_path / "folder")
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in weights.items())
    tree = msgspec.msgpack.decode((tmp_path / "folder" / "checkpoint").read_bytes())["optimizer"]["target"]
    for name, message in {"a.kernel": tree["a"]["kernel"], "a.b.half": tree["a"]["b"]["half"], "c": tree["c"]}.items():
        metadata = json.loads((tmp_path / "folder" / f"target.{name}" / ".zarray").read_text())
        assert message["metadata"] == {key: metadata[key] for key in ("shape", "chunks", "compressor")}
        assert (message["driver"], message["dtype"]) == ("zarr", str(weights[name].dtype).removeprefix("torch."))


@pytest.mark.parametrize(
    "change", [lambda part: part[:-1], lambda part: part.flatten(), lambda part: part[0, 0]], ids=["cut", "flat", "one"]
)
def test_parts_that_cannot_be_joined_are_named(change: Any) -> None:
    published = families()["flip"].export(make().state_dict())
    key = "txt_encoder.Transformer.encoderblock_01.MultiHeadDotProductAttention_0.key.kernel"
    published[key] = change(published[key])
    found = fit(published, families()["flip"], {"heads": 3, "text_heads": 2})
    assert not found.perfect and not found.missing
    assert any(line.startswith(key) for line in found.misshapen)
