"""What transformers and PEFT do with a causal language model, they can do with ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    pipeline,
)

import recbole_idiomoe
from recbole_idiomoe.base.errors import CheckpointError, SettingError
from recbole_idiomoe.lm import (
    IdiomoeForCausalLM,
    add_item_tokens,
    item_token,
    item_tokens,
    load_backbone,
)

from .decoders import FAMILIES, ITEMS, VOCAB, decoder, mixed_batch

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
}
IDS = ["[PAD]", *(f"i{n}" for n in range(1, 6))]
TEXTS = [
    f"title: blue cup {item_token('i1')}",
    f"{item_token('i2')} title: a long red box {item_token('i3')} title: cup",
    "title: words alone",
]
GREEDY = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What save_pretrained of a model and its tokenizer writes, and push_to_hub uploads."""
    backbone, tokenizer = load_backbone("untrained", backbone_args=SIZES)
    model = IdiomoeForCausalLM.from_backbone(backbone, len(IDS), expert_init="random", seed=1)
    with torch.no_grad():
        model.item_table.rows[1:].normal_(generator=torch.Generator().manual_seed(5))
    add_item_tokens(tokenizer, item_tokens(IDS), model.config.item_token_offset)
    place = tmp_path_factory.mktemp("interfaces")
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def model(folder: Path) -> IdiomoeForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> bool:
    return "\n" not in str(error.value)


# Embeddings.


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_may_be_given_in_place_of_tokens(family: str) -> None:
    model = IdiomoeForCausalLM.from_backbone(decoder(family), ITEMS, expert_init="random")
    tokens = mixed_batch()
    types = (tokens >= VOCAB).long()
    embedded = model.get_input_embeddings()(tokens)
    wanted = model(tokens, inputs_embeds=None).logits
    assert torch.equal(model(inputs_embeds=embedded, token_types=types).logits, wanted)
    given = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "vocabulary": "hybrid"}
    wanted = model.generate(tokens, **given)[:, tokens.shape[1] :]
    assert torch.equal(model.generate(inputs_embeds=embedded, token_types=types, **given), wanted)


def test_embeddings_that_are_not_clear_are_refused_in_one_line() -> None:
    model = IdiomoeForCausalLM.from_backbone(decoder(), ITEMS)
    tokens = mixed_batch()
    embedded = model.get_input_embeddings()(tokens)
    for given, said in (
        ({"inputs_embeds": embedded}, "token_types"),
        ({"inputs_embeds": embedded, "token_types": tokens[:, :2]}, r"\(2, 2\) do not fit"),
        ({"input_ids": tokens, "inputs_embeds": embedded}, "not both"),
        ({}, "either input_ids or inputs_embeds"),
    ):
        with pytest.raises(SettingError, match=said) as error:
            model(**given)
        assert one_line(error)


def test_the_input_embedding_covers_every_token_of_the_tokenizer(
    model: IdiomoeForCausalLM, tokenizer: Any
) -> None:
    embedding = model.get_input_embeddings()
    assert embedding.weight.shape == (len(tokenizer), SIZES["hidden_size"])
    tokens = tokenizer(TEXTS[1], return_tensors="pt").input_ids
    assert torch.equal(embedding(tokens), embedding.weight[tokens])
    assert torch.equal(embedding(tokens[0, 0]), embedding(tokens)[0, 0])
    assert not any("embedding" in name.split(".") for name in model.state_dict())


def test_only_the_size_that_it_has_may_be_asked_of_the_embedding(
    model: IdiomoeForCausalLM, tokenizer: Any
) -> None:
    assert model.resize_token_embeddings(len(tokenizer)) is model.get_input_embeddings()
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    refused: list[Callable[[], Any]] = [
        lambda: model.resize_token_embeddings(len(tokenizer) + 1),
        lambda: model.resize_token_embeddings(pad_to_multiple_of=64),
        lambda: model.set_input_embeddings(torch.nn.Embedding(3, 16)),
        lambda: model.set_output_embeddings(torch.nn.Linear(16, 3)),
    ]
    for call in refused:
        with pytest.raises(SettingError) as error:
            call()
        assert one_line(error)


# PEFT.

ADAPTERS: dict[str, Any] = {
    "LoRA": lambda **task: LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **task),
    "LoRA everywhere": lambda **task: LoraConfig(r=2, target_modules="all-linear", **task),
    "IA3": lambda **task: IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **task
    ),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("task", [{}, {"task_type": "CAUSAL_LM"}], ids=["no task", "CAUSAL_LM"])
@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_train_and_are_saved(
    adapter: Any,
    task: dict[str, str],
    checkpointing: bool,
    model: IdiomoeForCausalLM,
    tokenizer: Any,
    folder: Path,
    tmp_path: Path,
) -> None:
    tokens = tokenizer(TEXTS[1], return_tensors="pt")
    wanted = model(**tokens).logits
    if checkpointing:
        model.gradient_checkpointing_enable()
    torch.manual_seed(0)
    adapted = get_peft_model(model, adapter(**task))
    torch.testing.assert_close(adapted(**tokens).logits, wanted)
    adapted.train()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    losses: list[float] = []
    for _ in range(4):
        loss = adapted(**tokens, labels=tokens["input_ids"]).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in trained)
        optimizer.step()
    assert losses[-1] < losses[0]
    adapted.eval()
    wanted = adapted(**tokens).logits
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    assert torch.equal(again(**tokens).logits, wanted)
    assert torch.equal(again.generate(**tokens, **GREEDY), adapted.generate(**tokens, **GREEDY))
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(**tokens).logits, wanted, atol=1e-4, rtol=1e-4)


# Training, generation, saving.


class Rows(Dataset[dict[str, list[int]]]):
    def __init__(self, tokenizer: Any) -> None:
        self.rows = [{"input_ids": tokenizer(text).input_ids} for text in TEXTS * 2]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer_trains_on_labels(
    checkpointing: bool, model: IdiomoeForCausalLM, tokenizer: Any, tmp_path: Path
) -> None:
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=checkpointing,
        learning_rate=0.01,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model, arguments, train_dataset=Rows(tokenizer), data_collator=collator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "trained"))
    tokens = tokenizer(TEXTS[0], return_tensors="pt")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    assert torch.equal(again(**tokens).logits, model.eval()(**tokens).logits)


@pytest.mark.parametrize("vocabulary", ["text", "item", "hybrid"])
def test_texts_of_a_batch_are_continued_as_one_by_one(
    vocabulary: str, model: IdiomoeForCausalLM, tokenizer: Any
) -> None:
    tokenizer.padding_side = "left"

    def continued(texts: list[str]) -> Tensor:
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        return model.generate(**batch, vocabulary=vocabulary, **GREEDY)[:, -4:]

    assert torch.equal(continued(TEXTS), torch.cat([continued([text]) for text in TEXTS]))


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}])
def test_every_kind_of_cache_gives_the_same_text(
    options: dict[str, Any], model: IdiomoeForCausalLM, tokenizer: Any
) -> None:
    tokens = tokenizer(TEXTS[1], return_tensors="pt")
    wanted = model.generate(**tokens, **GREEDY)
    assert torch.equal(model.generate(**tokens, **GREEDY, **options), wanted)


def test_a_pipeline_continues_text(folder: Path, model: Any, tokenizer: Any) -> None:
    generator = pipeline("text-generation", model=str(folder))
    [found] = generator(TEXTS[0], max_new_tokens=4, do_sample=False, return_full_text=False)
    tokens = tokenizer(TEXTS[0], return_tensors="pt")
    wanted = model.generate(**tokens, max_new_tokens=4, do_sample=False)
    continued = wanted[0, tokens["input_ids"].shape[1] :]
    assert found["generated_text"] == tokenizer.decode(continued, skip_special_tokens=True)


def test_compiled_as_a_whole_it_computes_the_same(model: Any, tokenizer: Any) -> None:
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    tokens = tokenizer(TEXTS[1], return_tensors="pt")
    torch.testing.assert_close(compiled(**tokens).logits, model(**tokens).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_scores_trains_and_generates(
    dtype: torch.dtype, folder: Path, model: Any, tokenizer: Any
) -> None:
    tokens = tokenizer(TEXTS[1], return_tensors="pt")
    wanted = model(**tokens).logits
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for half in (model.to(dtype), loaded):
        found = half(**tokens, labels=tokens["input_ids"])
        found.loss.backward()
        torch.testing.assert_close(found.logits, wanted, atol=0.3, rtol=0.1)
        assert half.generate(**tokens, **GREEDY, vocabulary="item").shape[1] == 4 + len(
            tokens["input_ids"][0]
        )


def test_a_tuple_is_returned_if_asked_for(model: Any, tokenizer: Any) -> None:
    tokens = tokenizer(TEXTS[1], return_tensors="pt")
    (logits,) = model(**tokens, return_dict=False)
    assert torch.equal(logits, model(**tokens).logits)


def test_a_saved_folder_says_how_it_is_opened(folder: Path) -> None:
    """Without the import, transformers only says that it does not know the model type."""
    content = json.loads((folder / "config.json").read_text())
    assert "import recbole_idiomoe.lm" in content["opened_by"]
    assert "trust_remote_code" not in json.dumps(content) and "auto_map" not in content


def test_a_folder_without_a_catalogue_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"save_pretrained.*Recommender\.save") as error:
        recbole_idiomoe.load(folder)
    assert one_line(error)
