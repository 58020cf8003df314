"""The published scores: whole releases that never change, and one pointer that says which of them is in use.

    ROOT/published/<day>-<hash>/   the files of scores_v1 of a night, as they were when it was published
    ROOT/models/<version>/         the bundle that made them: another training of its day leaves it alone
    ROOT/published.json            {"current": release, "previous": [release, …], "withdrawn": [release, …]}

A reader opens published.json, then the folder that `current.path` names below the root: the old scores or the new
ones, never a mix, also while scores_v1 of the same day is written again. The pointer is replaced by one rename on
local roots and by one object on stores of objects.
"""

import json
import os
import posixpath
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import fsspec

from features.contracts import SCORES, ContractError
from jobs.nightly_spec import BUNDLE
from jobs.observing import POINTER
from jobs.steps import read_json
from jobs.store import MANIFEST, Store

RELEASES, MODELS = "published", "models"


@dataclass(frozen=True)
class Release:
    """Scores that were published once. path, bundle: below the root; bundle is None for one that lies elsewhere."""

    date: str
    path: str
    model_version: str
    bundle: str | None
    rows: int
    scores_hash: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return posixpath.basename(self.path)


@dataclass(frozen=True)
class Pointer:
    """What is published, what was before it (latest first), and what was taken back (latest first)."""

    current: Release | None = None
    previous: tuple[Release, ...] = ()
    withdrawn: tuple[Release, ...] = ()

    @property
    def releases(self) -> tuple[Release, ...]:
        """The current one and those before it, latest first."""
        return (self.current, *self.previous) if self.current else self.previous


def read_pointer(store: Store) -> Pointer:
    """The pointer of a root; empty where nothing was published yet."""
    values = read_json(store, f"{store.root}/{POINTER}")
    if values is None:
        return Pointer()
    try:
        current = values["current"]
        return Pointer(
            Release(**current) if current else None,
            tuple(Release(**entry) for entry in values["previous"]),
            tuple(Release(**entry) for entry in values["withdrawn"]),
        )
    except (KeyError, TypeError) as error:
        raise ContractError(
            f"{store.root}/{POINTER} is not a pointer that this version reads ({error}). Publish a night again: "
            f"python -m jobs.publish --root {store.root} --date D."
        ) from None


def release_before(pointer: Pointer, dt: date) -> Release | None:
    """What is in use as a night begins: the latest to be published of those of earlier nights, not taken back.

    That need not be the one of the latest night: `publish` may have gone back to an earlier one. It counts as a new
    publication, so a look at an earlier night and back is better taken by hand, or with `roll_back`.
    """
    return next((release for release in pointer.releases if release.date < str(dt)), None)


def publish(store: Store, dt: date, keep: int) -> Release:
    """Make a release of scores_v1 of a day and point to it; `keep` releases stay in the pointer.

    Publishing again what is published changes nothing.

    Raises:
        ContractError: the scores are missing or torn.
    """
    scores = store.check(SCORES, dt, "jobs/score.py")
    version = str(scores.counters["model_version"])
    release = Release(
        date=str(dt),
        path=f"{RELEASES}/{dt}-{scores.hash}",
        model_version=version,
        bundle=_kept_bundle(store, version),
        rows=scores.rows,
        scores_hash=scores.hash,
    )
    pointer = read_pointer(store)
    if pointer.current != release or not store.fs.exists(f"{store.root}/{release.path}/{MANIFEST}"):
        _write_release(store, dt, release)
        others = tuple(entry for entry in pointer.releases if entry.path != release.path)
        withdrawn = tuple(entry for entry in pointer.withdrawn if entry.path != release.path)
        _write_pointer(store, Pointer(release, others[: keep - 1], withdrawn[:keep]))
    return release


def roll_back(store: Store) -> tuple[Release, Release]:
    """Point to the release before the current one → (the one in use now, the one taken back).

    Raises:
        ContractError: there is none before it, or its files have gone.
    """
    pointer = read_pointer(store)
    if pointer.current is None or not pointer.previous:
        there = f"{pointer.current.name} is the only release" if pointer.current else "nothing was published"
        raise ContractError(f"{store.root}/{POINTER}: {there}; there is nothing to go back to.")
    back = pointer.previous[0]
    if not store.fs.exists(f"{store.root}/{back.path}/{MANIFEST}"):
        raise ContractError(
            f"{store.root}/{back.path} has gone, so there is nothing to go back to. Publish another night: "
            f"python -m jobs.publish --root {store.root} --date D."
        )
    _write_pointer(store, Pointer(back, pointer.previous[1:], (pointer.current, *pointer.withdrawn)))
    return back, pointer.current


def bundle_of(store: Store, model_version: str) -> str | None:
    """Path below the root of the bundle with this version, None where none has it (any more)."""
    if store.fs.exists(f"{store.root}/{MODELS}/{model_version}/{MANIFEST}"):
        return f"{MODELS}/{model_version}"
    for dt in reversed(store.dates(BUNDLE)):
        values = read_json(store, f"{store.path(BUNDLE, dt)}/{MANIFEST}")
        if values is not None and values.get("model_version") == model_version:
            return f"{BUNDLE}/dt={dt}"
    return None


def unused_releases(store: Store, pointer: Pointer) -> list[str]:
    """Folders of releases, and of their models, that the pointer does not name."""
    releases = (*pointer.releases, *pointer.withdrawn)
    named = {place for release in releases for place in (release.path, release.bundle)}
    unused = []
    for of in (RELEASES, MODELS):
        folder = f"{store.root}/{of}"
        if store.fs.exists(folder):
            names = sorted(posixpath.basename(path.rstrip("/")) for path in store.fs.ls(folder, detail=False))
            unused += [f"{folder}/{name}" for name in names if f"{of}/{name}" not in named]
    return unused


def _write_release(store: Store, dt: date, release: Release) -> None:
    source = store.path(SCORES.name, dt)
    _copy_whole(store, source, [path for path, _ in store.data_files(source)], f"{store.root}/{release.path}")


def _kept_bundle(store: Store, model_version: str) -> str | None:
    """As `bundle_of`, once the bundle has a place that no other model takes."""
    found = bundle_of(store, model_version)
    if found is None or found.startswith(f"{MODELS}/"):
        return found
    source, kept = f"{store.root}/{found}", f"{MODELS}/{model_version}"
    files = [path for path in sorted(map(str, store.fs.ls(source, detail=False))) if not path.endswith(f"/{MANIFEST}")]
    _copy_whole(store, source, files, f"{store.root}/{kept}")
    return kept


def _copy_whole(store: Store, source: str, files: Sequence[str], target: str) -> None:
    """Copy files of a folder, its manifest last; on local roots they are linked, which costs no space."""
    if store.fs.exists(f"{target}/{MANIFEST}"):
        return
    if store.fs.exists(target):
        store.fs.rm(target, recursive=True)
    store.fs.makedirs(target, exist_ok=True)
    for path in [*files, f"{source}/{MANIFEST}"]:
        _copy(store, path, f"{target}/{posixpath.basename(path)}")


def _copy(store: Store, source: str, target: str) -> None:
    fs, place = fsspec.core.url_to_fs(source)
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        try:
            os.link(place, fsspec.core.url_to_fs(target)[1])
            return
        except OSError:  # a file system without hard links
            pass
    store.fs.cp_file(source, target)


def _write_pointer(store: Store, pointer: Pointer) -> None:
    content: dict[str, Any] = asdict(pointer)
    content["previous"], content["withdrawn"] = list(content["previous"]), list(content["withdrawn"])
    store.write_json(f"{store.root}/{POINTER}", content)


def in_words(pointer: Pointer) -> Sequence[str]:
    """One line for each release, the current one first."""
    marks = [(pointer.current, "current")] if pointer.current else []
    marks += [(release, "previous") for release in pointer.previous]
    marks += [(release, "withdrawn") for release in pointer.withdrawn]
    return [json.dumps({"status": mark, **asdict(release)}) for release, mark in marks]
