from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from tests.hub.saved import randomised, save
from tests.models.pairs import vocabularies

TOWER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}


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
