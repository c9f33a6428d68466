"""Settings, words and machines that are refused in one line, with nothing left behind."""

from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe import cli
from tests.bad_input.stranger import Stranger, both


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
