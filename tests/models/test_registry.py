"""Names of models and data sets."""

import subprocess
import sys

import pytest

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data import names
from recbole_idiomoe.models import registry
from recbole_idiomoe.training.trainers import get_trainer


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "BERT4Rec", "FDSA", "S3Rec"])
def test_recbole_models_keep_their_classes(name: str) -> None:
    import recbole.model.sequential_recommender as recbole_models

    assert registry.get_model(name) is getattr(recbole_models, name)


@pytest.mark.parametrize(
    ("name", "trainer", "dataset"),
    [
        ("SASRec", "Trainer", "SequentialDataset"),
        ("S3Rec", "S3RecTrainer", "SequentialDataset"),
        ("DIEN", "Trainer", "DIENDataset"),
        ("IDIOMoE", "IdiomoeTrainer", "HistoryDataset"),
        ("MoT", "IdiomoeTrainer", "HistoryDataset"),
        ("CoVE", "IdiomoeTrainer", "HistoryDataset"),
        ("TransitionCounter", "UntrainedTrainer", "HistoryDataset"),
        ("SASRecSS", "Trainer", "WindowDataset"),
        ("TIGER", "Trainer", "HistoryDataset"),
    ],
)
def test_every_model_has_its_trainer_and_dataset(name: str, trainer: str, dataset: str) -> None:
    assert get_trainer(name).__name__ == trainer
    assert registry.get_dataset_class(name).__name__ == dataset


def test_each_model_of_ours_can_be_loaded() -> None:
    assert not set(registry.LANGUAGE_MODELS) & set(registry.BASELINES)
    for name in registry.MODELS:
        assert registry.get_model(name).__name__ == name
        assert get_trainer(name) and registry.get_dataset_class(name)
    assert not set(registry.MODELS) & set(registry.sequential_models())


def test_every_sequential_model_that_is_listed_can_be_loaded() -> None:
    from recbole.utils import ModelType

    names = registry.sequential_models()
    assert len(names) > 25
    assert all(registry.get_model(name).type is ModelType.SEQUENTIAL for name in names)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sasrec", "did you mean 'SASRec'"),
        ("IdioMoE", "did you mean 'IDIOMoE'"),
        ("BPR", "BPR is one of RecBole's general models"),
        ("LightGBM", "one of RecBole's exlib models"),
        ("xyz", "--list_models"),
    ],
)
def test_a_model_that_cannot_run_is_named_in_one_line(name: str, said: str) -> None:
    for look_up in (registry.get_model, get_trainer, registry.get_dataset_class):
        with pytest.raises(SettingError) as caught:
            look_up(name)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_datasets_are_ours_first_and_each_once() -> None:
    listed = names.list_datasets()
    years = ("", "-2018", "-2023")
    ours = [f"amazon-{kind}{year}" for kind in ("beauty", "sports", "toys") for year in years]
    assert listed[:10] == [*ours, "ml-100k"]
    assert "yelp-2018" in listed
    assert len(listed) == len(set(listed))


def test_names_are_known_without_torch() -> None:
    code = (
        "import sys\n"
        "from recbole_idiomoe.data import names\n"
        "from recbole_idiomoe.models import registry\n"
        "registry.check_model('SASRec'); names.list_datasets();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
