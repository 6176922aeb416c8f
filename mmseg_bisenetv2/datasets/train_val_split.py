"""Which pictures are for training, and which for validation."""
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

# Such as "train/", "train2017/", "Validation/" and "testing/", anywhere in a path.
SPLIT_FOLDER = re.compile(r'(?:^|(?<=/))(train|val|test)(?:ing|id|idation)?\d*/', re.IGNORECASE)


def split_pictures(keys: Sequence[str], val: float) -> list[tuple[str, str]]:
    """Decides which pictures are for validation; the same pictures are always split alike.

    Folders that are called train and val decide. Otherwise folders or pictures are chosen in the
    order of a hash of their names: whole folders where there are several, such as one for each
    film, else single pictures.

    Args:
        keys: The pictures' paths below their folder, without suffix.
        val: The share of pictures for validation.

    Returns:
        For each picture its split, and its path without the folder that named the split.

    Raises:
        ValueError: If folders name the split of some pictures only, or none is left to train on.
    """
    if not 0 <= val < 1:
        raise ValueError(f'{val} of the pictures for validation, expected 0 or more, and below 1')
    hits = [SPLIT_FOLDER.search(key) for key in keys]
    if {'train', 'val'} <= {hit[1].lower() for hit in hits if hit}:
        return _split_by_folders(keys, hits)
    several = len({os.path.dirname(key) for key in keys}) > 1
    groups: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[os.path.dirname(key) if several else key].append(key)
    chosen: set[str] = set()
    for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(chosen) + len(groups[name]) <= round(val * len(keys)):
            chosen.update(groups[name])
    if val and not chosen:
        chosen.update(groups[min(groups, key=lambda name: len(groups[name]))])
    if len(chosen) == len(keys):
        raise ValueError(f'Pictures with labels: {len(keys)}. Expected at least one for train and '
                         'one for val. Label more')
    return [('val' if key in chosen else 'train', key) for key in keys]


def _split_by_folders(keys: Sequence[str],
                      hits: Sequence[re.Match[str] | None]) -> list[tuple[str, str]]:
    """Splits pictures whose paths name the split; ``hits`` says where."""
    if None in hits:
        raise ValueError(f'{keys[hits.index(None)]}: lies in no folder train or val, but other '
                         'pictures do. Move it there')
    places = [(hit[1].lower(), key[:hit.start()] + key[hit.end():])
              for key, hit in zip(keys, hits, strict=True) if hit]
    (place, times), = Counter(places).most_common(1)
    if times > 1:
        raise ValueError(f'{times} pictures would become {"/".join(place)}. Rename one')
    return places
