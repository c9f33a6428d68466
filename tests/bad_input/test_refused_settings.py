"""Settings, words and machines that are refused in one line, with nothing left behind."""

import errno
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recbole_idiomoe import cli
from tests.bad_input.stranger import Stranger, both

LABELED: dict[str, Any] = {"metrics": ["AUC"], "valid_metric": "AUC", "mask_seen": False}
LABELED |= {"eval_args": {"mode": "labeled"}}


@both
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"topk": [1000], "valid_metric": "NDCG@1000"}, ["topk", "the 10 items of toy"]),
        ({"user_inter_num_interval": "[100,inf)"}, ["nothing is left after the filters"]),
        ({"user_inter_num_interval": "five"}, ["is no interval", "[5,inf)"]),
        ({"user_inter_num_interval": [5]}, ["is no interval"]),
        ({"item_inter_num_interval": "[10,5]"}, ["the lower end first"]),
        ({"val_interval": "[1,2]"}, ["val_interval", "timestamp"]),
        ({"item_text_fields": ["titel"], "item_template": "{titel}"}, ["no column 'titel'"]),
        ({"load_col": ["inter"]}, ["load_col", "must be"]),
        ({"load_col": {"inter": "user_id"}}, ["load_col", "must be"]),
        ({"eval_args": {"mode": "uni100"}}, ["mask_seen=False"]),
        ({"eval_args": {"split": {"LS": "valid_only"}}}, ["split", "valid_and_test"]),
        ({"eval_args": {"split": {"LX": "valid_and_test"}}}, ["split", "valid_and_test"]),
        ({"eval_args": {"order": "RO"}}, ["order='RO' must be TO"]),
        ({"eval_args": {"group_by": "item"}}, ["group_by='item'"]),
        ({"metrics": ["NDCG", "Coverage"]}, ["'Coverage' is not one of", "ItemCoverage"]),
        ({"metrics": "Hit,NDCG"}, ["'Hit,NDCG' is not one of", "as [Hit, NDCG]"]),
        ({"topk": "5,10"}, ["topk='5,10' must be", "as [5, 10]"]),
        ({"learnin_rate": 0.1}, ["did you mean 'learning_rate'"]),
        ({"learning_rate": float("inf")}, ["learning_rate", "finite"]),
        ({"learning_rate": 1e300}, ["learning_rate=1e+300 must be at most"]),
        ({"learning_rate": "fast"}, ["learning_rate='fast' must be a number"]),
        ({"epochs": 1.5}, ["epochs=1.5 must be a whole number"]),
        ({"train_batch_size": 0.5}, ["must be a whole number"]),
        ({"worker": -1}, ["worker=-1 must be at least 0"]),
        ({"weight_decay": -1}, ["must be at least 0"]),
        ({"seed": "abc"}, ["seed='abc' must be a number"]),
        ({"seed": -1}, ["seed=-1 must be at least 0"]),
        ({"seed": 2**40}, ["must be at most 4294967295"]),
        ({"clip_grad_norm": 1.0}, ["{max_norm: 1.0}"]),
        ({"clip_grad_norm": {"max_nrm": 1.0}}, ["{max_norm: 1.0}"]),
        ({"field_separator": ""}, ["field_separator='' must be text"]),
        ({"encoding": 8}, ["encoding=8 must be text"]),
        ({"encoding": "klingon"}, ["unknown encoding"]),
        ({"rm_dup_inter": "middle"}, ["is not one of first, last"]),
        ({"benchmark_filename": "train"}, ["[train, valid, test]"]),
        ({"checkpoint_dir": "c.yaml"}, ["checkpoint_dir=c.yaml cannot be written", "Not a dir"]),
        ({"checkpoint_dir": "/proc/none"}, ["checkpoint_dir=/proc/none cannot be written"]),
        ({"data_path": "nowhere"}, ["unknown dataset 'toy'", "--data_path=nowhere"]),
        ({"metrics": ["AUC"], "valid_metric": "AUC"}, ["labels", "mode=labeled"]),
        ({"metrics": ["AUC", "Hit"], "valid_metric": "AUC"}, ["measure them in two runs"]),
        (
            {"eval_args": {"mode": "labeled"}, "mask_seen": False},
            ["rank candidates", "mode=labeled", "AUC"],
        ),
        (LABELED, ["mode=labeled needs the column 'label'", "threshold: {rating: 3}"]),
        (LABELED | {"threshold": {"rating": 3}}, ["needs the column 'rating'", "toy.inter has"]),
        (LABELED | {"threshold": {"timestamp": 3}}, ["uses up 'timestamp'", "TIME_FIELD"]),
        ({"threshold": 3}, ["threshold=3 must be null", "{rating: 3}"]),
        ({"threshold": {"a": 1, "b": 2}}, ["threshold=", "{rating: 3}"]),
        ({"eval_args": {"mode": "unix"}}, ["mode [unix] in eval_args is not supported", "uni100"]),
        ({"eval_args": {"mode": {"vald": "full"}}}, ["is not supported", "{valid: uni100"]),
        ({"eval_args": {"splt": 1}}, ["eval_args has no 'splt'"]),
        (
            {"metrics": ["GiniIndex"], "valid_metric": "GiniIndex@5", "mask_seen": False}
            | {"eval_args": {"mode": "uni3"}},
            ["GiniIndex need full lists", "4 candidates"],
        ),
        ({"tail_ratio": 0}, ["tail_ratio=0 must be null or a number above 0"]),
        ({"loss_decimal_place": -1}, ["loss_decimal_place=-1 must be at least 0"]),
        ({"loss_decimal_place": 2.5}, ["must be a whole number"]),
        ({"metric_decimal_place": 1000}, ["metric_decimal_place=1000 must be at most 15"]),
        ({"transform": "x"}, ["transform='x' must be null or one of inverse_itemseq"]),
        ({"transform": "user_defined"}, ["transform='user_defined' must be null or one of"]),
        ({"transform": "mask_itemseq"}, ["transform=mask_itemseq needs mask_ratio"]),
        ({"transform": "crop_itemseq"}, ["transform=crop_itemseq needs eta"]),
        ({"unused_col": "x"}, ["unused_col=x must be null or a list of columns a file"]),
        ({"unused_col": {"inter": ["user_id"]}}, ["unused_col: 'user_id' is USER_ID_FIELD"]),
        ({"unload_col": ["timestamp"]}, ["unload_col", "a list of columns a file"]),
        ({"discretization": "x"}, ["discretization=x must be null or a method a column"]),
        ({"preload_weight": "x"}, ["preload_weight=x must be null"]),
        ({"seq_len": {"title": "x"}}, ["seq_len", "{title: 20}"]),
        ({"numerical_features": "x"}, ["numerical_features=x must be null or a list of texts"]),
        ({"numerical_features": ["timestamp"]}, ["'timestamp' is TIME_FIELD"]),
        ({"alias_of_item_id": "x"}, ["alias_of_item_id=x must be null or a list of texts"]),
        ({"val_interval": {"timestamp": None}}, ["val_interval: timestamp has no interval"]),
        ({"entity_kg_num_interval": "[0"}, ["entity_kg_num_interval='[0' is no interval"]),
        ({"LIST_SUFFIX": ""}, ["LIST_SUFFIX='' must be text"]),
        ({"LIST_SUFFIX": 5}, ["LIST_SUFFIX=5 must be text"]),
        ({"ITEM_LIST_LENGTH_FIELD": None}, ["ITEM_LIST_LENGTH_FIELD=None must be text"]),
        ({"ITEM_LIST_LENGTH_FIELD": "item_id"}, ["both 'item_id'", "its own name"]),
        ({"NEG_PREFIX": ""}, ["NEG_PREFIX='' must be text"]),
        ({"encoding": "utf-16"}, ["toy.inter, line 1: not utf-16"]),
        ({"wandb_project": 5}, ["wandb_project=5 must be text"]),
        ({"train_neg_sample_args": "x"}, ["train_neg_sample_args='x' must be null or as"]),
        ({"train_neg_sample_args": {"sample_num": 0}}, ["sample_num=0 must be a positive whole"]),
        ({"train_neg_sample_args": {"sample_num": "x"}}, ["sample_num='x' must be a positive"]),
        ({"train_neg_sample_args": {"alpha": "x"}}, ["alpha='x' must be a number"]),
        ({"train_neg_sample_args": {"number": 1}}, ["train_neg_sample_args has no 'number'"]),
        ({"train_neg_sample_args": {"dynamic": True}}, ["candidate_num above 0"]),
    ],
)
def test_a_bad_setting_is_refused(
    settings: dict[str, Any], words: list[str], model: str, stranger: Stranger
) -> None:
    message = stranger.refused(model, **settings)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        ("SASRec", {"n_heads": 3}, "SASRec cannot be built: The hidden size (16)"),
        ("SASRec", {"attn_dropout_prob": 2.0}, "SASRec cannot be built: dropout"),
        ("SASRec", {"hidden_act": "x"}, "hidden_act='x' is not one of gelu"),
        ("SASRec", {"loss_type": "ce"}, "loss_type='ce' is not one of CE, BPR"),
        ("SASRec", {"learner": "sparse_adam"}, "learner='sparse_adam' is not one of adam"),
        ("SASRec", {"loss_type": "BPR", "train_neg_sample_args": None}, "BPR learns from drawn"),
        ("DIN", {"train_neg_sample_args": None}, "this model learns from drawn items"),
        ("BERT4Rec", {"transform": None}, "mask_itemseq is a part of this model"),
        ("BERT4Rec", {"mask_ratio": 0.0}, "mask_ratio=0.0 masks none"),
        ("SASRecF", {"selected_features": []}, "selected_features=[] must be null or a list"),
        ("SASRecF", {"selected_features": 5}, "selected_features=5 must be null or a list"),
        ("IDIOMoE", {"learner": "adam"}, "trains with adamw alone"),
        ("IDIOMoE", {"adam_betas": ["a", "b"]}, "two numbers"),
        ("IDIOMoE", {"item_warmup": float("nan")}, "item_warmup=nan must be a finite number"),
        ("IDIOMoE", {"text_loss_weight": float("inf")}, "finite number"),
        ("IDIOMoE", {"precision": "fp16"}, "is not one of"),
        ("IDIOMoE", {"item_template": "{title"}, "item_template"),
        ("IDIOMoE", {"backbone_args": {"hiden": 3}}, "'hiden' is no field"),
        (
            "IDIOMoE",
            {"backbone": "bundled", "backbone_args": {"hidden_size": 32}},
            "give backbone=untrained",
        ),
        ("IDIOMoE", {"expert_layers": [99]}, "99 is not a layer"),
        ("IDIOMoE", {"text_encoder": "/none"}, "could not be loaded"),
        ("IDIOMoE", {"text_encoder": "none.npz"}, "(No such file or directory)"),
        ("IDIOMoE", {"backbone": "/none"}, "there is no such folder"),
        ("IDIOMoE", {"backbone": "none/such"}, "cannot be had from the hub"),
    ],
)
def test_what_a_model_cannot_be_built_of_is_refused(
    model: str, settings: dict[str, Any], said: str, stranger: Stranger
) -> None:
    assert said in stranger.refused(model, **settings)


@both
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs=1", "--epochs=2"], "--epochs is given twice"),
        (["--resume=nowhere"], "nowhere is not the folder of a run"),
        (["--resume=c.yaml"], "c.yaml is not the folder of a run"),
        (["--result_file=dataset"], "is a folder"),
        (["--result_file=c.yaml/r.json"], "result_file=c.yaml/r.json cannot be written"),
        (["--result_file=/proc/r.json"], "result_file=/proc/r.json cannot be written"),
    ],
)
def test_a_bad_word_is_refused(words: list[str], said: str, model: str, stranger: Stranger) -> None:
    assert said in stranger.refused(model, *words)


def test_a_tracker_that_is_not_installed_is_named_with_its_command(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for model in ("SASRec", "IDIOMoE"):
        assert "pip install wandb" in stranger.refused(model, log_wandb=True)
    # What is left of its runs in ./wandb can be imported, and is not the library.
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    assert "pip install wandb" in stranger.refused("SASRec", log_wandb=True)


def test_a_tracker_that_cannot_start_is_one_line(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    class UsageError(Exception):
        __module__ = "wandb.errors"

    def init(**options: Any) -> None:
        raise UsageError("No API key configured.")

    tracker = ModuleType("wandb")
    vars(tracker).update(run=None, init=init)
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    stranger.files()
    assert stranger.run("SASRec", log_wandb=True) == 2
    said = stranger.capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "No API key configured; log in with wandb login" in said[0]


def test_workers_without_shared_memory_are_refused(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", none)
    for model in ("SASRec", "IDIOMoE"):
        assert "worker=2 needs shared memory, as /dev/shm" in stranger.refused(model, worker=2)


def test_a_cache_of_tokens_that_cannot_be_written_is_refused(stranger: Stranger) -> None:
    assert "token_cache=/proc/none cannot be written" in stranger.refused(
        "IDIOMoE", token_cache="/proc/none"
    )


def test_a_gpu_that_is_not_there_is_refused(
    stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "a GPU is asked for" in stranger.refused("SASRec", gpu_id=0)


def test_a_model_or_a_data_set_that_is_none_is_refused(stranger: Stranger) -> None:
    assert "one of RecBole's general models" in stranger.refused("BPR")
    assert "did you mean 'SASRec'" in stranger.refused("SASREC")
    for dataset, said in (("toi", "unknown dataset"), ("../toy", "is a path")):
        words = ["--model=SASRec", f"--dataset={dataset}", "--config_files=c.yaml"]
        assert said in stranger.said(cli.main(words), set())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"a: [1,\nb: 2", "b.yaml is not YAML (line 2)"),
        (b"- 1", "'name: value' lines"),
        (b"epochs: 1\nseed: 1\nepochs: 2\n", "'epochs' twice (line 3)"),
        (bytes(range(256)), "not UTF-8"),
        (b"a: \0", "not YAML"),
        (b"load_col: &a {inter: *a}", "nested too deep"),
    ],
)
def test_a_bad_configuration_file_is_refused(
    content: bytes | None, said: str, stranger: Stranger
) -> None:
    stranger.files()
    if content is not None:
        Path("c.yaml.b.yaml").write_bytes(content)
    words = ["--model=SASRec", "--dataset=toy", "--config_files=c.yaml.b.yaml"]
    assert said in stranger.said(cli.main(words), set())


def test_a_log_that_cannot_be_written_is_refused(stranger: Stranger) -> None:
    Path("log").write_text("")
    assert "the log cannot be written" in stranger.refused("SASRec")
