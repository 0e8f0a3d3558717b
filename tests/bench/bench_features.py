"""Images per second of the feature store's reader, from a cold map (pages dropped from the cache) and from a warm one.

    python tests/bench/bench_features.py [--images 2048] [--tokens 196] [--features 768] [--batch 64] [--folder DIR] [--json]

Makes a store of random bf16 tokens, reads it in a seeded permutation in batches, as training does, half of them mirrored.
Cold is asked for by posix_fadvise(DONTNEED) on every shard; whether the pages were gone is read back by mincore and printed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from jobs.data.feature_manifest import FeatureManifest, backbone_facts  # noqa: E402  # found through the path above
from jobs.data.feature_writer import FeatureWriter  # noqa: E402
from jobs.data.features import FeatureStore  # noqa: E402
from models.spec import BackboneSpec  # noqa: E402


def make_store(folder: Path, *, images: int, tokens: int, features: int, shard_images: int) -> FeatureStore:
    """A store of random tokens, both flips."""
    manifest = FeatureManifest(
        prepare="bench", backbone=backbone_facts(BackboneSpec(weights="random")), weights="", resolution=224, dtype="bf16",
        tokens=tokens, feature_size=features, counts={"train": images, "test": 1}, flips=True, shard_images=shard_images,
    )  # fmt: skip
    writer = FeatureWriter(folder / "work", manifest.layout, made_with="bench")
    rng = np.random.default_rng(0)
    for shard in manifest.layout.shards():
        rows = rng.integers(0, 1 << 14, size=manifest.layout.shape(shard), dtype=np.uint16)
        writer.commit(shard, rows, squared_error=0.0, may_commit=lambda: True)
    return writer.finish(manifest, folder / "features")


def drop_pages(store: FeatureStore) -> None:
    """Ask the kernel to forget the shards."""
    for name in store.manifest.files:
        handle = os.open(store.path / name, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def resident_share(store: FeatureStore) -> float:
    """Share of the shards' pages that lie in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    there = total = 0
    for name in store.manifest.files:
        with (
            open(store.path / name, "rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapped,
        ):
            view = np.frombuffer(mapped, dtype=np.uint8)
            pages = -(-len(mapped) // mmap.PAGESIZE)
            flags = (ctypes.c_ubyte * pages)()
            if libc.mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(mapped)), flags):
                raise OSError(ctypes.get_errno(), "mincore")
            there += int((np.frombuffer(flags, dtype=np.uint8) & 1).sum())
            total += pages
            del view
    return there / total


def images_per_s(store: FeatureStore, *, batch: int) -> float:
    """One pass in a seeded permutation, half of the images mirrored, through freshly opened maps."""
    features = store.split("train")
    rng = np.random.default_rng(1)
    order, mirrored = rng.permutation(features.count), rng.integers(0, 2, size=features.count).astype(bool)
    begun = time.perf_counter()
    for at in range(0, features.count, batch):
        features.read(order[at : at + batch], mirrored[at : at + batch])
    return features.count / (time.perf_counter() - begun)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=196)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--shard-images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", default=None, help="where to make the store (default: the temporary directory)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = make_store(
            Path(folder),
            images=options.images,
            tokens=options.tokens,
            features=options.features,
            shard_images=options.shard_images,
        )
        report: dict[str, float] = {"bytes_per_image": store.manifest.layout.bytes_per_image}
        cold, warm, resident = [], [], []
        for _ in range(options.repeats):
            drop_pages(store)
            resident.append(resident_share(store))
            cold.append(images_per_s(store, batch=options.batch))
            images_per_s(store, batch=options.batch)
            warm.append(images_per_s(store, batch=options.batch))
        report |= {
            "resident_share_before_cold": float(np.median(resident)),
            "cold_images_per_s": float(np.median(cold)),
            "warm_images_per_s": float(np.median(warm)),
        }
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:30s} {value:12.3f}")


if __name__ == "__main__":
    main()
