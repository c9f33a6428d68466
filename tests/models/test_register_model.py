"""A model that is defined here, with its options, goes wherever the package's own models go."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.sequential_recommender import GRU4Rec
from recbole.utils import InputType
from torch import nn

from recbole_idiomoe import api, cli, load, register_model, tuning
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.base.options import NonNegativeFloat, Options, Range
from recbole_idiomoe.base.run_folder import RANKS_FILE
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.models import registration, registry
from recbole_idiomoe.models.language.options import IDIOMoEOptions
from recbole_idiomoe.models.language.recommender import IDIOMoE
from recbole_idiomoe.models.sasrec.model import SASRecSS
from tests.training.cycle import TINY, write_cycle


@dataclass(frozen=True)
class LastItemOptions(Options):
    state_size: Annotated[int, Range(1, 64)] = 16
    """Width of item vectors [section 7]."""
    squash: Literal["tanh", "none"] = "tanh"
    """What states go through."""
    dropout: Annotated[float, Range(high=0.5)] = 0.1
    """Of the states; a language model has this name too."""

    recipe: ClassVar[Mapping[str, Any]] = {"epochs": 3, "train_batch_size": 64}
    search_space: ClassVar[Mapping[str, Any] | None] = {
        "state_size": {"choices": [8, 16]},
        "learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    }


class LastItem(SequentialRecommender):
    """Scores items by a product with a vector of the last one."""

    input_type = InputType.POINTWISE

    def __init__(self, config: Config, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.options = LastItemOptions.from_mapping(config)
        self.items = nn.Embedding(self.n_items, self.options.state_size)
        self.output = nn.Linear(self.options.state_size, self.n_items)
        self.dropout = nn.Dropout(self.options.dropout)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        items, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        states = self.items(items.gather(1, lengths.unsqueeze(1) - 1).squeeze(1))
        states = states.tanh() if self.options.squash == "tanh" else states
        scores: torch.Tensor = self.output(self.dropout(states))
        return scores

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        scores = self.full_sort_predict(interaction)
        return nn.functional.cross_entropy(scores, interaction[self.POS_ITEM_ID])


class SmallGRU(GRU4Rec):  # type: ignore[misc]
    """RecBole's model under another name."""


class MoreNegatives(SASRecSS):
    """One of this package's baselines under another name."""


@dataclass(frozen=True)
class ScaledOptions(IDIOMoEOptions):
    loudness: NonNegativeFloat = 2.0
    """What scores are multiplied with."""

    recipe: ClassVar[Mapping[str, Any]] = {"expert_width": 0.5}


class Scaled(IDIOMoE):
    """A language model with an option of its own."""

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        options = self.catalog_lm.settings
        assert isinstance(options, ScaledOptions)
        return super().full_sort_predict(interaction) * options.loudness


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """What a test registers is gone after it."""
    tables = (registry.MODELS, registry.LANGUAGE_MODELS, registry.BASELINES)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    registration._registered.clear()


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """Settings of a run on tiny data."""
    known = {name: TINY[name] for name in ("MAX_ITEM_LIST_LENGTH", "topk", "learning_rate")}
    columns = {name: TINY[name] for name in ("load_col", "item_text_fields") if name in TINY}
    path = write_cycle(tmp_path / "cycle")
    return known | columns | {"data_path": str(path), "seq_separator": TINY["seq_separator"]}


def test_a_registered_model_trains_ranks_and_is_loaded(given: dict[str, Any]) -> None:
    assert register_model(LastItem, options=LastItemOptions) is LastItem
    (result,) = api.run("LastItem", "cycle", settings=given | {"epochs": 30})
    assert result["test_result"]["hit@5"] > 0.9
    assert result["settings"]["state_size"] == 16 and result["settings"]["dropout"] == 0.1
    assert (Path(result["folder"]) / RANKS_FILE).is_file()
    found = load(result["folder"]).recommend(["i3", "i4"], k=3)
    assert found[0].item_id == "i5" and found[0].title


def test_its_recipe_lies_below_the_users_settings() -> None:
    register_model(LastItem, options=LastItemOptions)
    config = RunConfig("LastItem", "ml-100k", settings={"train_batch_size": 32})
    assert (config["epochs"], config["train_batch_size"], config["state_size"]) == (3, 32, 16)
    assert config.settings == LastItemOptions()
    assert "state_size" not in RunConfig("HSTU", "ml-100k").complete_settings()


def test_it_is_tuned_by_its_own_search_space(given: dict[str, Any]) -> None:
    register_model(LastItem, options=LastItemOptions)
    settings = given | {"epochs": 2}
    del settings["learning_rate"]
    (search,) = tuning.tune("LastItem", "cycle", settings=settings, trials=3)
    assert [trial["settings"].keys() for trial in search["trials"]] == [
        {"state_size", "learning_rate"}
    ] * 3
    (result,) = api.run("LastItem", "cycle", settings=settings | {"tuned": "tuned"})
    assert result["settings"]["state_size"] == search["best"]["settings"]["state_size"]


def test_a_board_has_it_beside_others(given: dict[str, Any]) -> None:
    register_model(LastItem, options=LastItemOptions)
    settings = given | {"epochs": 2, "state_size": 8}
    models = ["LastItem", "Popularity"]
    (board,) = api.run(models, "cycle", settings=settings, leaderboard="board")
    assert "LastItem" in board["table"]
    index = json.loads(Path("board/leaderboard.json").read_text())
    kept = [run for name in models for run in index["rows"]["cycle"][name]["runs"].values()]
    assert len(kept) == 2
    # A setting of its own makes another run, although language models have its name too.
    before = index["rows"]["cycle"]["LastItem"]["identity"]
    settings["dropout"] = 0.3
    api.run(models[:1], "cycle", settings=settings, leaderboard="board")
    again = json.loads(Path("board/leaderboard.json").read_text())
    assert again["rows"]["cycle"]["LastItem"]["identity"] != before


def test_processes_cannot_have_a_class_of_a_function(given: dict[str, Any]) -> None:
    class Local(LastItem):
        pass

    register_model(Local, options=LastItemOptions)
    (result,) = api.run("Local", "cycle", settings=given | {"epochs": 1})
    assert result["model"] == "Local"
    with pytest.raises(SettingError, match="Local is run in processes of their own") as error:
        api.run("Local", "cycle", settings=given | {"seeds": 2}, jobs=2)
    assert "\n" not in str(error.value)


def test_another_process_finds_it_again() -> None:
    register_model(LastItem, options=LastItemOptions)
    places = json.loads(json.dumps(registration.places_of(["LastItem", "SASRec"])))
    assert set(places) == {"LastItem"}
    for table in (registry.MODELS, registry.BASELINES):
        table.pop("LastItem", None)
    registration.restore(places)
    assert registry.get_model("LastItem") is LastItem
    assert registry.get_options("LastItem") is LastItemOptions


@pytest.mark.slow
def test_a_table_runs_it_in_processes(given: dict[str, Any]) -> None:
    register_model(LastItem, options=LastItemOptions)
    rows = {"row": {"model": "LastItem"}}
    (table,) = api.run("LastItem", "cycle", settings=given | {"variants": rows}, jobs=2)
    assert table["runs"][0]["test"]["ndcg@10"] > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"state_sise": 8}, "unknown setting 'state_sise'; did you mean 'state_size'?"),
        ({"state_size": 65}, "state_size=65 is out of range; it must be between 1 and 64"),
        ({"state_size": "8"}, "state_size='8' must be a number"),
        ({"squash": "relu"}, "squash='relu' is not one of 'tanh', 'none'"),
        ({"dropout": 0.6}, "dropout=0.6 is out of range; it must be at most 0.5"),
    ],
)
def test_a_wrong_option_is_one_line(settings: dict[str, Any], said: str) -> None:
    register_model(LastItem, options=LastItemOptions)
    with pytest.raises(SettingError) as error:
        RunConfig("LastItem", "ml-100k", settings=settings)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_help_and_the_list_name_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "LastItem" not in capsys.readouterr().out
    register_model(LastItem, options=LastItemOptions)
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "LastItem (--model=LastItem):\n  --state_size=16\n      Width of item vectors [" in text
    assert "  LastItem:\n      epochs=3, train_batch_size=64" in text
    assert cli.main(["--list_models"]) == 0
    assert "LastItem" in capsys.readouterr().out.splitlines()
    assert cli.parse_arguments(["--squash=007"]).settings == {"squash": "007"}


def test_what_derives_from_a_model_is_run_as_it_is(given: dict[str, Any]) -> None:
    for kind in (SmallGRU, MoreNegatives):
        register_model(kind)
    assert registry.family("SmallGRU") == ["GRU4Rec", "SmallGRU"]
    assert registry.family("MoreNegatives") == ["SASRecCE", "SASRecSS", "MoreNegatives"]
    assert RunConfig("SmallGRU", "ml-100k")["num_layers"] == 1  # of RecBole's GRU4Rec.yaml
    assert RunConfig("MoreNegatives", "ml-100k")["dropout_prob"] == 0.4
    assert registry.get_dataset_class("MoreNegatives").__name__ == "WindowDataset"
    for name in ("SmallGRU", "MoreNegatives"):
        (result,) = api.run(name, "cycle", settings=given | {"epochs": 1, "hidden_size": 8})
        assert load(result["folder"]).recommend(["i3"], k=2)


def test_a_language_model_of_ones_own_is_one(tmp_path: Path) -> None:
    register_model(Scaled, options=ScaledOptions)
    path = write_cycle(tmp_path / "cycle")
    (result,) = api.run("Scaled", "cycle", settings=TINY | {"epochs": 1, "data_path": str(path)})
    assert result["settings"]["expert_width"] == 0.5 and result["settings"]["loudness"] == 2.0
    recommender = load(result["folder"])
    assert recommender.catalog_lm is not None
    assert recommender.catalog_lm.settings.loudness == 2.0
    assert len(recommender.recommend(["i3"], k=2)) == 2
    assert "loudness" not in RunConfig("IDIOMoE", "ml-100k").complete_settings()


def test_a_name_may_be_registered_again_but_not_taken() -> None:
    register_model(LastItem)
    register_model(LastItem, options=LastItemOptions)
    assert registry.get_options("LastItem") is LastItemOptions
    for name in ("IDIOMoE", "SASRec"):
        taken = type(name, (LastItem,), {})
        with pytest.raises(SettingError, match=f"{name} cannot be registered: a model has this"):
            register_model(taken)
    with pytest.raises(SettingError, match="it is no SequentialRecommender"):
        register_model(nn.Linear)

    class Forgotten(Options):
        """Not a dataclass itself."""

    with pytest.raises(SettingError, match="derives from Options, under @dataclass"):
        register_model(LastItem, options=Forgotten)
