"""What may go: nights of tables beyond those that are kept and that nothing kept still needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from features.contracts import (
    HELD_EVENTS,
    OPEN_SESSIONS,
    SCORES,
    SEQUENCES,
    TRAINING_SEQUENCES,
    USER_STATES,
    VOCABULARY,
)
from jobs.nightly_spec import BUNDLE, RetentionSpec
from jobs.observing import RUNS, days_of_runs
from jobs.published import Pointer, unused_releases
from jobs.steps import read_json
from jobs.store import EMPTIED, MANIFEST, Store

# Table → tables among its manifest's inputs without which its rows can't be read or used.
_NEEDS: Mapping[str, tuple[str, ...]] = {
    SEQUENCES.name: (SEQUENCES.name, VOCABULARY.name),  # the layers below, and what its ids mean
    TRAINING_SEQUENCES.name: (VOCABULARY.name,),
    USER_STATES.name: (USER_STATES.name,),  # the layers below
}
# Of these the manifests link the history of every later day (jobs/history.py): only their files go.
_LINKS = (OPEN_SESSIONS.name, HELD_EVENTS.name)
_OF_TRAINING = ("_checkpoints", "_training")

Part = tuple[str, str]  # table, day


@dataclass(frozen=True)
class Removals:
    """Partitions to remove, to empty (their manifest stays), folders of releases and models, days of run logs."""

    partitions: tuple[Part, ...]
    emptied: tuple[Part, ...]
    releases: tuple[str, ...]
    runs: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """How many there are of all kinds."""
        return len(self.partitions) + len(self.emptied) + len(self.releases) + len(self.runs)


def plan_removals(store: Store, spec: RetentionSpec, pointer: Pointer, dt: date) -> Removals:
    """What goes after a night: older than the newest of its table up to that night, and needed by nothing that stays.

    What lies before all of that without a manifest goes too.
    Later nights stay as they are: where an old one is run again, these are next, and each needs the one before it.
    Needed are: layers and vocabularies of kept sequences, scores and sequences of the published night, the model of
    every release, and the open sessions and held events of the nights on whose sequences another layer may be laid.
    """
    days = {table: store.dates(table) for table in spec.nights}

    def stay(found: list[str], nights: int) -> list[str]:
        so_far = [day for day in found if day <= str(dt)]
        return so_far[-nights:] + found[len(so_far) :]

    newest = {(table, day) for table, nights in spec.nights.items() for day in stay(days[table], nights)}
    newest |= {(table, release.date) for table in (SCORES.name, SEQUENCES.name) for release in pointer.releases[:1]}
    newest |= {
        _part(release.bundle)  # one of a pointer that was written before models had places of their own
        for release in (*pointer.releases, *pointer.withdrawn)
        if release.bundle and release.bundle.startswith(f"{BUNDLE}/")
    }
    if SEQUENCES.name in spec.nights:
        laid_on = stay(days[SEQUENCES.name], spec.nights[SEQUENCES.name])
        newest |= {(link, day) for link in _LINKS for day in laid_on}
    newest |= {(table, day) for table in _NEEDS if table not in spec.nights for day in store.dates(table)}
    kept = _closed(store, newest)
    old = [(table, day) for table, found in days.items() for day in found if (table, day) not in kept]
    unfinished = [part for table, found in days.items() for part in _unfinished(store, table, found, kept)]
    runs = days_of_runs(store)
    return Removals(
        (*(part for part in old if part[0] not in _LINKS), *unfinished),
        tuple(part for part in old if part[0] in _LINKS and _has_files(store, part)),
        tuple(unused_releases(store, pointer)),
        tuple(day for day in runs if day not in stay(runs, spec.runs)),
    )


def remove(store: Store, removals: Removals) -> None:
    """Remove them, manifests first, so that nothing half removed is ever read."""
    for table, dt in removals.partitions:
        folder = store.path(table, dt)
        for path in (f"{folder}/{MANIFEST}", folder):
            _remove(store, path)
        if table == BUNDLE:
            for place in _OF_TRAINING:
                _remove(store, f"{store.root}/{place}/dt={dt}")
    for table, dt in removals.emptied:
        store.write_text(f"{store.path(table, dt)}/{EMPTIED}", "")
        for path, _ in store.data_files(store.path(table, dt)):
            _remove(store, path)
    for dt in removals.runs:
        _remove(store, f"{store.root}/{RUNS}/dt={dt}")
    for folder in removals.releases:
        for path in (f"{folder}/{MANIFEST}", folder):
            _remove(store, path)


def _closed(store: Store, parts: set[Part]) -> set[Part]:
    """The parts and everything they need, and what that needs."""
    kept, waiting = set(parts), list(parts)
    while waiting:
        table, dt = waiting.pop()
        if table not in _NEEDS:
            continue
        manifest = read_json(store, f"{store.path(table, dt)}/{MANIFEST}") or {}
        for key in manifest.get("inputs", {}):
            of, _, day = str(key).rpartition("/")
            if of in _NEEDS[table] and (of, day) not in kept:
                kept.add((of, day))
                waiting.append((of, day))
    return kept


def _unfinished(store: Store, table: str, finished: list[str], kept: set[Part]) -> list[Part]:
    """Parts without a manifest from before the oldest that is kept: of a removal, or a publication, that was cut off.

    Not of bundles: a training may run beside a night, and has checkpoints and perhaps half a bundle.
    """
    oldest = min((day for of, day in kept if of == table), default="")
    left = [] if table == BUNDLE else sorted(set(store.days(table)) - set(finished))
    return [(table, day) for day in left if day < oldest]


def _part(path: str) -> Part:
    table, _, dt = path.rpartition("/dt=")
    return table, dt


def _has_files(store: Store, part: Part) -> bool:
    return bool(store.data_files(store.path(*part)))


def _remove(store: Store, path: str) -> None:
    if store.fs.exists(path):
        store.fs.rm(path, recursive=True)
