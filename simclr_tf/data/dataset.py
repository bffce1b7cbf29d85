"""The images that a run uses."""

from __future__ import annotations

from simclr_tf.core import checks
from simclr_tf.core.errors import UserError
from simclr_tf.data.sources import groups
from simclr_tf.data.sources.open import open_source
from simclr_tf.data.sources.source import Source
from simclr_tf.data.sources.subset import Balanced, Subset, labelled_subset

SUBSET_FILE = "labelled_subset.txt"


class Data:
    """A data set, its splits, the labels in use, and the size that its images are resized to."""

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
        """Checks the settings. Nothing is read yet.

        Args:
          source: "embedded:NAME", "tfds:NAME" or "folder:PATH".
          train_split: the split to train on, in tensorflow-datasets' syntax ("train", "train[:90%]").
          eval_split: the split to evaluate on.
          image_size: side of the square images that networks see, in pixels.
          max_bad_images: number of unreadable images that are skipped before the run stops.
          label_fraction: share of each class whose labels training may use, in (0, 1], at least one image. Excludes
            labels_per_class and label_list.
          labels_per_class: number of labeled images of each class.
          label_list: text file that names the labeled images, one per line, by path, file name or id.
          subset_seed: seed that picks the images of a fraction or number. Larger subsets contain smaller ones.
          download: whether tensorflow-datasets may download a data set that is not prepared.
          bit_depth: bits per sample that 16-bit PNG files use, from 8 to 16, such as 12 for values from 0 to 4095;
            None for all 16. Files of other kinds ignore it.
          balance: "classes" repeats the images of smaller classes until training with labels sees all classes equally
            often; epochs grow accordingly. None shows each example once per epoch.
          group_by: regular expression on the names of a folder's files, or on their paths if it contains a "/".
            Pictures with the same match, or the same first parenthesized group, stay together when a split is drawn
            or sliced.
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
        """Opens the training split for training with labels: its labeled subset, or every labeled example.

        Raises:
          UserError: if nothing is labeled or the subset cannot be made.
        """
        source = self._labelled(data_dir)
        return Balanced(source) if self.balance else source

    def _labelled(self, data_dir: str | None) -> Source:
        source, fraction = self.open(self.train_split, data_dir), self.label_fraction
        if not source.class_names:
            raise UserError(
                f"{source.name} has no labels, and training with labels needs them; sort a folder's images into one "
                "subfolder per class, or choose a labeled data set"
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
        """Returns file name -> text that lists the examples of a labeled subset; empty for a whole source.

        The file can serve as another run's `label_list`.
        """
        source = source.source if isinstance(source, Balanced) else source
        return {SUBSET_FILE: "".join(f"{name}\n" for name in source.example_ids)} if isinstance(source, Subset) else {}

    def describe(self) -> dict:
        """Returns the constructor's arguments by name."""
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
        raise UserError(f"{said} exclude each other; set one of them and leave the others at None")
    checks.number("Data.label_fraction", fraction, above=0, most=1, optional=True, hint="; 0.1 is 10 %")
    checks.whole("Data.labels_per_class", per_class, optional=True)
    if list_file is not None and (not isinstance(list_file, str) or not list_file):
        raise UserError(f"Data.label_list is {list_file!r}; use the path of a text file")
