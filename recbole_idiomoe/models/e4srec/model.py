"""E4SRec: a frozen language model that reads the item vectors of a SASRec.

"E4SRec: An Elegant Effective Efficient Extensible Solution of Large Language Models for Sequential
Recommendation" (Li et al., 2023, arXiv 2312.02443). Ranks and rates are from the authors' code,
github.com/HestiaSky/E4SRec. A sequential recommender is trained first. A linear map takes its
frozen item vectors into the language model, after an instruction in words. Another linear map turns
the last hidden state into scores of all items. Cross entropy over the catalogue trains both maps
and low-rank adapters in the feed-forward networks.

Published figures, as the paper's Table 2 copies them, are in ``properties/published.yaml``.

Differences from the paper:

- the protocol: the whole catalogue is ranked; both stages learn from training interactions alone,
  and validation picks the epoch of each;
- every position predicts the item after it, as in all language models of this package. In the paper
  each prefix is a row, with a second piece of instruction after it;
- the first stage is ``SASRecCE`` (``id_encoder`` changes it, ``id_vectors`` replaces it);
- the decoder can be any; in the paper it is a Llama 2 of 70B parameters in 8 bits;
- ``item_scale`` sets the starting size of items, and ``dropout`` is that of all language models
  here. In the paper dropout is on the adapters' inputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data.text_encoder import read_vectors
from recbole_idiomoe.lm.untied_tables import ProjectedItemTable
from recbole_idiomoe.models.e4srec.first_stage import IdEncoderStage
from recbole_idiomoe.models.first_stage import FirstStage
from recbole_idiomoe.models.language.recommender import LanguageModelRecommender


class E4SRec(LanguageModelRecommender):
    """A frozen decoder that reads item vectors from ``id_vectors``, with its own head for scores.

    Raises:
        SettingError: ``id_vectors``, which the first stage sets, is missing or unusable.
    """

    architecture = "e4srec"
    first_stage: ClassVar[FirstStage] = IdEncoderStage()
    forced_settings: ClassVar[dict[str, Any]] = {
        "use_text": False,
        "item_tokens": "atomic",
        "item_init": "random",
        "item_text_added": False,
        "item_embedding_dim": None,
        "freeze": "backbone",
    }

    def __init__(self, config: Config, dataset: Dataset) -> None:
        if config["id_vectors"] is None:
            raise SettingError("E4SRec reads vectors of items; name their file in id_vectors.")
        item_ids = [str(item_id) for item_id in dataset.field2id_token[dataset.iid_field]]
        vectors = read_vectors(Path(config["id_vectors"]), item_ids, "id_vectors")
        config["item_embedding_dim"] = vectors.shape[1]
        super().__init__(config, dataset)
        table = self.catalog_lm.lm.item_table
        assert isinstance(table, ProjectedItemTable)
        table.take_vectors(torch.from_numpy(vectors))
