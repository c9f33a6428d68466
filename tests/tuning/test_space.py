"""What may be searched, and what is said against an entry that may not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.models import registry
from recbole_idiomoe.tuning.space import read_search_space

LOG = {"low": 0.001, "high": 0.1, "log": True}


@pytest.mark.parametrize(
    "model",
    [
        *(
            "IDIOMoE",
            "TitleLLM",
            "E4SRec",
            "CoVE",
            "SASRec",
            "GRU4Rec",
            "BERT4Rec",
            "FDSA",
            "S3Rec",
            "NARM",
        ),
        *registry.BASELINES,
    ],
)
def test_every_model_has_a_space_that_holds_its_default(model: str) -> None:
    config = RunConfig(model, "ml-100k")
    space = read_search_space(model, "ml-100k")
    untrained = model in ("Popularity", "TransitionCounter")
    assert ("learning_rate" in space.entries) is not untrained
    for name, entry in space.entries.items():
        default = config[name]
        if "choices" in entry:
            assert default in entry["choices"], name
        else:
            assert entry["low"] <= default <= entry["high"], name
    assert "search_space" not in config.final_config_dict
    assert "search_space" not in config.complete_settings()


def test_the_controls_are_searched_as_idiomoe_is() -> None:
    others = [
        name for name in registry.MODELS if registry.is_of_family(name) and name != "TitleLLM"
    ]
    spaces = [read_search_space(name, "ml-100k") for name in others]
    assert "MoT" in others and all(space == spaces[0] for space in spaces)


def test_the_last_layer_says_the_whole_space(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("search_space: {n_layers: {low: 1, high: 4}}\n")
    assert read_search_space("SASRec", "ml-100k").source == "properties/model/SASRec.yaml"
    assert read_search_space("HSTU", "ml-100k").source == "HSTUOptions"
    assert read_search_space("NARM", "ml-100k").source == "properties/overall.yaml"
    assert read_search_space("SASRec", "ml-100k", [file]).entries == {
        "n_layers": {"low": 1, "high": 4}
    }
    own = {"search_space": {"learning_rate": LOG}}
    assert read_search_space("SASRec", "ml-100k", [file], own).entries == own["search_space"]
    # A file for the command, not for the runs.
    RunConfig("SASRec", "ml-100k", [file], own)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (3, "3 must be {low: "),
        ({"low": 1}, "must be {low: "),
        ({"low": 1, "hihg": 3}, "must be {low: "),
        ({"choices": [1, 2], "log": True}, "must be {low: "),
        ({"low": "1", "high": 3}, "low='1' must be a finite number"),
        ({"low": 1, "high": float("inf")}, "high=inf must be a finite number"),
        ({"low": True, "high": 3}, "low=True must be a finite number"),
        ({"low": 3, "high": 3}, "low=3 must be below high=3"),
        ({"low": 0, "high": 1, "log": True}, "log needs a low above 0"),
        ({"low": 1, "high": 3, "log": True, "step": 1}, "log needs a low above 0, and no step"),
        ({"low": 1, "high": 3, "log": "yes"}, "log='yes' must be True or False"),
        ({"low": 0.0, "high": 0.5, "step": 0.2}, "step=0.2 must lead from low=0.0 to high=0.5"),
        ({"low": 0.0, "high": 0.5, "step": 0}, "step=0 must lead"),
        ({"low": 0.0, "high": 0.5, "step": 5}, "step=5 must lead"),
        ({"choices": 3}, "choices=3 must be a list"),
        ({"choices": [[1], [2]]}, "must be a list of numbers, texts, True, False or null"),
        ({"choices": [64]}, "must be at least two"),
        ({"choices": [64, 64]}, "all different"),
    ],
)
def test_a_wrong_entry_is_named_with_its_file(entry: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"search_space": {"hidden_size": entry}}))
    with pytest.raises(SettingError) as error:
        read_search_space("SASRec", "ml-100k", [file])
    assert f"{file}: search_space: hidden_size: " in str(error.value)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_space_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(SettingError, match="settings: search_space=3 must be settings"):
        read_search_space("SASRec", "ml-100k", (), {"search_space": 3})


def test_what_is_given_is_not_searched() -> None:
    space = read_search_space(
        "SASRec", "ml-100k", (), {"search_space": {"learning_rate": LOG, "n_layers": LOG}}
    )
    assert list(space.without({"n_layers": 2, "epochs": 3}).entries) == ["learning_rate"]
    with pytest.raises(SettingError, match="nothing is left to search"):
        space.without({"n_layers": 2, "learning_rate": 0.1})
