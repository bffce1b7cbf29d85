"""Gin files: what wins over what, what is told of mistakes, and that what is saved makes the same run again."""

from __future__ import annotations

import inspect
import os

import gin
import pytest

from simclr_tf import configurables
from simclr_tf.core.errors import UsageError, UserError
from simclr_tf.distribute.cluster import make_strategy
from simclr_tf.settings import gin_config, gin_files, parameter_types
from simclr_tf.settings.run_context import RunContext

SMOKE = ["embedded_small", "smoke"]


def value(name: str):
    """What gin holds, macros followed."""
    found = gin.query_parameter(name)
    while repr(found).startswith("%"):
        found = gin.query_parameter(repr(found))
    return found


def construct(mode: str, params: list[str] = (), files: list[str] = SMOKE, workdir: str = "unused") -> None:
    """Parses, and builds all that training needs, without a step."""
    gin_config.parse(mode, files, params)
    configurables.configured("train")().run(
        RunContext(workdir=workdir, strategy=make_strategy("one_device"), dry_run=True)
    )


def written(tmp_path, text: str, name: str = "mine.gin") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_later_bindings_win(tmp_path):
    mine = written(tmp_path, "include 'recipes/pretrain/cifar10_r18.gin'\nEPOCHS = 7\nResNet.width = 2\n")
    gin_config.parse("pretrain", [mine], ["EPOCHS = 9"], inherited=["ResNet.width = 4", "Data.image_size = 64"])
    assert value("train.epochs") == 9  # The command line over the file.
    assert value("ResNet.width") == 2  # The file over what is inherited.
    assert value("Data.image_size") == 32  # What the file includes, too.
    assert value("train.global_batch_size") == 512
    assert value("ProjectionHead.num_layers") == 3  # The stage's own file.


def test_default_recipe_only_without_files():
    gin_config.parse("pretrain")
    assert value("Data.source") == "embedded:cifar10_mini"
    gin_config.parse("pretrain", inherited=["Data.source = 'folder:x'"])
    assert value("Data.source") == "folder:x"
    with pytest.raises(UserError, match="BATCH_SIZE, EPOCHS, LEARNING_RATE have no value .*pretrain.gin:3"):
        gin_config.parse("pretrain", ["models/r50"])


def test_parsing_starts_anew():
    gin_config.parse("pretrain", [], ["ResNet.width = 2"])
    gin_config.parse("pretrain", ["recipes/pretrain/cifar10_r18"])
    assert value("ResNet.width") == 1


@pytest.mark.parametrize(
    "name",
    [
        "recipes/pretrain/cifar10_r18",
        "recipes/pretrain/cifar10_r18.gin",
        "gin/recipes/pretrain/cifar10_r18.gin",
        "cifar10_r18",
    ],
)
def test_names_of_shipped_files(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gin_config.parse("pretrain", [name])
    assert value("train.epochs") == 1000


def test_own_files_first_and_includes_from_beside_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    written(tmp_path, "include 'recipes/pretrain/cifar10_r18.gin'\ninclude 'more.gin'\nEPOCHS = 5\n", "recipes/own.gin")
    written(tmp_path, "LEARNING_RATE = 0.5\n", "recipes/more.gin")
    gin_config.parse("pretrain", ["recipes/own"])
    assert (value("train.epochs"), value("WarmupCosine.base_learning_rate")) == (5, 0.5)


def test_shipped_files_do_not_include_what_lies_about(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    written(tmp_path, "ResNet.depth = 200\n", "models/r18_cifar.gin")
    gin_config.parse("pretrain", ["cifar10_r18"])
    assert value("ResNet.depth") == 18


PARAMS = [
    ("EPOCHS", "sets nothing; write NAME=VALUE"),
    ("EPOCHS=", "EPOCHS gets no value"),
    ("Data.source=folder:/x", "folder:/x is not a value; put text in quotes: --gin_param=\"Data.source='folder:/x'\""),
    ("ResNet.stem=cifar", "put text in quotes: --gin_param=\"ResNet.stem='cifar'\""),
    ("ResNet.stem='cifar", "put text in quotes: --gin_param=\"ResNet.stem='cifar'\""),
    ("ResNet.depht=18", "ResNet has no parameter 'depht'; did you mean ResNet.depth?"),
    ("Resnet.depth=18", "Resnet.depth is unknown; did you mean ResNet.depth?"),
    ("Cosine.base_learning_rate=1", "did you mean WarmupCosine.base_learning_rate?"),
    ("WarmupCosine.learning_rate=1", "did you mean WarmupCosine.base_learning_rate?"),
    ("ResNet.base_learning_rate=1", "did you mean WarmupCosine.base_learning_rate?"),
    ("ResNet.qqq=1", "it has depth, width, sk_ratio, se_ratio, stem"),
    ("Xyzzy.qqq=1", "choose one of Data, Augment"),
    ("ProjectionHead.input_dim=64", "ProjectionHead has no parameter 'input_dim'"),
    ("train.context=3", "train has no parameter 'context'"),
    ("train.make_optimizer=@Lras", "@Lras is unknown; did you mean Lars?"),
    ("train.make_optimizer=@Lars()", "is @Lars(); it takes @Lars or @Sgd"),
    ("train.make_optimizer=@ResNet", "is @ResNet; it takes @Lars or @Sgd"),
    ("train.make_optimizer='sgd'", "is 'sgd'; it takes @Lars or @Sgd"),
    ("Pretrain.data=@Data", "is @Data; it takes @Data() (with brackets)"),
    ("ResNet.depth='18'", "ResNet.depth is '18'; it takes a whole number"),
    ("ResNet.depth=18.5", "ResNet.depth is 18.5; it takes a whole number"),
    ("ResNet.depth=True", "ResNet.depth is True; it takes a whole number"),
    ("train.jit_compile=1", "train.jit_compile is 1; it takes True or False"),
    ("Data.source=None", "Data.source is None; it takes a string in quotes"),
    ("train.epochs='ten'", "train.epochs is 'ten'; it takes a number or None"),
    ("EPOCHS='ten'", "--gin_param=\"EPOCHS='ten'\": train.epochs is 'ten'; it takes a number or None"),
    ("EPOCHS=1e999", "EPOCHS is inf; use a finite number"),
    ("EPOCHS=%EPOCS", "%EPOCS has no value; did you mean %EPOCHS?"),
    ("EPOCHS=%EPOCHS", "the value of EPOCHS leads back to EPOCHS"),
    ("EPOCHS=%gin.REQUIRED", "EPOCHS has no value"),
    ("EPOCHS=10 20", "--gin_param='EPOCHS=10 20'"),
    ("macro.value=3", "macro.value is unknown"),
]


@pytest.mark.parametrize("param, told", PARAMS, ids=[param for param, _ in PARAMS])
def test_mistakes_in_parameters(param, told):
    with pytest.raises(UserError) as error:
        gin_config.parse("pretrain", [], [param])
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, UsageError) == ("=" not in param)


FILES = [
    ("ResNet.depth = 18\n\nResNet.width 2\n", "mine.gin:3: ", "write NAME = VALUE"),
    ("ResNet.depth =\n", "mine.gin:1: ResNet.depth gets no value", ""),
    ("ResNet:\n  depth = 18\n  widht = 2\n", "mine.gin:3: ResNet has no parameter 'widht'", "mean ResNet.width?"),
    ("Resnet:\n  depth = 18\n", "mine.gin:1: Resnet is unknown; did you mean ResNet?", ""),
    ("import os\n", "mine.gin:1 imports os", ""),
    ("\ninclude 'models/r51.gin'\n", "mine.gin:2 includes 'models/r51.gin', which names no file", "models/r50"),
    ("include 'mine.gin'\n", "include each other in a circle", "mine.gin -> "),
    ("x = (1,\n", "mine.gin:", "'x = (1,'"),
    ("ResNet.stem = 'cifar\n", "mine.gin:1: 'cifar is not a value", "put text in quotes: ResNet.stem='cifar'"),
    ("\n\ntrain.make_optimizer = @Lras\n", "mine.gin:3: @Lras is unknown; did you mean Lars?", ""),
    ("a b/c.d = 1\n", "mine.gin:1: ", ""),
    ("ResNet.depth = 18 @\n", "mine.gin:1: ", ""),
]


@pytest.mark.parametrize("text, told, more", FILES, ids=[repr(text) for text, *_ in FILES])
def test_mistakes_in_files(text, told, more, tmp_path):
    path = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        gin_config.parse("pretrain", ["embedded_small", path])
    assert told in str(error.value)
    assert more in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "binary.gin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary.gin cannot be read"):
        gin_config.parse("pretrain", [str(path)])
    with pytest.raises(UserError, match="names no file"):
        gin_config.parse("pretrain", [str(tmp_path)])
    with pytest.raises(UserError, match="did you mean recipes/pretrain/imagenet_v1"):
        gin_config.parse("pretrain", ["recipes/pretrain/imagnet_v1"])


def test_types_agree_with_defaults():
    """Otherwise a value that the constructor itself starts from would be refused."""
    for name, target in configurables.CONFIGURABLES.items():
        function = target.__init__ if inspect.isclass(target) else target
        for parameter in inspect.signature(function).parameters.values():
            plain = parameter.default is not parameter.empty and not inspect.isclass(parameter.default)
            if plain and parameter.name in parameter_types.parameters(target):
                told = parameter_types.mismatch(parameter.annotation, parameter.default, configurables.CONFIGURABLES)
                assert told is None, f"{name}.{parameter.name} = {parameter.default!r}: {told}"


UNREAD = [
    ("EPOCH = 3", "EPOCH (--gin_param='EPOCH = 3'); did you mean EPOCHS?"),
    ("teacher/ResNet.depth = 34", "nothing here reads teacher/ResNet.depth"),
    ("AdamW.weight_decay = 0.1", "nothing here reads AdamW.weight_decay"),
    ("knn.temperature = 0.5", "nothing here reads knn.temperature"),
    ("Pretrain.precision = 'float64'", "nothing here reads Pretrain.precision"),
]


def test_what_nothing_reads():
    construct("pretrain", [param for param, _ in UNREAD] + ["ResNet.width = 0.125"])
    with pytest.raises(UserError) as error:
        gin_config.check_read()
    assert "\n" not in str(error.value)
    for param, _ in UNREAD:
        assert f"{param.split(' =')[0]} (--gin_param={param!r})" in str(error.value)
    assert "ResNet.width" not in str(error.value)
    assert str(error.value).endswith("did you mean EPOCHS?")


def test_shipped_leftovers_are_no_mistake_and_not_saved():
    """Who takes another optimizer than the recipe's need not unset the recipe's settings."""
    construct("pretrain", ["train.make_optimizer = @AdamW"])
    gin_config.check_read()
    assert "AdamW" in gin_config.config_text()
    assert "Sgd" not in gin_config.config_text()


def test_what_is_switched_off_may_keep_its_settings(tmp_path):
    own = written(tmp_path, "Pretrain.make_memory = @Memory\nMemory.queue_size = 64\n")
    construct("pretrain", ["Pretrain.make_memory = None"], files=[*SMOKE, own])
    gin_config.check_read()
    construct("pretrain", ["Pretrain.make_memory = None", "Memory.decay = 0.9"], files=[*SMOKE, own])
    with pytest.raises(UserError, match="nothing here reads Memory.decay"):
        gin_config.check_read()
    construct("pretrain", ["smal/ResNet.depth = 34", "Pretrain.make_encoder = @small/ResNet"])
    with pytest.raises(UserError, match="nothing here reads smal/ResNet.depth"):
        gin_config.check_read()


def test_scopes():
    own = ["small/ResNet.depth = 34", "Pretrain.make_encoder = @small/ResNet"]
    construct("pretrain", [*own, "ResNet.se_ratio = 0.0625"])
    gin_config.check_read()
    text = gin_config.config_text()
    assert "small/ResNet.depth = 34" in text
    assert "\nResNet.depth" not in text  # Read by nothing, since the scope has its own.
    assert "\nResNet.se_ratio = 0.0625" in text


def test_saved_configuration_says_the_same(tmp_path):
    construct("pretrain", ["Augment.rotation_degrees = (90.0, 180.0)", "train.seed = 0"])
    gin_config.check_read()
    gin_config.save(str(tmp_path), is_new=True)
    gin_config.save_operative(str(tmp_path))
    text = gin_config.config_text()
    used = gin_config.values()
    for name in (gin_config.CONFIG, gin_config.OPERATIVE):
        construct("pretrain", files=[os.path.join(tmp_path, name)])
        gin_config.check_read()
        assert gin_config.values() == used
        if name == gin_config.CONFIG:
            assert gin_config.config_text() == text
    assert "train.seed = 0" in (tmp_path / gin_config.OPERATIVE).read_text()  # A default, made visible.


def test_errors_of_constructors_stay_one_line():
    """gin lengthens what is raised inside its calls; the original has the one line."""
    gin_config.parse("pretrain", SMOKE, ["ResNet.depth = 17"])
    with pytest.raises(UserError) as error:
        configurables.configured("train")().run(
            RunContext(workdir="unused", strategy=make_strategy("one_device"), dry_run=True)
        )
    assert "\n" not in str(error.value.original)
    assert str(error.value.original).startswith("ResNet.depth is 17")


def test_shipped_folder_has_no_init():
    """An `__init__.py` there would shadow the gin-config package in a clone."""
    for folder, _, names in os.walk(gin_files.shipped_folder()):
        assert "__init__.py" not in names, folder
    assert "config_str" in dir(gin)
