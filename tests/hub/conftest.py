from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from tests.hub.saved import randomised, save
from tests.support import vocabularies

SENTENCES = ["a photo of a red car", "the dog sleeps", "dont stop its 2024", "ha ha haha", "unicode facade"] * 20
TOWER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


@pytest.fixture(scope="package")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it."""
    folder = tmp_path_factory.mktemp("siglip")
    tokenizer = transformers.SiglipTokenizer(str(vocabularies.siglip(folder, 60, SENTENCES)))
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.SiglipConfig(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8})
    images = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}
    model = randomised(transformers.SiglipModel(config))
    model.logit_scale.data.fill_(1.5)
    model.logit_bias.data.fill_(-2.5)
    return save(model, folder, images)


@pytest.fixture(scope="package")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it."""
    folder = tmp_path_factory.mktemp("clip")
    vocabularies.clip(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 8}, projection_dim=24)
    images = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    save(randomised(transformers.CLIPModel(config)), folder, images)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder
