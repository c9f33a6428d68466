"""What a stranger may give: a right result, or one line that says what is wrong and no debris."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from recbole_idiomoe import cli, recommend
from tests.helpers import DATASET_SETTINGS, TINY_BACKBONE, write_dataset

MODELS = ("SASRec", "IDIOMoE")
ITEMS = [(f"i{n}", f"Item number {n}", f"cat{n % 3}|all") for n in range(10)]
ROWS = [(f"u{n}", f"i{(3 * n + k * k) % 10}", 100.0 * n + k) for n in range(8) for k in range(6)]
COMMON: dict[str, Any] = DATASET_SETTINGS | {
    "epochs": 1,
    "topk": [1, 5],
    "valid_metric": "NDCG@5",
    "train_batch_size": 64,
    "eval_batch_size": 64,
    "MAX_ITEM_LIST_LENGTH": 10,
    "state": "error",
}
OWN: dict[str, dict[str, Any]] = {
    "SASRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1},
    "IDIOMoE": {"backbone_args": TINY_BACKBONE, "max_item_text_tokens": 8, "item_warmup": 0.0},
}


class Stranger:
    """Runs commands in the folder where the test stands."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def files(
        self,
        rows: Any = ROWS,
        items: Any = ITEMS,
        inter: Callable[[str], str | bytes] = str,
        item: Callable[[str], str | bytes] = str,
    ) -> None:
        """``dataset/toy``, its two files changed by ``inter`` and ``item``."""
        folder = Path("dataset/toy")
        write_dataset(folder, rows, items)
        for suffix, change in (("inter", inter), ("item", item)):
            path = folder / f"toy.{suffix}"
            content = change(path.read_bytes().decode())
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def run(self, model: str, *words: str, **settings: Any) -> int:
        """The command line on it; a word wins over the settings, which are in a file."""
        if not Path("dataset").exists():
            self.files()
        own = OWN.get(model, {})
        if settings.get("backbone"):
            own = {key: value for key, value in own.items() if key != "backbone_args"}
        Path("c.yaml").write_text(yaml.safe_dump(COMMON | own | settings))
        return cli.main([f"--model={model}", "--dataset=toy", "--config_files=c.yaml", *words])

    def refused(self, model: str, *words: str, **settings: Any) -> str:
        """The one line that refuses a run, of which nothing stays."""
        if not Path("dataset").exists():
            self.files()
        before = self.debris()
        self.capsys.readouterr()
        code = self.run(model, *words, **settings)
        return self.said(code, before)

    def said(self, code: int, before: set[str]) -> str:
        captured = self.capsys.readouterr()
        bars = "Loading weights"  # transformers'
        lines = [x for x in captured.err.splitlines() if x and not x.startswith(bars)]
        assert code == 2 and self.debris() == before
        assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
        assert captured.out == ""
        return lines[0]

    def result(self, model: str, *words: str, **settings: Any) -> dict[str, Any]:
        """The result of a run that is to succeed, quietly."""
        self.capsys.readouterr()
        assert self.run(model, "--result_file=r.json", *words, **settings) == 0
        assert self.capsys.readouterr().err == ""
        result: dict[str, Any] = json.loads(Path("r.json").read_text())
        assert all(0 <= value <= 1 for value in result["test_result"].values())
        return result

    @staticmethod
    def debris() -> set[str]:
        """All that a run leaves but RecBole's logs."""
        inputs = ("log", "dataset/", "c.yaml")
        return {str(p) for p in Path().rglob("*") if not str(p).startswith(inputs) and p.is_file()}


@pytest.fixture
def stranger(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stranger]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield Stranger(capsys)
    for handler in logging.getLogger().handlers[:]:  # RecBole's, which write to this test's stderr
        if type(handler) is logging.StreamHandler:
            logging.getLogger().removeHandler(handler)


both = pytest.mark.parametrize("model", MODELS)


def append(line: str) -> Callable[[str], str]:
    return lambda text: text + line


# Files that are refused


@both
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inter": lambda _: bytes(range(256)) * 20}, ["toy.inter, line 2", "not utf-8"]),
        ({"inter": lambda _: b"\0" * 500}, ["toy.inter", "in the header"]),
        ({"inter": lambda text: text[:-9]}, ["toy.inter, line 49", "2 fields", "mend that line"]),
        ({"inter": lambda text: text.encode("utf-16")}, ["line 1", "not utf-8", "--encoding"]),
        ({"item": lambda text: text.replace("m", "é").encode("latin-1")}, ["toy.item", "not utf"]),
        ({"inter": lambda text: text.replace("stamp", "")}, ["no column 'timestamp'"]),
        ({"inter": lambda text: text.replace(":float", ":token")}, ["must be timestamp:float"]),
        ({"inter": lambda text: text.replace("item_id:token", "item_id:float")}, ["item_id:token"]),
        ({"item": lambda text: text.replace("item_id:token", "item_id:float")}, ["item_id:token"]),
        ({"inter": append("u1\ti1\tnoon\n")}, ["line 50", "timestamp is 'noon', not a number"]),
        ({"inter": append("u1\ti1\tnan\n")}, ["line 50", "timestamp is 'nan', not a number"]),
        ({"inter": append("u1\ti1\tinf\n")}, ["line 50", "timestamp is 'inf', not a number"]),
        ({"inter": append("u1\ti1\t\n")}, ["line 50", "timestamp is '', not a number"]),
        ({"inter": append("\ti1\t5\n")}, ["line 50", "user_id is ''"]),
        ({"inter": append("u1\tNA\t5\n")}, ["line 50", "item_id is 'NA'", "takes for missing"]),
        ({"inter": append("u1\ta\0b\t5\n")}, ["line 50", "NUL"]),
        ({"inter": append("u1\ti1\n")}, ["line 50", "2 fields"]),
        ({"inter": append("u1\ti1\t5\t6\n")}, ["line 50", "4 fields"]),
        ({"inter": lambda _: ""}, ["toy.inter is empty"]),
        ({"inter": lambda text: text.splitlines()[0] + "\n\n\n"}, ["header but no rows"]),
        ({"item": lambda text: text.splitlines()[0]}, ["toy.item has a header but no rows"]),
        ({"item": append("i1\ta\rb\tc\n")}, ["toy.item, line 12", "2 fields"]),
        ({"item": append("\tnobody\tc\n")}, ["toy.item, line 12", "item_id is ''"]),
        ({"item": append(f"j\t{'x' * 200_000}\tc\n")}, ["line 12", "more than 131072 characters"]),
        ({"item": lambda text: text.replace("\ni", "\nj")}, ["nothing is left", ".item"]),
        ({"rows": ROWS[::6]}, ["no user has 3 interactions"]),
        ({"rows": [row for n, row in enumerate(ROWS) if n % 6 < 2]}, ["no user has 3 inter"]),
        ({"rows": [row for n, row in enumerate(ROWS) if n % 6 < 3]}, ["left for validation"]),
        ({"rows": [(u, "i0", t) for u, _, t in ROWS], "items": ITEMS[:1]}, ["topk", "the 1 items"]),
    ],
)
def test_a_bad_file_is_refused(
    changes: dict[str, Any], words: list[str], model: str, stranger: Stranger
) -> None:
    stranger.files(**changes)
    message = stranger.refused(model)
    assert all(word in message for word in words), message


@both
def test_a_missing_file_is_named(model: str, stranger: Stranger) -> None:
    stranger.files()
    folder = Path("dataset/toy")
    (folder / "toy.item").rename("item")
    assert "load_col and item_text_fields" in stranger.refused(model)
    (folder / "toy.item").mkdir()
    assert "Is a directory" in stranger.refused(model)
    (folder / "toy.inter").unlink()
    assert "holds no toy.inter" in stranger.refused(model)
    (folder / "toy.inter").mkdir()
    assert "holds no toy.inter" in stranger.refused(model)
    shutil.rmtree(folder)
    assert "unknown dataset 'toy'" in stranger.refused(model)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission_is_named(stranger: Stranger) -> None:
    stranger.files()
    Path("dataset/toy/toy.inter").chmod(0)
    assert "Permission denied" in stranger.refused("SASRec")


# Settings that are refused


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
        ({"metrics": ["NDCG", "ItemCoverage"]}, ["'ItemCoverage' is not one of"]),
        ({"learnin_rate": 0.1}, ["did you mean 'learning_rate'"]),
        ({"learning_rate": float("inf")}, ["learning_rate", "finite"]),
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
        ("IDIOMoE", {"expert_layers": [99]}, "99 is not a layer"),
        ("IDIOMoE", {"text_encoder": "/none"}, "could not be loaded"),
        ("IDIOMoE", {"text_encoder": "none.npz"}, "FileNotFoundError"),
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
        (b"load_col: &a {inter: *a}", "load_col"),
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


# Odd input that is taken


@both
@pytest.mark.parametrize(
    "titles",
    [
        ["x" * 100_000],
        ['"one","two"', '""', '"', "it's"],
        ["a\x0bb", "c\x0cd", "\x1c\x1d\x1e", "a\u2028b", "e\x85f"],
        ["😀😀", "👨‍👩‍👧", "שלום עולם", "\u202eabc", "e\u0301", "\u200b"],
        ["<|endoftext|>", "<|it-i1|>", "<|it-[PAD]|>", "{title}", "{", "}", "{0}", "%s"],
        ["None", "NA", "null"],
        ["", "  "],
    ],
)
def test_any_title_is_read(titles: list[str], model: str, stranger: Stranger) -> None:
    items = [(i, titles[n % len(titles)], "") for n, (i, *_) in enumerate(ITEMS)]
    stranger.files(items=items)
    assert stranger.result(model)["items"] == 10


@both
@pytest.mark.parametrize(
    "form", ["{}0", "00{}", "{}.0", " {} x", '"{}', '"{}"', "{}|>", "<|it-{}|>", "a,{}", "😀{}"]
)
def test_any_item_id_is_kept(form: str, model: str, stranger: Stranger) -> None:
    new = {i: form.format(n) for n, (i, *_) in enumerate(ITEMS)}
    stranger.files([(u, new[i], t) for u, i, t in ROWS], [(new[i], a, b) for i, a, b in ITEMS])
    result = stranger.result(model)
    assert (result["items"], result["interactions"]) == (10, len(ROWS))
    listed = json.loads((Path(result["folder"]) / "catalog.json").read_text())["item_ids"]
    assert sorted(listed[1:]) == sorted(new.values())


@both
@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({"rows": [*ROWS, ("solo", "i1", 5.0)]}, (9, 10, 49)),
        ({"rows": [*ROWS, *ROWS]}, (8, 10, 96)),
        ({"rows": [(f"v{n}", f"i{n}", 1.0) for n in range(5)] + ROWS[:4]}, (6, 10, 9)),
        ({"items": [*ITEMS, ("z", "nobody's", "")]}, (8, 11, 48)),
        ({"items": [*ITEMS, ("i1", "again", "")]}, (8, 10, 48)),
        ({"inter": lambda text: text.replace("\n", "\r\n")}, (8, 10, 48)),
        ({"inter": lambda text: text.replace("\nu3", "\n\nu3")}, (8, 10, 48)),
        ({"inter": lambda text: text[:-1]}, (8, 10, 48)),
        ({"rows": [(u, i, -t) for u, i, t in ROWS]}, (8, 10, 48)),
    ],
)
def test_odd_rows_are_counted_as_they_are(
    changes: dict[str, Any], counts: tuple[int, ...], model: str, stranger: Stranger
) -> None:
    stranger.files(**changes)
    result = stranger.result(model)
    assert (result["users"], result["items"], result["interactions"]) == counts


@both
def test_items_without_a_row_lose_their_interactions_as_in_recbole(
    model: str, stranger: Stranger
) -> None:
    stranger.files(items=ITEMS[:8])
    result = stranger.result(model)
    known = {i for i, *_ in ITEMS[:8]}
    assert result["interactions"] == sum(i in known for _, i, _ in ROWS) < len(ROWS)


@both
@pytest.mark.parametrize("size", [1, 2])
def test_a_catalogue_may_be_tiny(size: int, model: str, stranger: Stranger) -> None:
    stranger.files([(u, f"i{int(t) % size}", t) for u, _, t in ROWS], ITEMS[:size])
    result = stranger.result(model, topk=[size], valid_metric=f"NDCG@{size}")
    assert result["items"] == size and result["test_result"][f"hit@{size}"] == 1


@both
def test_the_order_in_the_file_is_of_no_matter(model: str, stranger: Stranger) -> None:
    stranger.files(ROWS[::-1])
    backwards = stranger.result(model)
    shutil.rmtree("dataset")
    stranger.files(ROWS)
    assert stranger.result(model)["users"] == backwards["users"] == 8


@both
def test_seconds_that_float32_cannot_tell_apart_keep_the_order_of_the_file(model: str) -> None:
    """RecBole sorts by float32 timestamps, 64 s to 128 s coarse today; so must every model here."""
    from recbole_idiomoe.config import RunConfig
    from recbole_idiomoe.data.loading import load_dataset

    rows = [("u", f"i{k}", 1_400_000_000 + k) for k in reversed(range(10))]
    write_dataset(Path("dataset/toy"), rows, ITEMS)
    settings = DATASET_SETTINGS | {"topk": [1, 10]}
    test = load_dataset(RunConfig(model, "toy", settings=settings)).build()[2]
    last = test[np.arange(1)]["item_id"].item()
    assert test.field2id_token["item_id"][last] == "i0"


@both
def test_long_histories_are_cut(model: str, stranger: Stranger) -> None:
    rows = [(f"u{n}", f"i{(7 * k + n) % 10}", float(k)) for n in range(8) for k in range(70)]
    stranger.files(rows)
    short = {"max_tokens": 8} if model == "IDIOMoE" else {}
    assert stranger.result(model, MAX_ITEM_LIST_LENGTH=50, **short)["interactions"] == 560


@both
@pytest.mark.parametrize(
    "settings",
    [
        {"eval_args": {"mode": "uni100"}, "mask_seen": False},
        {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}}},
        {"worker": 2},
        {"eval_step": 0},
        {"load_col": None, "item_text_fields": None},
    ],
)
def test_odd_settings_are_taken(settings: dict[str, Any], model: str, stranger: Stranger) -> None:
    stranger.result(model, **{"epochs": 2, **settings})


def test_bf16_and_no_text_are_taken(stranger: Stranger) -> None:
    stranger.result("IDIOMoE", precision="bf16")
    stranger.result("IDIOMoE", "--instruction=007", use_text=False)


# Folders of runs


@both
def test_a_run_goes_on_unless_its_folder_is_another_s_or_broken(
    model: str, stranger: Stranger
) -> None:
    folder = Path(stranger.result(model)["folder"])
    resume = (f"--resume={folder}", "--epochs=2")
    state = folder / ("checkpoint.pth" if model == "SASRec" else "training_state.pt")
    whole = state.read_bytes()
    other = {"hidden_size": 32} if model == "SASRec" else {"item_embedding_dim": 4}
    assert "architecture" in stranger.refused(model, *resume, **other)
    for content in (b"", whole[: len(whole) // 2]):
        state.write_bytes(content)
        assert "cannot be read" in stranger.refused(model, *resume)
    state.write_bytes(whole)
    inter = Path("dataset/toy/toy.item")
    inter.write_text(inter.read_text() + "z\tnew\t\n")
    assert "another catalogue" in stranger.refused(model, *resume)
    inter.write_text(inter.read_text().replace("z\tnew\t\n", ""))
    assert stranger.result(model, *resume)["epochs"] == 2
    (folder / "run.json").write_text("{}")
    assert "is not the folder of a run" in stranger.refused(model, *resume)


@both
def test_recommendations_need_a_whole_folder(
    model: str, stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(stranger.result(model)["folder"])
    words = [str(folder), "--history=i1,i2"]
    assert recommend.main([*words, "--k=1000"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 8  # all but those of the history
    files = ["run.json", "catalog.json", "model.safetensors"]
    files += ["config.json", "tokenizer.json"] if model == "IDIOMoE" else []
    for name in files:
        whole = (folder / name).read_bytes()
        for content in (b"", whole[: len(whole) // 2], None):
            (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
            assert str(folder) in stranger.said(recommend.main(words), stranger.debris())
        (folder / name).write_bytes(whole)
    for bad in (["--history=zz"], ["--history=,"], ["--history=[PAD]"], ["--history=i1", "--k=0"]):
        stranger.said(recommend.main([str(folder), *bad]), stranger.debris())
    stranger.said(recommend.main(["nowhere", "--history=i1"]), stranger.debris())


# Language models


def test_a_folder_that_holds_no_decoder_is_refused(
    stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    # transformers warns on the stderr that it found when it was imported.
    quiet = [logging.NullHandler()]
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", quiet)

    tiny = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertConfig(**tiny, intermediate_size=16)
    t5 = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    qwen = Qwen2Config(**tiny, num_key_value_heads=2, intermediate_size=16)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    Qwen2ForCausalLM(qwen).save_pretrained(tmp_path / "qwen")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("bert", "not a decoder-only"),
        ("t5", "not a decoder-only"),
        ("qwen", "no tokenizer that reads text"),
        ("empty", "configuration cannot be loaded"),
    ):
        assert said in stranger.refused("IDIOMoE", backbone=str(tmp_path / name))
    for name in ("t5", "qwen", "empty"):
        said = stranger.refused("IDIOMoE", text_encoder=str(tmp_path / name))
        assert "could not be loaded" in said


IDS = np.array([i for i, *_ in ITEMS])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        {"item_ids": IDS},
        {"item_ids": IDS, "vectors": np.ones(10)},
        {"item_ids": IDS, "vectors": np.ones((9, 4))},
        {"item_ids": IDS, "vectors": np.full((10, 4), np.nan)},
        {"item_ids": IDS[:, None], "vectors": np.ones((10, 4))},
        {"item_ids": IDS, "vectors": np.full((10, 4), "a")},
        {"item_ids": np.array(["q"]), "vectors": np.ones((1, 4))},
    ],
)
def test_a_bad_file_of_vectors_is_refused(content: Any, stranger: Stranger, tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    assert str(path) in stranger.refused("IDIOMoE", text_encoder=str(path))
