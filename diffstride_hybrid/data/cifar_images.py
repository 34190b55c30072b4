"""CIFAR-10 and CIFAR-100 from public copies that hold the images as PNG files in class folders."""

from __future__ import annotations

import concurrent.futures
import pathlib

import numpy as np

from diffstride_hybrid.data.image_files import images_in, read_header, read_image

CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The classes of CIFAR-10 in the order of their labels."""

CIFAR_100 = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
"""The classes of CIFAR-100 by their superclass. The labels follow the alphabet. https://www.cs.toronto.edu/~kriz/cifar.html
"""

SPLITS = ("train", "test")

_SIZE = 32


def class_names(name: str) -> list[str]:
    """Names of the classes in the order of their labels.

    Args:
        name: 'cifar10' or 'cifar100'.

    Example:
        >>> class_names("cifar10")[:3], class_names("cifar100")[:3]
        (['airplane', 'automobile', 'bird'], ['apple', 'aquarium_fish', 'baby'])
    """
    if name == "cifar10":
        return list(CIFAR_10)
    return sorted(fine for classes in CIFAR_100.values() for fine in classes.split())


def superclass_of(class_name: str) -> int:
    """The label of the superclass of a class of CIFAR-100: superclasses follow the alphabet too.

    Args:
        class_name: such as 'bee'.

    Example:
        >>> superclass_of("bee")
        7
    """
    return next(label for label, name in enumerate(sorted(CIFAR_100)) if class_name in CIFAR_100[name].split())


def has_images(folder: pathlib.Path, name: str) -> bool:
    """Tells whether a folder holds `train/CLASS` and `test/CLASS` for each class of a CIFAR set.

    Args:
        folder: that may hold the images.
        name: 'cifar10' or 'cifar100'.
    """
    return all((folder / split / class_name).is_dir() for split in SPLITS for class_name in class_names(name))


def read_split(folder: pathlib.Path, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads all PNG files of a split, in a fixed random order. That of the official files is not known.

    Args:
        folder: that holds the images, as `has_images` tells.
        name: 'cifar10' or 'cifar100'.
        split: 'train' or 'test'.

    Returns:
        Pixels `[images, 3072]` (uint8), a plane for each color, and labels `[images]`.

    Raises:
        OSError: a file cannot be read, or is not an image of 32x32 pixels.
    """
    files = [
        (path, label)
        for label, class_name in enumerate(class_names(name))
        for path in images_in(folder / split / class_name, recursive=False)[0]
        if path.suffix.lower() == ".png"
    ]
    order = np.random.default_rng(0).permutation(len(files))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pixels = list(pool.map(_planes, (files[index][0] for index in order)))
    labels = np.array([files[index][1] for index in order], np.int64)
    return np.array(pixels, np.uint8).reshape(-1, 3 * _SIZE * _SIZE), labels


def _planes(path: pathlib.Path) -> np.ndarray:
    try:
        size = read_header(path).size
        if size != (_SIZE, _SIZE):
            raise ValueError(f"{path} is no image of CIFAR: it has {size[0]}x{size[1]} pixels, not 32x32.")
        return read_image(path, (_SIZE, _SIZE, 3)).transpose(2, 0, 1).reshape(-1)
    except ValueError as error:
        raise OSError(str(error)) from error
