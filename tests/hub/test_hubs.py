"""`opsin import hf://…` and `timm:…` against a fake hub on this machine: no test needs a network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from models.bundle import read
from tests.hub.conftest import change, randomise, save
from tests.support import forked_program
from tests.support.fake_hub import COMMIT, FakeHub, running
from tests.support.processes import opsin
from tests.support.waiting import eventually

CARD = "---\nlicense: apache-2.0\ntags:\n- vision\n---\n# A model\n"
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.25, 0.3],
}
NETWORK = "vit_tiny_patch16_224"
TAG = "augreg_in21k"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("repositories")
    config = transformers.ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "bird"},
    )
    vit = save(randomise(transformers.ViTForImageClassification(config)), root / "vit", PROCESSOR)
    (vit / "README.md").write_text(CARD)
    (vit / "tf_model.h5").write_bytes(b"not fetched")
    sharded = save(randomise(transformers.ViTForImageClassification(config)), root / "sharded", PROCESSOR, max_shard_size="40KB")
    keras = root / "keras"
    keras.mkdir()
    (keras / "config.json").write_text("{}")
    (keras / "tf_model.h5").write_bytes(b"")
    network = timm.create_model(NETWORK, img_size=32, depth=2, num_classes=3).eval()
    folder = root / "timm"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    cfg = {"crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 3}
    described = {"architecture": NETWORK, "num_classes": 3, "global_pool": "token", "label_names": ["a", "b", "c"], "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "README.md").write_text(CARD.replace("apache-2.0", "cc-by-nc-4.0"))
    return {"owner/vit": vit, "owner/sharded": sharded, "owner/keras": keras, f"timm/{NETWORK}.{TAG}": folder}


@pytest.fixture
def hub(repositories: dict[str, Path]) -> Iterator[FakeHub]:
    with running(repositories) as found:
        yield found


def import_model(hub: FakeHub, tmp_path: Path, address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return opsin("import", address, "-o", tmp_path / "bundles/it", **hub.environment(tmp_path / "cache", **environment))


def error_of(ended: subprocess.CompletedProcess[str], tmp_path: Path) -> str:
    """Check that an import failed and left nothing behind. Return its one line of standard error."""
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "bundles").exists()
    return ended.stderr


def test_repository_becomes_bundle_with_labels_and_licence(hub: FakeHub, tmp_path: Path) -> None:
    ended = import_model(hub, tmp_path, "hf://owner/vit")
    assert (ended.returncode, ended.stderr) == (0, "")
    spec = read(tmp_path / "bundles/it/1").spec
    assert (spec.labels, spec.license) == (["cat", "dog", "bird"], "Apache-2.0")
    assert (spec.provenance["repository"], spec.provenance["revision"]) == ("owner/vit", COMMIT)
    prepared = spec.image_preprocess
    assert (prepared.fit, prepared.image_size, prepared.short_side, prepared.interpolation) == ("squeeze", 32, 32, "bicubic")
    assert (prepared.mean, prepared.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert "tf_model.h5" not in hub.sent


def test_weights_in_several_files_are_fetched_whole(hub: FakeHub, tmp_path: Path, repositories: dict[str, Path]) -> None:
    ended = import_model(hub, tmp_path, "hf://owner/sharded@v1")
    assert (ended.returncode, ended.stderr) == (0, "")
    shards = {path.name for path in repositories["owner/sharded"].glob("*.safetensors")}
    assert len(shards) > 1
    assert shards <= hub.sent.keys()


def test_a_network_of_timm_is_imported_by_its_name_and_tag(hub: FakeHub, tmp_path: Path) -> None:
    ended = import_model(hub, tmp_path, f"timm:{NETWORK}.{TAG}")
    assert (ended.returncode, ended.stderr) == (0, "")
    spec = read(tmp_path / "bundles/it/1").spec
    assert (spec.provenance["repository"], spec.provenance["family"], spec.license) == (f"timm/{NETWORK}.{TAG}", "timm", "CC-BY-NC-4.0")
    assert (spec.labels, spec.image_preprocess.short_side) == (["a", "b", "c"], 35)


def test_without_a_tag_the_tags_are_listed(hub: FakeHub, tmp_path: Path) -> None:
    error = error_of(import_model(hub, tmp_path, f"timm:{NETWORK}"), tmp_path)
    assert f"say which weights, as in timm:{NETWORK}.{TAG}; its tags are {TAG}" in error
    assert "timm has no network of this name" in error_of(import_model(hub, tmp_path, "timm:vit_enormous"), tmp_path)


def test_a_gated_repository_asks_for_a_token_and_opens_with_it(hub: FakeHub, tmp_path: Path) -> None:
    hub.gated["owner/vit"] = "hf_right"
    error = error_of(import_model(hub, tmp_path, "hf://owner/vit"), tmp_path)
    assert f"is gated: accept its terms at {hub.address}/owner/vit, then set HF_TOKEN" in error
    assert import_model(hub, tmp_path, "hf://owner/vit", HF_TOKEN="hf_right").returncode == 0


REFUSALS = {
    "hf://owner/nothing": "is not at {hub}, or is private: check its name, or set HF_TOKEN",
    "hf://owner/vit@v9": "has no revision 'v9'; {hub}/owner/vit/tree/main lists branches and tags",
    "hf://owner/keras": "has no weights: none of model.safetensors, model.safetensors.index.json",
}


@pytest.mark.parametrize("address", REFUSALS)
def test_missing_repository_error_says_what_to_do(address: str, hub: FakeHub, tmp_path: Path) -> None:
    assert REFUSALS[address].format(hub=hub.address) in error_of(import_model(hub, tmp_path, address), tmp_path)


def test_interrupted_download_keeps_complete_files(hub: FakeHub, tmp_path: Path, repositories: dict[str, Path]) -> None:
    last = sorted(path.name for path in repositories["owner/sharded"].glob("*.safetensors"))[-1]
    hub.cut[last] = 1000
    error = error_of(import_model(hub, tmp_path, "hf://owner/sharded"), tmp_path)
    assert f"{last} was not downloaded completely" in error
    assert "run the same command again: complete files are kept" in error
    hub.cut.clear()
    before = dict(hub.sent)
    assert import_model(hub, tmp_path, "hf://owner/sharded").returncode == 0
    again = {name for name, sent in hub.sent.items() if sent != before.get(name, 0)}
    assert again == {last}


@pytest.mark.parametrize(
    ("header", "value"), [("ETag", '"../../../../outside"'), ("ETag", '"{folder}/outside"'), ("X-Repo-Commit", "../../../../outside")]
)
def test_a_name_that_leads_out_of_the_cache_is_refused(header: str, value: str, hub: FakeHub, tmp_path: Path) -> None:
    hub.headers["config.json"] = {header: value.format(folder=tmp_path)}
    error = error_of(import_model(hub, tmp_path, "hf://owner/vit"), tmp_path)
    assert f"config.json: the header {header.lower()} does not come from a hub" in error
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_weights_with_wrong_digest_are_refused_and_refetched(hub: FakeHub, tmp_path: Path) -> None:
    hub.headers["model.safetensors"] = {"ETag": '"' + "0" * 64 + '"'}
    error = error_of(import_model(hub, tmp_path, "hf://owner/vit"), tmp_path)
    assert "model.safetensors has the SHA-256 " in error and f"and the hub states {'0' * 64}; run the same command again" in error
    hub.headers.clear()
    assert import_model(hub, tmp_path, "hf://owner/vit").returncode == 0


def test_damaged_cached_weights_are_not_imported_offline(hub: FakeHub, tmp_path: Path) -> None:
    assert import_model(hub, tmp_path, "hf://owner/vit").returncode == 0
    [weights] = (tmp_path / "cache").rglob("snapshots/*/model.safetensors")
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.resolve().write_bytes(damaged)
    shutil.rmtree(tmp_path / "bundles")
    assert "model.safetensors has the SHA-256 " in error_of(import_model(hub, tmp_path, "hf://owner/vit", HF_HUB_OFFLINE="1"), tmp_path)


def test_a_body_without_end_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.endless = "config.json"
    assert "config.json: it is larger than 64 MiB" in error_of(import_model(hub, tmp_path, "hf://owner/vit"), tmp_path)


def test_an_import_that_is_terminated_leaves_nothing(hub: FakeHub, tmp_path: Path) -> None:
    hub.endless = "model.safetensors"
    environment = os.environ | hub.environment(tmp_path / "cache")
    process = forked_program.ForkedProcess("opsin", "import", "hf://owner/vit", "-o", str(tmp_path / "bundles/it"), environment=environment)
    has_started = lambda: any(file.stat().st_size for file in tmp_path.rglob("*.incomplete"))  # noqa: E731
    eventually(lambda: has_started() or process.poll() is not None, "it downloads")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not any(tmp_path.rglob("*.incomplete"))
    assert not (tmp_path / "bundles").exists()


def test_silent_hub_is_given_up_after_the_timeout(hub: FakeHub, tmp_path: Path) -> None:
    hub.is_silent = True
    error = error_of(import_model(hub, tmp_path, "hf://owner/vit", HF_HUB_ETAG_TIMEOUT="1"), tmp_path)
    assert f"{hub.address} cannot be reached (timed out)" in error


def test_error_omits_the_password_of_the_endpoint(hub: FakeHub, tmp_path: Path) -> None:
    endpoint = hub.address.replace("://", "://user:secret@")
    error = error_of(import_model(hub, tmp_path, "hf://owner/nothing", HF_ENDPOINT=endpoint), tmp_path)
    assert f"is not at {hub.address}, or is private" in error


def test_error_names_a_cache_that_cannot_be_written(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = error_of(import_model(hub, tmp_path, "hf://owner/vit", HF_HOME=str(tmp_path / "file")), tmp_path)
    assert (
        f"the folder {tmp_path / 'file'} cannot be used" in error and "set HF_HOME to a folder with space in which you may write" in error
    )


def test_offline_import_takes_only_cached_files(hub: FakeHub, tmp_path: Path) -> None:
    error = error_of(import_model(hub, tmp_path, "hf://owner/vit", HF_HUB_OFFLINE="1"), tmp_path)
    assert "is not in the cache, and HF_HUB_OFFLINE is set: unset it to fetch the repository" in error
    online = import_model(hub, tmp_path, "hf://owner/vit")
    sent = dict(hub.sent)
    offline = opsin("import", "hf://owner/vit", "-o", tmp_path / "bundles/again", **hub.environment(tmp_path / "cache", HF_HUB_OFFLINE="1"))
    assert (online.returncode, offline.returncode, offline.stderr) == (0, 0, "")
    assert hub.sent == sent
    first, second = (read(tmp_path / f"bundles/{name}/1").spec for name in ("it", "again"))
    assert first.weights == second.weights
    assert first.provenance["revision"] == second.provenance["revision"] == COMMIT


@pytest.mark.parametrize("page", [b"<html>Sign in</html>", b"[]", b'{"id": "owner/vit"}'], ids=["page", "list", "no commit"])
def test_endpoint_that_is_not_a_hub_is_named(page: bytes, hub: FakeHub, tmp_path: Path) -> None:
    hub.page = page
    error = error_of(import_model(hub, tmp_path, "hf://owner/vit"), tmp_path)
    assert f"{hub.address} does not answer as a hub does" in error and "check HF_ENDPOINT" in error


def test_token_that_no_header_can_carry_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    assert "HF_TOKEN or HF_ENDPOINT has characters" in error_of(import_model(hub, tmp_path, "hf://owner/vit", HF_TOKEN="hf_ü"), tmp_path)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [('{"weight_map": {"x": ".."}}', "'..' is not a name of a file in its folder"), ("[" * 100_000, "cannot be read as JSON")],
    ids=["name", "nested"],
)
def test_invalid_index_of_weights_is_refused(index: str, sentence: str, hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(index)
    hub.repositories["owner/index"] = folder
    assert sentence in error_of(import_model(hub, tmp_path, "hf://owner/index"), tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--set", "legs=4"], "legs: cannot be set"),
        (["--set", "heads=four"], "heads: 'four' is not a number of heads"),
        (["--set", "short_side=1"], "short_side 1 is smaller than image_size 32"),
        (["--family", "timm"], "config.json says which network it is"),
        (["--family", "nobody"], "config.json says which network it is"),
        (["--labels", "two.json"], "has 3 classes, but 2 labels were given"),
        (["--templates", "two.json"], "--templates: only valid with --tokenizer, for an image-text model"),
    ],
)
def test_a_wrong_option_ends_with_2_and_leaves_nothing(
    options: list[str], sentence: str, tmp_path: Path, repositories: dict[str, Path]
) -> None:
    (tmp_path / "two.json").write_text('["cat", "dog"]')
    filled = [str(tmp_path / option) if option.endswith(".json") else option for option in options]
    ended = opsin("import", repositories["owner/vit"], "-o", tmp_path / "a/b/it", *filled)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert sentence in ended.stderr
    assert not (tmp_path / "a").exists()


def test_error_names_a_hub_that_cannot_be_reached(hub: FakeHub, tmp_path: Path) -> None:
    error = error_of(import_model(hub, tmp_path, "hf://owner/vit", HF_ENDPOINT="http://127.0.0.1:9"), tmp_path)
    assert "http://127.0.0.1:9 cannot be reached" in error
    assert "HF_HUB_OFFLINE=1 imports what is in the cache" in error


def test_invalid_config_ends_with_1_and_names_its_field(hub: FakeHub, tmp_path: Path, repositories: dict[str, Path]) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in repositories["owner/vit"].iterdir():
        os.link(path, copy / path.name) if path.name != "config.json" else (copy / path.name).write_bytes(path.read_bytes())
    change(copy / "config.json", hidden_act="relu")
    hub.repositories["owner/other"] = copy
    assert "config.json: hidden_act 'relu' cannot be computed here" in error_of(import_model(hub, tmp_path, "hf://owner/other"), tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "hf://vit",
        "hf://a/b/c",
        "hf://a/b--c",
        "hf://a/b..c",
        "hf://a/b.git",
        "hf://a/b-",
        "hf://a/../b",
        "timm:",
        "hf://a/b@",
        "hf://a/b@-x",
        "hf://a/b@x/../y",
        "hf://a/b@x/",
    ],
)
def test_invalid_address_is_refused_before_any_request(address: str, tmp_path: Path) -> None:
    ended = opsin("import", address, "-o", tmp_path / "bundles/it", HF_ENDPOINT="http://127.0.0.1:9")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{address}: write " in ended.stderr


def test_the_published_checkpoints_are_listed() -> None:
    ended = opsin("import", "--list")
    assert (ended.returncode, ended.stderr) == (0, "")
    line = next(line for line in ended.stdout.splitlines() if "mae_finetuned_vit_base.pth" in line)
    assert line.split() == [
        "MAE",
        "mae_finetuned_vit_base.pth",
        "86.6",
        "M",
        "346",
        "MB",
        "CC-BY-NC-4.0",
        "github.com/facebookresearch/mae",
    ]
    hub = next(line.split() for line in ended.stdout.splitlines() if "google/siglip" in line)
    assert (hub[0], hub[2:7], hub[-1]) == ("SigLIP", ["203.2", "M", "813", "MB", "Apache-2.0"], "hf://google/siglip-base-patch16-224")
    assert "…" not in ended.stdout
    assert all(
        name in ended.stdout
        for name in ("MAWS", "FLIP", "CiT", "MCC", "HMR2", "LART", "PHALP", "MAViL", "DiffMAE", "DINOv2", "ViTForImageClassification")
    )


def test_a_torch_file_with_code_is_refused(hub: FakeHub, tmp_path: Path, repositories: dict[str, Path]) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((repositories["owner/vit"] / name).read_bytes())
    torch.save({"classifier.weight": torch.zeros(1), "x": os.system}, folder / "pytorch_model.bin")
    hub.repositories["owner/code"] = folder
    assert "hf://owner/code/pytorch_model.bin: refused, since it holds posix.system and may hold only weights" in error_of(
        import_model(hub, tmp_path, "hf://owner/code"), tmp_path
    )
