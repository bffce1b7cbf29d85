"""Which images a run uses."""

from __future__ import annotations

from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.data.sources import groups
from simclr_tf.data.sources.open import open_source
from simclr_tf.data.sources.source import Source
from simclr_tf.data.sources.subset import Balanced, Subset, labelled_subset

SUBSET_FILE = "labelled_subset.txt"


class Data:
    """A data set, its splits, which of its labels are used, and the size that its images are brought to."""

    def __init__(
        self,
        source: str = "embedded:cifar10_mini",
        train_split: str = "train",
        eval_split: str = "test",
        image_size: int = 32,
        max_bad_images: int = 100,
        label_fraction: float | None = None,
        labels_per_class: int | None = None,
        label_list: str | None = None,
        subset_seed: int = 0,
        download: bool = False,
        bit_depth: int | None = None,
        balance: str | None = None,
        group_by: str | None = None,
    ):
        """Names the data; nothing is read yet.

        Args:
          source: "embedded:NAME", "tfds:NAME" or "folder:PATH".
          train_split: what to train on, in tensorflow-datasets' syntax ("train", "train[:90%]").
          eval_split: what to evaluate on.
          image_size: of the square images that networks see, in pixels.
          max_bad_images: how many unreadable images are skipped before the run stops.
          label_fraction: share of each class whose labels training with labels may use, in (0, 1], one image at least;
            or
          labels_per_class: how many labelled images of each class; or
          label_list: a text file that names the labelled images, one a line: files' paths or names, or ids.
          subset_seed: decides which images a fraction or number takes. Smaller subsets lie in larger ones.
          download: whether tensorflow-datasets may download what is not prepared.
          bit_depth: how many bits of the samples of 16-bit PNG files are in use, from 8 to 16, such as 12 for values
            from 0 to 4095; None for all 16. Other files are read as they say.
          balance: "classes" shows all classes equally often in training with labels, as often as the largest one has
            examples; epochs are longer by that. None shows each example once an epoch.
          group_by: a regular expression on the names of a folder's files (on their paths, if it has a "/"). Pictures
            for which it finds the same, in its first pair of parentheses if it has one, stay together where a split is
            drawn by lot or sliced.
        """
        checks.whole("Data.image_size", image_size, least=8, hint=", in pixels")
        checks.whole("Data.max_bad_images", max_bad_images, least=0)
        checks.whole("Data.subset_seed", subset_seed, least=None)
        checks.switch("Data.download", download)
        checks.whole("Data.bit_depth", bit_depth, least=8, most=16, optional=True, hint=" for all 16 bits")
        if balance not in (None, "classes"):
            raise UserError(f"Data.balance is {balance!r}; use 'classes', or None to show each example once an epoch")
        groups.check(group_by)
        self.balance, self.group_by = balance, group_by
        _check_subset(label_fraction, labels_per_class, label_list)
        self.source, self.train_split, self.eval_split = source, train_split, eval_split
        self.image_size, self.max_bad_images = image_size, max_bad_images
        self.label_fraction, self.labels_per_class, self.label_list = label_fraction, labels_per_class, label_list
        self.subset_seed, self.download, self.bit_depth = subset_seed, download, bit_depth

    def open(self, split: str, data_dir: str | None = None) -> Source:
        """Opens a split; see `simclr_tf.data.sources.open.open_source`."""
        return open_source(
            self.source,
            split,
            data_dir,
            download=self.download,
            bit_depth=self.bit_depth,
            group_by=self.group_by,
        )

    def open_labelled(self, data_dir: str | None = None) -> Source:
        """Opens the training split for training with labels: its labelled subset, or where none is asked for all that
        have a label.

        Raises:
          UserError: where nothing has a label, or a subset cannot be had.
        """
        source = self._labelled(data_dir)
        return Balanced(source) if self.balance else source

    def _labelled(self, data_dir: str | None) -> Source:
        source, fraction = self.open(self.train_split, data_dir), self.label_fraction
        if not source.class_names:
            raise UserError(
                f"{source.name} has no labels, and training with labels needs them; sort a folder's images into one "
                "sub-folder a class, or choose a labelled data set"
            )
        if fraction is None and self.labels_per_class is None and self.label_list is None:
            if not source.partly_labelled:
                return source
            fraction = 1.0
        return labelled_subset(
            source,
            fraction=fraction,
            per_class=self.labels_per_class,
            list_file=self.label_list,
            seed=self.subset_seed,
        )

    def subset_files(self, source: Source) -> dict[str, str]:
        """Returns file name -> text that names the examples of a labelled subset, one a line; nothing for a whole
        source.

        The file serves as `label_list`.
        """
        source = source.source if isinstance(source, Balanced) else source
        return {SUBSET_FILE: "".join(f"{name}\n" for name in source.example_ids)} if isinstance(source, Subset) else {}

    def describe(self) -> dict:
        """Returns the constructor's values."""
        return {
            "source": self.source,
            "train_split": self.train_split,
            "eval_split": self.eval_split,
            "image_size": self.image_size,
            "max_bad_images": self.max_bad_images,
            "label_fraction": self.label_fraction,
            "labels_per_class": self.labels_per_class,
            "label_list": self.label_list,
            "subset_seed": self.subset_seed,
            "download": self.download,
            "bit_depth": self.bit_depth,
            "balance": self.balance,
            "group_by": self.group_by,
        }


def _check_subset(fraction: float | None, per_class: int | None, list_file: str | None) -> None:
    given = {
        name: value
        for name, value in (
            ("label_fraction", fraction),
            ("labels_per_class", per_class),
            ("label_list", list_file),
        )
        if value is not None
    }
    if len(given) > 1:
        said = " and ".join(f"Data.{name} = {value!r}" for name, value in given.items())
        raise UserError(f"{said} exclude each other; give one, and None to the other")
    checks.number("Data.label_fraction", fraction, above=0, most=1, optional=True, hint="; 0.1 is 10 %")
    checks.whole("Data.labels_per_class", per_class, optional=True)
    if list_file is not None and (not isinstance(list_file, str) or not list_file):
        raise UserError(f"Data.label_list is {list_file!r}; use the path of a text file")
