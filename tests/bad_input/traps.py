"""Files that run code in whoever reads them carelessly."""

from __future__ import annotations

import io
import json
import pickle
import stat
import zipfile
from pathlib import Path

import torch


class Trap:
    """Whoever unpickles it leaves the file ``trace`` behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace.absolute()

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.trace,)

    @property
    def sprung(self) -> bool:
        return self.trace.exists()

    @property
    def pickled(self) -> dict[str, bytes]:
        """The forms in which ``torch.load`` takes a pickle."""
        forms = {"bare": pickle.dumps(self)}
        for form, options in {
            "zip": {},
            "RecBole's": {"pickle_protocol": 4},
            "legacy": {"_use_new_zipfile_serialization": False},
        }.items():
            buffer = io.BytesIO()
            torch.save({"state_dict": self}, buffer, **options)
            forms[form] = buffer.getvalue()
        return forms

    @property
    def code(self) -> str:
        """An expression that springs it."""
        return f"__import__('pathlib').Path({str(self.trace)!r}).touch()"

    def give_code(self, folder: Path) -> None:
        """Let a model's ``folder`` have configuration, model and tokenizer of its own making."""
        (folder / "own.py").write_text(f"{self.code}\nraise ImportError('no class Own')\n")
        for file, names in {
            "config.json": ("AutoConfig", "AutoModel", "AutoModelForCausalLM"),
            "tokenizer_config.json": ("AutoTokenizer",),
        }.items():
            content = json.loads((folder / file).read_text())
            own = "own.Own" if file == "config.json" else ["own.Own", "own.Own"]
            content["auto_map"] = dict.fromkeys(names, own)
            if file == "config.json":
                content["model_type"] = "own"
            (folder / file).write_text(json.dumps(content))


def zip_with(path: Path, name: str, link: str | None = None) -> Path:
    """An archive of two files, the second called ``name``; or a link to ``link`` of that name."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Toys.inter", "user_id:token\titem_id:token\ttimestamp:float\nu\ti\t1\n")
        member = zipfile.ZipInfo(name)
        if link is not None:
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, link or "out of the folder")
    return path
