"""The language model is usable where RecBole is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import importlib, pkgutil, sys

class NoRecBole:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "recbole":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoRecBole())
try:
    import recbole
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("RecBole is not hidden, so that this test would show nothing.")

import torch
from transformers import AutoModelForCausalLM
import recbole_idiomoe.lm as lm

for module in pkgutil.walk_packages(lm.__path__, "recbole_idiomoe.lm."):
    if module.name != "recbole_idiomoe.lm.ffn_kernels":  # needs Triton, which only GPUs have
        importlib.import_module(module.name)

backbone, _ = lm.load_backbone("untrained", backbone_args=SIZES)
model = lm.IdiomoeForCausalLM.from_backbone(backbone, item_num=5).eval()
assert isinstance(model.backbone.model.layers[0].mlp, lm.TwoExpertFFN)
offset = model.config.item_token_offset
tokens = torch.tensor([[1, 2, offset + 1, 3, offset + 4]])
output = model(tokens, labels=tokens)
output.loss.backward()
model.save_pretrained(sys.argv[1])
again = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert torch.equal(again(tokens).logits, output.logits)

rooms = {name.split(".")[1] for name in sys.modules if name.startswith("recbole_idiomoe.")}
print(sorted(rooms))
"""
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def test_every_module_imports_and_a_model_runs_without_recbole(tmp_path: Path) -> None:
    script = f"SIZES = {SIZES}\n{SCRIPT}"
    command = [sys.executable, "-c", script, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "['base', 'lm']"
