"""Folders of runs that are another's, incomplete or broken."""

from pathlib import Path

import pytest

from recbole_idiomoe.recommend import __main__ as recommend
from tests.bad_input.stranger import Stranger, both


@both
def test_a_run_goes_on_unless_its_folder_is_another_s_or_broken(
    model: str, stranger: Stranger
) -> None:
    folder = Path(stranger.result(model)["folder"])
    resume = (f"--resume={folder}", "--epochs=2")
    state = folder / "training_state.pt"
    whole = state.read_bytes()
    other = {"hidden_size": 32} if model == "SASRec" else {"item_embedding_dim": 4}
    assert "architecture" in stranger.refused(model, *resume, **other)
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1  # a number of some tensor
    for content in (b"", whole[: len(whole) // 2], bytes(altered)):
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
