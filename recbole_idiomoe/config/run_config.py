"""One run's configuration: RecBole's ``Config`` with typed values that are checked.

RecBole's own class reads ``sys.argv``, passes values through ``eval``, accepts any key and ignores
``use_gpu``. :class:`RunConfig` takes only its arguments, and refuses misspelt keys.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.utils import InputType

from recbole_idiomoe import compat
from recbole_idiomoe.base import distributed, yaml_files
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.base.options import Options
from recbole_idiomoe.config import checks, evaluation, forms, layers
from recbole_idiomoe.config.layers import overlay
from recbole_idiomoe.config.options import listed_defaults, listed_options
from recbole_idiomoe.models import registry
from recbole_idiomoe.models.language.options import LanguageModelOptions

compat.apply()  # every use of RecBole starts with a configuration

COMMAND = {"config_files", "dataset", "model", "result_file", "resume"}
COMMAND |= {"variants", "baseline", "seeds", "search_space"}
"""Entries of a settings file that say what is run, not how."""

_GPU = {"gpu_id", "use_gpu"}
_MACHINE = _GPU | {"show_progress"}
"""Settings that depend on the machine or the terminal."""

_COMPUTED = {"MODEL_TYPE", "MODEL_INPUT_TYPE", "dataset_label", "device", "dumps", "eval_type"}
_COMPUTED |= {"local_rank", "recbole_name", "single_spec", "valid_metric_bigger"}
_COMPUTED |= {"test_neg_sample_args", "valid_neg_sample_args"}
"""Entries that follow from the settings, the model and the machine."""

# RecBole reads these, but none of its YAML files gives them a value.
_UNDECLARED = {"beta", "eta", "ft_ratio", "mask_ratio", "reg_weight", "tail_ratio"}

# RecBole's default, in its own names of columns and without the time, which histories need.
_RECBOLE_COLUMNS = {"inter": ["user_id", "item_id"]}

# These learn from labelled pairs; RecBole marks them POINTWISE, like models that do not.
_LABEL_MODELS = ("DIEN", "DIN")


class RunConfig(Config):  # type: ignore[misc]
    """RecBole's configuration of ``model`` on ``dataset``, checked when it is built.

    Values come from these sources, and a later one replaces an earlier one: RecBole's YAML files;
    the defaults of all options; ``properties/overall.yaml``; the recipes of the models that the
    model derives from, and its own; our YAML files of the data set and of model and data set; the
    settings in the folder ``tuned``; ``config_files``; ``settings``; ``own``; and the model's
    ``forced_settings``. Only ``eval_args`` are merged: RecBole would replace a missing split by a
    random one.

    Args:
        model: a name that :func:`recbole_idiomoe.models.registry.get_model` knows.
        dataset: a data set's name; :func:`recbole_idiomoe.data.location.locate` finds its files.
        config_files: YAML files, or JSON result files of this package.
        settings: typed values by name.
        beside: other models that the same command runs; settings that only they know are left out.
        own: settings that are meant for this model alone.

    Attributes:
        data_root: the folder that holds a folder per data set.
        known: the settings that a run of this model may be given.
        read_by_model: the model's own options, and the settings that RecBole's code of it reads.
        tuned_settings: the settings that ``tuned`` gave.

    Raises:
        SettingError: an unknown model or key, an invalid value, or a GPU that is asked for and
            does not exist.
    """

    parameters: dict[str, list[str]]
    data_root: Path
    known: set[str]
    read_by_model: set[str]
    tuned_settings: dict[str, Any]

    def __init__(
        self,
        model: str,
        dataset: str,
        config_files: Sequence[str | Path] = (),
        settings: Mapping[str, Any] | None = None,
        beside: Collection[str] = (),
        own: Mapping[str, Any] | None = None,
    ) -> None:
        self.beside, self.own = beside, dict(own or {})
        self.tuned_settings = {}
        super().__init__(
            model, dataset, list(config_files), overlay(dict(settings or {}), self.own)
        )

    @property
    def dataset_class(self) -> type[Any]:
        """The subclass of RecBole's ``Dataset`` that the model is trained on.

        Raises:
            SettingError: the model needs a dataset of its own, which reads no ready-made split.
        """
        is_ready_made = self["benchmark_filename"] is not None
        get = registry.get_ready_made_class if is_ready_made else registry.get_dataset_class
        return get(self.model)

    @property
    def settings(self) -> Options:
        """The model's own options, of the class that the registry names."""
        return registry.get_options(self.model).from_mapping(self.final_config_dict)

    def complete_settings(self) -> dict[str, Any]:
        """Every setting in force, for JSON; as ``settings`` they give the same run.

        Computed settings and ``tuned`` are left out, and so are a GPU and progress bars that the
        user did not choose, because the run may be repeated on another machine.
        """
        final = self.final_config_dict
        left_out = _COMPUTED | {"tuned"} | (_MACHINE - self.external_config_dict.keys())
        complete = {key: _plain(final[key]) for key in sorted(self.known - left_out & final.keys())}
        complete["data_path"] = str(self.data_root)
        if final["train_neg_sample_args"]["distribution"] == "none":
            complete["train_neg_sample_args"] = None
        return complete

    def of_other_model(self, model: str, own: Mapping[str, Any]) -> RunConfig:
        """The configuration of another model on the same data, as the first stage of this one.

        Settings in the recipe of either model have the other model's own values.

        Args:
            model: the other model's name.
            own: settings for it that replace all others.
        """
        recipes = layers.own_settings(model) | layers.own_settings(self.model)
        shared = {k: v for k, v in self.complete_settings().items() if k not in recipes}
        label = self["dataset_label"]
        return RunConfig(model, label, settings=shared, beside=[self.model], own=own)

    # The methods below override steps of RecBole's Config.__init__, in the order of its calls.

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole appends to these lists, which every configuration in the process shares.
        self.parameters = {name: list(keys) for name, keys in self.parameters.items()}
        self.parameters["IDIOMoE"] = list(listed_defaults())

    def _build_yaml_loader(self) -> type[yaml_files.Loader]:
        return yaml_files.Loader

    def _load_config_files(self, file_list: Sequence[str | Path]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for file in file_list:
            overlay(values, yaml_files.read_settings(file))
        return values

    def _load_variable_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return copy.deepcopy(config_dict)

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}

    def _merge_external_config_dict(self) -> None:
        external = overlay(dict(self.file_config_dict), self.variable_config_dict)
        for key in forms.INTERVALS:
            # YAML reads [5,20] as a list; RecBole expects the text.
            if isinstance(external.get(key), list):
                external[key] = f"[{','.join(map(str, external[key]))}]"
        left_out = COMMAND - self.own.keys()
        self.external_config_dict = {k: v for k, v in external.items() if k not in left_out}

    def _get_model_and_dataset(self, model: str, dataset: str) -> tuple[str, type[Any], str]:
        checks.check_dataset_name(dataset)
        return model, registry.get_model(model), dataset

    def _load_internal_config_dict(self, model: str, model_class: type[Any], dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        internal, external = self.internal_config_dict, self.external_config_dict
        sampled = internal["train_neg_sample_args"]
        for base in registry.family(model)[:-1]:  # RecBole reads only the model's own file
            overlay(internal, layers.recbole_defaults(base))
        overlay(internal, listed_defaults())
        overlay(internal, registry.get_options(model).defaults())
        internal["show_progress"] = sys.stderr.isatty()  # in a file each update is a line
        for _, layer in layers.own_layers(model, dataset):
            overlay(internal, layer)
        internal.pop("search_space", None)
        if isinstance(external.get("tuned"), str):
            tuned = yaml_files.tuned_settings(external["tuned"], model, dataset)
            self.tuned_settings = {k: v for k, v in tuned.items() if k not in external}
            self.external_config_dict = overlay(tuned, external)
        loss = self.external_config_dict.get("loss_type", internal.get("loss_type"))
        if _learns_from_negatives(model_class, loss) and not internal["train_neg_sample_args"]:
            internal["train_neg_sample_args"] = sampled

    def _get_final_config_dict(self) -> dict[str, Any]:
        internal, external = self.internal_config_dict, self.external_config_dict
        declared = {key for keys in self.parameters.values() for key in keys}
        self.read_by_model = layers.keys_read_by(self.model)
        everywhere = internal.keys() | declared | _UNDECLARED
        self.known = (everywhere | self.read_by_model) - (_COMPUTED - {"recbole_name"}) | {"dumps"}
        theirs = {key for model in self.beside for key in layers.keys_of(model)}
        theirs -= self.known | self.own.keys()
        external = {k: v for k, v in external.items() if k not in theirs}
        self.external_config_dict = external
        checks.check_names(external, self.known, self.model)
        checks.check_values(external, internal)
        final = overlay(copy.deepcopy(internal), external)
        final.update(self._forced_settings(external))
        forms.check_forms(final)
        forms.check_columns(final)
        forms.check_transform(final, internal.get("transform"))
        needs_drawn = _learns_from_negatives(self.model_class, final.get("loss_type"))
        forms.check_negatives(final, needs_drawn)
        if "load_col" not in external and final["load_col"] == _RECBOLE_COLUMNS:
            final["load_col"] = _needed_columns(final)
        checks.check_trackers(final)
        evaluation.check_eval_args(final)
        evaluation.check_metrics(final)
        self._check_options(final)
        evaluation.check_cold_start(final)
        evaluation.check_mix(final)
        return final

    def _check_options(self, final: Mapping[str, Any]) -> None:
        """Check the model's options, and options that other models of the command may read."""
        own = registry.get_options(self.model)
        own.from_mapping(final)
        others = {name: final[name] for name in final.keys() - own.defaults().keys()}
        for kind in listed_options():
            kind.checked(others)
        if not issubclass(own, LanguageModelOptions):
            LanguageModelOptions.from_mapping(others)

    def _forced_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that define the model; other values are allowed for other models only."""
        forced: dict[str, Any] = getattr(self.model_class, "forced_settings", {})
        for name, value in forced.items():
            meant = name in self.own or set(self.beside) <= {self.model}
            if meant and given.get(name, value) != value:
                raise SettingError(
                    f"{name}={given[name]!r}: {self.model} is made with {name}={value!r}; leave it "
                    "out."
                )
        return forced

    def _set_default_parameters(self) -> None:
        self.data_root = Path(os.path.expanduser(self.final_config_dict["data_path"]))
        self.final_config_dict["dataset_label"] = self.dataset
        with _recbole_refusals():
            super()._set_default_parameters()

    def _init_device(self) -> None:
        """Choose the device; RecBole ignores ``use_gpu`` and rewrites CUDA_VISIBLE_DEVICES.

        If a launcher started several processes, each takes the GPU of its own local rank.
        """
        final, external = self.final_config_dict, self.external_config_dict
        index = str(final["gpu_id"])
        wanted = final["use_gpu"] and index != ""
        asked = wanted and bool(_GPU & external.keys())
        let_gpu_memory_grow()
        available = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if asked and not available:
            raise SettingError(
                "a GPU is asked for (use_gpu or gpu_id) but torch sees none; leave both out, or "
                "set use_gpu to False, to run on the CPU."
            )
        device = torch.device("cuda" if wanted and available else "cpu")
        if device.type == "cuda" and distributed.is_launched():
            rank = distributed.local_rank()
            if rank >= available:
                raise SettingError(
                    f"process {rank} of this machine has no GPU, torch sees {available}; start as "
                    "many processes as there are GPUs."
                )
            device = torch.device("cuda", rank)
        elif wanted and "gpu_id" in external:
            if not index.isdigit() or int(index) >= available:
                raise SettingError(
                    f"gpu_id={index} must be one number below {available}, the GPUs torch sees."
                )
            device = torch.device("cuda", int(index))
        if device.index is not None:
            torch.cuda.set_device(device)
        is_gpu = device.type == "cuda"
        final.update(gpu_id=index, use_gpu=is_gpu, device=device, single_spec=True, local_rank=0)

    def _set_train_neg_sample_args(self) -> None:
        with _recbole_refusals():
            super()._set_train_neg_sample_args()

    def _set_eval_neg_sample_args(self, phase: str) -> None:
        with _recbole_refusals():
            super()._set_eval_neg_sample_args(phase)


def _needed_columns(final: Mapping[str, Any]) -> dict[str, list[str]]:
    """The columns to load of a data set whose settings name none."""
    columns = [final[name] for name in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
    if final.get("benchmark_filename"):
        columns.append(final["ITEM_ID_FIELD"] + final["LIST_SUFFIX"])
    return {"inter": columns}


def _learns_from_negatives(model_class: type[Any], loss_type: str | None) -> bool:
    """Whether training needs sampled items: a pairwise loss, or labels to predict."""
    pairwise = getattr(model_class, "input_type", None) is InputType.PAIRWISE
    return pairwise or loss_type == "BPR" or model_class.__name__ in _LABEL_MODELS


def let_gpu_memory_grow() -> None:
    """Have torch extend its blocks of GPU memory, unless the user configured the allocator.

    Batches differ in length, so that blocks of a fixed size can rarely be used again. Without
    effect once the GPU is in use.
    """
    if sys.platform == "linux" and "PYTORCH_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def _plain(value: Any) -> Any:
    """``value`` in types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


@contextmanager
def _recbole_refusals() -> Iterator[None]:
    """Turn RecBole's errors about values into one-line :class:`SettingError`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise SettingError(" ".join(str(error).split())) from error
