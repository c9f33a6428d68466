"""What a run is configured with."""

import copy
import io
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from recbole.utils.argument_list import dataset_arguments

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.options import RunOptions, listed_defaults
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.models import registry
from recbole_idiomoe.models.language.options import LanguageModelOptions


def config(model: str = "SASRec", dataset: str = "ml-100k", **values: Any) -> RunConfig:
    return RunConfig(model, dataset, settings=values)


def entries(config: RunConfig) -> dict[str, str]:
    return {key: str(value) for key, value in config.final_config_dict.items()}


def write(path: Path, **values: Any) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


# The protocol


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "BERT4Rec", "FDSA", "S3Rec", "FPMC", "DIN"])
@pytest.mark.parametrize("dataset", ["ml-100k", "amazon-toys"])
def test_every_model_has_the_same_protocol(model: str, dataset: str) -> None:
    shared = ("eval_args", "metrics", "topk", "valid_metric", "repeatable", "load_col", "mask_seen")
    shared += ("seq_separator", "user_inter_num_interval", "MAX_ITEM_LIST_LENGTH", "encoding")
    ours, other = config(model, dataset), config("SASRec", dataset)
    assert {key: ours[key] for key in shared} == {key: other[key] for key in shared}
    assert ours["eval_args"]["split"] == {"LS": "valid_and_test"}
    assert ours["eval_args"]["order"] == "TO"
    assert ours["eval_args"]["mode"] == {"valid": "full", "test": "full"}


@pytest.mark.parametrize(
    ("model", "values", "distribution"),
    [
        ("SASRec", {}, "none"),
        ("RepeatNet", {}, "none"),
        ("FPMC", {}, "uniform"),
        ("TransRec", {}, "uniform"),
        ("DIN", {}, "uniform"),
        ("SASRec", {"loss_type": "BPR"}, "uniform"),
    ],
)
def test_only_models_that_learn_from_negatives_get_them(
    model: str, values: dict[str, Any], distribution: str
) -> None:
    assert config(model, **values)["train_neg_sample_args"]["distribution"] == distribution


def test_part_of_eval_args_leaves_the_rest_as_it_was() -> None:
    eval_args = config(eval_args={"mode": "uni100"})["eval_args"]
    assert eval_args["split"] == {"LS": "valid_and_test"} and eval_args["order"] == "TO"
    assert eval_args["mode"] == {"valid": "uni100", "test": "uni100"}


# Layers


def test_a_later_layer_wins(tmp_path: Path) -> None:
    first = write(tmp_path / "1.yaml", epochs=7, seed=7, stopping_step=7, dropout=0.5)
    second = write(tmp_path / "2.yml", seed=8, stopping_step=8)
    built = RunConfig("SASRec", "ml-100k", [first, str(second)], {"stopping_step": 9})
    assert (built["epochs"], built["seed"], built["stopping_step"]) == (7, 8, 9)
    assert LanguageModelOptions.from_mapping(built).dropout == 0.5
    text = TextOptions.from_mapping(built)
    assert text.item_text_fields == {"title": "movie_title", "category": "class"}
    assert TextOptions.from_mapping(config("SASRec", "mine")).item_text_fields is None


def test_ours_lie_above_recboles_and_below_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("model", "dataset", "quick_start_config"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "overall.yaml", seed=1, epochs=1, n_layers=1, n_heads=1, encoding="utf-8")
    write(tmp_path / "model" / "SASRec.yaml", epochs=2, n_layers=2, n_heads=2, mask_seen=False)
    write(tmp_path / "dataset" / "mine.yaml", n_layers=3, n_heads=3)
    write(tmp_path / "quick_start_config" / "SASRec_mine.yaml", n_heads=4)
    monkeypatch.setattr("recbole_idiomoe.base.yaml_files.properties_path", lambda: tmp_path)
    values = {"train_neg_sample_args": None, "valid_metric": "MRR@10"}
    built = config("SASRec", "mine", **values)
    assert [built[key] for key in ("seed", "epochs", "n_layers", "n_heads")] == [1, 2, 3, 4]
    assert RunOptions.from_mapping(built).mask_seen is False
    assert config("SASRec", "mine", n_heads=8, **values)["n_heads"] == 8


@pytest.mark.parametrize("dataset", ["amazon-toys", "amazon-beauty", "amazon-sports"])
def test_the_id_only_control_knows_no_text_unless_told(dataset: str) -> None:
    alone = config("IDTransformer", dataset).settings
    assert alone.item_init == "random" and alone.text_smoothing == 0 and not alone.use_text
    assert alone.transition_smoothing == config("IDIOMoE", dataset).settings.transition_smoothing
    assert config("IDTransformer", dataset, text_smoothing=0.1).settings.text_smoothing == 0.1


def test_our_defaults_hide_no_setting_of_a_recbole_model() -> None:
    import recbole

    models = Path(recbole.__file__).parent / "properties" / "model"
    for name in registry.sequential_models():
        theirs = yaml.safe_load((models / f"{name}.yaml").read_text()) or {}
        assert not theirs.keys() & listed_defaults().keys(), name


def test_exponents_are_numbers_in_files(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("learning_rate: 1e-3\nweight_decay: 5E-4")
    built = RunConfig("SASRec", "ml-100k", [path])
    assert (built["learning_rate"], built["weight_decay"]) == (0.001, 0.0005)


def test_the_command_line_of_the_process_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--epochs=77", "--no_such_key=1"])
    assert config()["epochs"] == 300


def test_no_value_is_run(tmp_path: Path) -> None:
    evil = f"open({str(tmp_path / 'made')!r}, 'w')"
    assert config(checkpoint_dir=evil)["checkpoint_dir"] == evil
    assert not (tmp_path / "made").exists()


def test_nothing_shared_is_changed() -> None:
    before, given = list(dataset_arguments), {"train_neg_sample_args": {"distribution": "uniform"}}
    resolvers = copy.deepcopy(yaml.FullLoader.yaml_implicit_resolvers)
    config("FPMC", "ml-100k", **given)
    assert dataset_arguments == before
    assert yaml.FullLoader.yaml_implicit_resolvers == resolvers
    assert given == {"train_neg_sample_args": {"distribution": "uniform"}}


# Refusals


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lerning_rate": 1}, "unknown setting 'lerning_rate'; did you mean 'learning_rate'?"),
        ({"mask-seen": True}, "did you mean 'mask_seen'?"),
        ({"max_item_list_length": 5}, "did you mean 'MAX_ITEM_LIST_LENGTH'?"),
        ({"qqqq": 1}, "neither RecBole, SASRec nor this package reads it"),
        ({"device": "cpu"}, "unknown setting 'device'"),
        ({"dropout": 2.0}, "dropout=2.0 is out of range"),
        ({"epochs": "ten"}, "epochs='ten' must be a number"),
        ({"epochs": 0}, "epochs=0 must be above 0"),
        ({"show_progress": "maybe"}, "show_progress='maybe' must be True or False"),
        ({"learner": "adm"}, "learner='adm' is not one of"),
        ({"loss_type": "MSE"}, "loss_type='MSE' is not one of CE, BPR"),
        ({"metrics": ["Hitt"]}, "'Hitt' is not one of"),
        ({"metrics": ["Hit", "AUC"], "valid_metric": "AUC"}, "can not be used at the same time"),
        ({"topk": 0}, "topk=0 must be a positive whole number"),
        ({"topk": [5]}, "valid_metric=NDCG@10 is not measured"),
        ({"valid_metric": "Recall@10"}, "valid_metric=Recall@10 is not measured"),
        ({"valid_metric": "NDCG"}, "valid_metric=NDCG is not measured"),
        ({"metrics": "GAUC", "valid_metric": "GAUC@10"}, "valid_metric=GAUC@10 is not measured"),
        ({"stopping_step": -1}, "stopping_step=-1 must be at least 0"),
        ({"repeatable": False}, "repeatable"),
        ({"train_neg_sample_args": {"distribution": "uniform"}}, "should be None"),
        ({"eval_args": {"mode": "some"}}, "mode [some] in eval_args is not supported"),
        ({"eval_args": "LS"}, "should be a dict"),
    ],
)
def test_a_wrong_setting_is_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        config(**values)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.yaml", None, "Cannot read settings from"),
        ("list.yaml", b"- a\n- b", "'name: value' lines"),
        ("bad.yaml", b"a: 1\nb: [", "is not YAML (line 2)"),
        ("tag.yaml", b"a: !!python/name:os.getcwd", "is not YAML"),
        ("latin.yaml", b"a: \xe9", "is not UTF-8"),
        ("bad.json", b"{", "is not JSON"),
        ("runs.json", b"[{}, {}]", "holds 2 runs"),
        ("key.yaml", b"lerning_rate: 1", "did you mean 'learning_rate'"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingError) as caught:
        RunConfig("SASRec", "ml-100k", [tmp_path / name])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing yet\n")
    assert entries(RunConfig("SASRec", "ml-100k", [tmp_path / "a.yaml"])) == entries(config())


def test_settings_that_only_the_model_knows_are_taken() -> None:
    assert config("S3Rec", pretrain_epochs=3)["pretrain_epochs"] == 3
    with pytest.raises(SettingError, match="unknown setting 'pretrain_epochs'"):
        config("SASRec", pretrain_epochs=3)


def test_an_interval_may_be_a_list() -> None:
    assert config(user_inter_num_interval=[20, 40])["user_inter_num_interval"] == "[20,40]"


# The device


def test_without_a_gpu_the_default_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    built = config()
    assert built["device"] == torch.device("cpu") and built["use_gpu"] is False
    for asked in ({"use_gpu": True}, {"gpu_id": 0}, {"gpu_id": "1"}):
        with pytest.raises(SettingError, match="torch sees none"):
            config(**asked)


def test_use_gpu_false_is_the_cpu_even_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert config(use_gpu=False)["device"] == torch.device("cpu")
    assert config(use_gpu=False, gpu_id=1)["device"] == torch.device("cpu")
    assert config(gpu_id="")["device"] == torch.device("cpu")
    assert config()["device"] == torch.device("cuda")
    assert config(gpu_id=1)["device"] == torch.device("cuda", 1)
    for wrong in (2, "0,1"):
        with pytest.raises(SettingError, match="must be one number below 2"):
            config(gpu_id=wrong)
    import os

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


# Saving


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec", "S3Rec", "FPMC", "DIN", "SINE"])
@pytest.mark.parametrize("dataset", ["ml-100k", "amazon-toys"])
def test_complete_settings_make_the_same_configuration(
    model: str, dataset: str, tmp_path: Path
) -> None:
    first = config(model, dataset, seed=5, data_path=str(tmp_path), topk=10, use_gpu=False)
    saved = json.loads(json.dumps(first.complete_settings()))
    again = RunConfig(model, dataset, settings=saved)
    assert entries(again) == entries(first)
    assert again.complete_settings() == saved
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"model": model, "settings": saved}))
    assert entries(RunConfig(model, dataset, [path])) == entries(first)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_for_a_terminal(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert config()["show_progress"] is is_terminal
    assert config(show_progress=True)["show_progress"] is True


def test_complete_settings_leave_the_machine_to_the_next_run() -> None:
    left_out = {"use_gpu", "gpu_id", "device", "show_progress"}
    assert not left_out & config().complete_settings().keys()
    assert config(use_gpu=False).complete_settings()["use_gpu"] is False


def test_a_configuration_is_pickled_and_copied_whole() -> None:
    first = config("S3Rec", seed=5)
    for other in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        assert other.final_config_dict == first.final_config_dict
        assert other.settings == first.settings
        assert other.complete_settings() == first.complete_settings()
        assert str(other) == str(first)


def test_a_setting_of_a_model_beside_is_left_to_that_model() -> None:
    settings = {"num_layers": 2, "backbone": "bundled", "epochs": 3}
    both = ("SASRec", "GRU4Rec")
    sasrec = RunConfig("SASRec", "ml-100k", settings=settings, beside=both)
    gru4rec = RunConfig("GRU4Rec", "ml-100k", settings=settings, beside=both)
    assert sasrec["num_layers"] is None and gru4rec["num_layers"] == 2
    assert sasrec["epochs"] == gru4rec["epochs"] == 3
    assert "num_layers" not in sasrec.complete_settings()
    with pytest.raises(SettingError, match="num_layers"):
        RunConfig("SASRec", "ml-100k", settings=settings)
    with pytest.raises(SettingError, match="nm_layers"):
        RunConfig("SASRec", "ml-100k", settings={"nm_layers": 2}, beside=both)


@pytest.mark.skipif(sys.platform != "linux", reason="torch's allocator does it on Linux alone")
@pytest.mark.parametrize("named", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", None])
def test_gpu_memory_may_grow_unless_the_user_has_a_say(
    named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that what a run sets is taken back
        monkeypatch.delenv(name)
    if named:
        monkeypatch.setenv(named, "max_split_size_mb:64")
    RunConfig("IDIOMoE", "ml-100k")
    found = os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
    wanted = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64", "PYTORCH_ALLOC_CONF": None}
    assert found == wanted.get(named or "", "expandable_segments:True")
