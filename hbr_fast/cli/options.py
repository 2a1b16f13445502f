"""Options that several commands share, and how they are resolved."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from hbr_fast.members.execution import Execution

if TYPE_CHECKING:
    from hbr_fast.data.dataset import Dataset

# A name, or the path of a file or dataset; "~" is expanded as in paths.
NameOrPath = Annotated[
    str,
    PrimitiveConstructorSpec[str](
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: os.path.expanduser(words[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
RunPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
OutPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
DatasetPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
StudyPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY_DIR")]
# Shown by words of their own, where tyro would show {[STR [STR ...]]}.
Names = Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...")]
Pixels = Annotated[tuple[int, int] | None, tyro.conf.arg(metavar="HEIGHT WIDTH")]
Colour = Annotated[tuple[int, int, int] | None, tyro.conf.arg(metavar="RED GREEN BLUE")]
JSON = Annotated[str | None, tyro.conf.arg(metavar="JSON")]


@dataclass(frozen=True)
class RecipeOptions:
    """How each model is trained.

    Attributes
    ----------
    recipe : str, optional
        A name (quickstart, small-cnn, paper-resnet18, fast-resnet18, cifar-fast, cifar-quick) or a file: .toml, or
        .json such as a run's recipe.json; by default small-cnn, of a study its own.
    model : str, optional
        resnet18, cnn-W-W-..., vgg-W-W-..., whitened-W-W-..., whitened2-W-W-..., torchvision:NAME, timm:NAME or
        package.module:function.
    model_args : str, optional
        Keyword arguments of the model, as a JSON object.
    weights : str, optional
        A file of weights to start from (safetensors or pth).
    optimizer : str, optional
        sgd, adamw, muon, torch.optim:CLASS or package.module:function.
    optimizer_args : str, optional
        Keyword arguments of the optimizer.
    schedule : str, optional
        step, triangular, cosine, constant or package.module:function.
    schedule_args : str, optional
        Keyword arguments of the schedule.
    loss : str, optional
        cross-entropy, focal, balanced-softmax, logit-adjusted or package.module:function.
    loss_args : str, optional
        Keyword arguments of the loss, e.g. '{"class_weight": "balanced"}'.
    augment : str, optional
        A transform on the batch: torchvision:CLASS or package.module:function. What is built in: --set
        augment.color_jitter=0.4,0.4,0.4,0.1 and so on.
    augment_args : str, optional
        Keyword arguments of the transform.
    overrides : tuple of str
        Any fields of the recipe, e.g. --set epochs=3 lr=0.05 augment.cutout=8 clip_norm=1 ema=0.999 mixup=0.2.
    """

    recipe: NameOrPath | None = None
    model: str | None = None
    model_args: JSON = None
    weights: NameOrPath | None = None
    optimizer: str | None = None
    optimizer_args: JSON = None
    schedule: str | None = None
    schedule_args: JSON = None
    loss: str | None = None
    loss_args: JSON = None
    augment: str | None = None
    augment_args: JSON = None
    overrides: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="FIELD=VALUE ...")] = ()

    def changes(self) -> tuple[str, ...]:
        """All changed fields, each as "field=value".

        Raises
        ------
        ValueError
            If a field is changed by its own option and by --set.
        """
        own = {
            _FIELDS.get(field.name, field.name): getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("recipe", "overrides") and getattr(self, field.name) is not None
        }
        twice = [name for name in own if any(one.partition("=")[0] == name for one in self.overrides)]
        if twice:
            options = {field: option for option, field in _FIELDS.items()}
            words = ", ".join(f"--{options.get(name, name).replace('_', '-')} and --set {name}=" for name in twice)
            raise ValueError(f"{words}: give one of the two")
        return (*(f"{name}={value}" for name, value in own.items()), *self.overrides)


# Fields of a recipe whose options have another name.
_FIELDS = {"augment": "augment.transform", "augment_args": "augment.transform_args"}
# The fields are options without a prefix, in groups of their own.
RecipeFlags = Annotated[RecipeOptions, tyro.conf.OmitArgPrefixes]
DEFAULT_RECIPE = RecipeOptions()
ExecutionFlags = Annotated[Execution, tyro.conf.OmitArgPrefixes]
DEFAULT_EXECUTION = Execution(members_at_once="auto")
LISTS = (  # options that take any number of values
    "--set", "--formats", "--alphas", "--rates", "--oversamplers", "--merge", "--drop", "--rename", "--more-splits",
    "--classes",
)  # fmt: skip


def require_lists(words: Sequence[str]) -> None:
    """Refuse a repeated list option, whose first values would be lost silently, and one without values, which is none.

    Of other options the last counts.
    """
    options = [word.partition("=")[0].replace("_", "-") for word in words]  # both spellings are taken
    for option in LISTS:
        places = [place for place, word in enumerate(options) if word == option]
        if len(places) > 1:
            raise ValueError(f"{option} is given twice: give it once, with all of its values after it")
        for place in places:
            _, equals, value = words[place].partition("=")
            if not equals:
                value = words[place + 1] if place + 1 < len(words) else ""
            if not value or (value.startswith("--") and value != "--help"):
                raise ValueError(f"{option} has no value: give it at least one, or leave it out")


def words_of_options() -> ConstructorRegistry:
    """How the words of options are read and shown.

    Every option of type `Path` expands "~", which a shell leaves alone in `--root=~/data`; as in a shell, the name of
    an unknown user stays as it is. The default of an option that need not be given is shown as unset, and Python's None
    is no word.
    """
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def not_given(about: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[None] | None:
        if about.type is not type(None):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="",
            instance_from_str=_refuse,
            is_instance=lambda value: value is None,
            str_from_instance=lambda value: ["unset"],
            choices=(),
        )

    @registry.primitive_rule
    def path(about: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
        if about.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: Path(os.path.expanduser(words[0])),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _refuse(words: list[str]) -> None:
    raise ValueError(f"{words[0]!r} is no value")


def whole_lines(command: Callable[..., None]) -> Callable[..., None]:
    """The same command with the description of each argument in one line: the help breaks where a docstring does."""
    command.__doc__ = re.sub(r"(?<=\S)\n {12}(?=\S)", " ", command.__doc__ or "")
    return command


def dataset_of(run: Path, about: dict[str, dict[str, str]]) -> Dataset:
    """The dataset that a run was trained on, at its recorded path and unchanged."""
    from hbr_fast.data.dataset import open_recorded

    opened = open_recorded(run, about["dataset"]["path"])
    if opened.fingerprint != about["dataset"]["fingerprint"]:
        raise ValueError(f"{opened.path} is not the dataset that {run} was trained on: it has changed since")
    return opened
