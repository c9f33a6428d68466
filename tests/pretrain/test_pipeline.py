from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from recbole_idiomoe.lm import encode_text, load_backbone
from recbole_idiomoe.lm.likelihood import likelihood
from recbole_idiomoe.pretrain.__main__ import main
from recbole_idiomoe.pretrain.corpus import Windows, read_texts

from .conftest import sentences

SIZES = {
    "vocab_size": 290,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "context": 32,
    "batch_size": 8,
    "micro_batch_size": 3,
    "epochs": 5.5,
    "warmup_steps": 5,
    "holdout": 0.2,
}


def arguments(books: Path, out: Path, **options: object) -> list[str]:
    values = {"text": books, "out": out} | SIZES | options
    return [f"--{name}={value}" for name, value in values.items()]


def test_a_run_writes_a_model_that_has_learnt(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = tmp_path / "test.txt"
    test.write_text(sentences(99, 30), encoding="utf-8")
    out = tmp_path / "models" / "tiny"
    given = arguments(books, out, test=test, prompt="The big", sources="Toy sentences.")
    assert main(given) == 0

    wanted = {"README.md", "SHA256SUMS", "config.json", "generation_config.json"}
    wanted |= {"model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in out.iterdir()} == wanted
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    for line in (out / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
        wanted.remove(name)
    assert wanted == {"README.md", "SHA256SUMS"}

    model = AutoModelForCausalLM.from_pretrained(out)
    assert (
        model.config.model_type == "qwen2"
        and len(PreTrainedTokenizerFast.from_pretrained(out)) == model.config.vocab_size
    )
    backbone, tokenizer = load_backbone(str(out))
    said = backbone.generate(
        **tokenizer("The big cat sits", return_tensors="pt"), max_new_tokens=2, do_sample=False
    )
    assert tokenizer.decode(said[0]) == "The big cat sits under the"

    # Not what AutoTokenizer would make of it: e and its accent stay two code points.
    assert tokenizer.decode(tokenizer("e\u0301").input_ids) == "e\u0301"
    assert encode_text(tokenizer, ["The cat sees é"]) == encode_text(
        PreTrainedTokenizerFast.from_pretrained(out), ["The cat sees é"]
    )

    card = (out / "README.md").read_text(encoding="utf-8")
    for part in ("# tiny", "Toy sentences.", "| books.txt | 8 |", "--hidden_size=32", "> The big"):
        assert part in card
    for text in ("held-out texts of books.txt", "test.txt"):
        [row] = [line for line in card.splitlines() if line.startswith(f"| {text} (")]
        trained, untrained = (float(cell.strip(" *")) for cell in row.split("|")[2:4])
        assert trained < 0.3 * untrained
    found = likelihood(backbone, tokenizer, read_texts(str(test)), SIZES["context"])
    assert f"test.txt: {found.bits_per_byte:.3f} bits per byte" in capsys.readouterr().out
    assert f"**{found.bits_per_byte:.3f}**" in card
    losses = [line.split("|")[2:4] for line in card.splitlines() if line[:4] in ("| 1 ", "| 5 ")]
    assert len(losses) == 2
    assert all(float(a) > float(b) for a, b in zip(*losses, strict=True))


class Stop(BaseException):
    pass


# An epoch has 31 steps; the last stop is after training, while the model is measured.
INTERRUPTED = [(10, (25, 45)), (31, (40, 70)), (1000, (170,))]


def test_an_interrupted_run_goes_on_to_the_very_same_weights(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    assert main(arguments(books, whole)) == 0
    batches = Windows.batches
    stop_at = -1

    def interrupted(self: Windows, first: int, last: int) -> Iterator[torch.Tensor]:
        for step, batch in enumerate(batches(self, first, last), first):
            if step == stop_at:
                raise Stop
            yield batch
        if stop_at == last:
            raise Stop

    monkeypatch.setattr(Windows, "batches", interrupted)
    for save_every, stops in INTERRUPTED:
        out = tmp_path / f"parts of {save_every}"
        for stop_at in stops:
            with pytest.raises(Stop):
                main(arguments(books, out, save_every=save_every))
            last = min(stop_at // save_every * save_every, 170) if stop_at < 170 else 170
            assert [path.name for path in out.iterdir()] == [f"checkpoint-{last}"]
        stop_at = -1
        assert main(arguments(books, out, save_every=save_every)) == 0
        weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, out)]
        assert weights[0] == weights[1]
        assert not list(out.glob("*checkpoint*"))
        tables = [_epochs((folder / "README.md").read_text()) for folder in (whole, out)]
        assert tables[0] == tables[1] and len(tables[0]) == 5


def _epochs(card: str) -> list[str]:
    return [line for line in card.splitlines() if line.startswith("| ") and line[2].isdigit()]


def refused(capsys: pytest.CaptureFixture[str], given: list[str]) -> str:
    assert main(given) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message


def test_a_checkpoint_of_other_settings_is_refused(
    books: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr("recbole_idiomoe.pretrain.pipeline._write", stop)
    assert main(arguments(books, out, epochs=1, save_every=3)) == 130
    assert "the same command goes on" in capsys.readouterr().err
    [checkpoint] = out.iterdir()
    assert "--learning_rate=0.004" in refused(
        capsys, arguments(books, out, epochs=1, learning_rate=0.1)
    )
    other = tmp_path / "other.txt"
    other.write_text(books.read_text(encoding="utf-8").replace("big", "fat"), encoding="utf-8")
    assert "other text" in refused(capsys, arguments(other, out, epochs=1))
    (checkpoint / "progress.json").write_text(json.dumps({"settings": 3}))
    assert "delete it" in refused(capsys, arguments(books, out, epochs=1))
    (checkpoint / "progress.json").write_text("{")
    assert str(checkpoint) in refused(capsys, arguments(books, out, epochs=1))


def test_a_finished_model_is_not_overwritten(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("config.json", "SHA256SUMS"):  # of another's making, or finished here
        (out / name).write_text("{}")
        assert "already holds a model" in refused(capsys, arguments(books, out))
        (out / name).unlink()
    shutil.rmtree(out)
    out.write_text("a file")
    assert "--out" in refused(capsys, arguments(books, out))


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"text": "nowhere.txt"}, "nowhere.txt"),
        ({"epochs": 0}, "--epochs=0.0 must be above 0"),
        ({"epochs": "inf"}, "--epochs=inf"),
        ({"seed": -1}, "--seed=-1"),
        ({"weight_decay": -1}, "--weight_decay=-1.0"),
        ({"prompt": ""}, "--prompt is empty"),
        ({"holdout": 0.99}, "lower --holdout"),
        ({"lerning_rate": 0.1}, "--lerning_rate=0.1"),
        ({"holdout": 1}, "--holdout=1.0"),
        ({"vocab_size": 100}, "--vocab_size=100"),
        ({"vocab_size": 70000}, "--vocab_size=70000"),
        ({"context": 1}, "--context=1"),
        ({"batch_size": 100000}, "smaller --batch_size"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "make no decoder"),
        ({"test": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_bad_settings_are_refused_in_one_line(
    books: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, object],
    shown: str,
) -> None:
    out = tmp_path / "out"
    assert shown in refused(capsys, arguments(books, out, **options))
    assert not (out / "config.json").exists()


def test_files_that_the_card_could_not_tell_apart_are_refused(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = tmp_path / "twin" / books.name
    given = [*arguments(books, tmp_path / "out"), f"--text={twin}"]
    assert "two files books.txt" in refused(capsys, given)


def test_help_fits_a_terminal_and_names_every_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and max(map(len, shown.splitlines())) <= 80
    assert "--text" in shown and "--save_every" in shown
