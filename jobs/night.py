"""The steps of a night: jobs that also run alone, each done only where it was not done from the same inputs."""

import argparse
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Any

from pyspark.sql import SparkSession

from features.contracts import (
    FLAGGED_USERS,
    HELD_EVENTS,
    OPEN_SESSIONS,
    REJECTED_EVENTS,
    SCORES,
    SEQUENCES,
    SESSIONS,
    TRAINING_SEQUENCES,
    VOCABULARY,
    Contract,
    ContractError,
)
from features.input_quality import INPUT_CHECKS, NightFacts
from jobs import histories
from jobs import score as scoring
from jobs import sequences as encoding
from jobs import sessionize as cutting
from jobs import vocabulary as counting
from jobs.cli import say
from jobs.evaluate import evaluate, evaluation_hash
from jobs.feeds import feed_tables
from jobs.gating import SCORES_CHECK, check_scores, judge_challenger
from jobs.inputs import file_system_of, find_inputs, load_key, load_source
from jobs.night_input import QUALITY, accepted_nights, check_input, gather_facts, latest_before, refuse_bad
from jobs.nightly_spec import BUNDLE
from jobs.published import Release, publish, read_pointer, release_before
from jobs.report import HTML, report
from jobs.retention import plan_removals, remove
from jobs.settings import config_hash, load_settings
from jobs.spark import spark_session
from jobs.steps import DONE, SKIPPED, Steps, identity, read_json
from jobs.store import MANIFEST, Store, code_version
from jobs.train import launch, train
from model.bundle import read_coding
from model.gate import Decision

SESSIONIZE, INPUT, NUMBER, ENCODE, TRAIN = "sessionize", "input", "vocabulary", "sequences", "train"
EVALUATE, GATE, SCORE, PUBLISH, REPORT, RETENTION = "evaluate", "gate", "score", "publish", "report", "retention"
STEPS = (SESSIONIZE, INPUT, NUMBER, ENCODE, TRAIN, EVALUATE, GATE, SCORE, PUBLISH, REPORT, RETENTION)
ACCEPTABLE = (*INPUT_CHECKS, GATE, SCORES_CHECK)  # checks that a run may pass over
METRICS = "metrics.json"


class Night:
    """The steps of one night, each told what the ones before it made."""

    def __init__(self, arguments: argparse.Namespace, accepted: frozenset[str], first: date) -> None:
        self.arguments, self.accepted, self.first = arguments, accepted, first
        self.settings = load_settings(arguments.conf, arguments.set)
        self.source = load_source(arguments.source)
        self.date: date = arguments.date
        self.store = Store(arguments.root)
        eve = first - timedelta(days=1)
        can_be_made_again = (
            arguments.bootstrap or identity(self.store, OPEN_SESSIONS, eve, or_emptied=False) is not None
        )
        self.steps = Steps(self.store, self.date, can_be_made_again)
        self.metrics: dict[str, Any] = {"date": str(self.date), "code_version": code_version()}

    @cached_property
    def spark(self) -> SparkSession:
        """Started by the first step that needs it: a night that was done needs none."""
        session = spark_session("nightly")
        self.metrics["cores"] = session.sparkContext.defaultParallelism
        return session

    @cached_property
    def champion(self) -> Release | None:
        """The release in use as the night begins, if its model is still there and reads sequences coded as now."""
        release = release_before(read_pointer(self.store), self.date)
        if release is None or release.bundle is None:
            return None
        folder = f"{self.store.root}/{release.bundle}"
        values = read_json(self.store, f"{folder}/{MANIFEST}") or {}
        if values.get("model_version") != release.model_version:
            return None
        coding, own = self.settings.sequences.coding(self.settings.sessions.gap_s), read_coding(folder)
        if own != coding:
            say(f"{self.date}: model {release.model_version} reads sequences of {own}, and now they are of {coding}")
            return None
        return release

    def go(self) -> None:
        """All steps up to --until; metrics.json is written also where one of them stops the night."""
        started, began = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        outcome = "stopped"
        try:
            self._steps()
            outcome = "done"
        except BaseException as error:
            self.metrics["why"] = " ".join(str(error).split()) or type(error).__name__
            raise
        finally:
            seconds = round(time.monotonic() - started, 1)
            self.metrics.setdefault("outcome", outcome)
            self.metrics |= {"started": began, "seconds": seconds, "steps": self.steps.summary()}
            self.steps.write(METRICS, self.metrics)

    def _steps(self) -> None:
        last = STEPS.index(self.arguments.until)

        def ends(step: str) -> bool:
            return last <= STEPS.index(step)

        self._sessionize()
        if ends(SESSIONIZE):
            return
        facts = self._input()
        why = self._training_due(facts)
        self.metrics["training"] = why or "not due"
        if ends(INPUT):
            return
        self._encode(why, ends(NUMBER))
        if ends(ENCODE):
            return
        decision = self._train(why, last) if why else None
        if ends(GATE):
            return
        bundle = self._bundle(decision)
        self._score(bundle)
        if ends(SCORE):
            return
        self._publish()
        if not ends(PUBLISH):
            self._report()
        if not ends(REPORT):
            removals = plan_removals(self.store, self.settings.retention, read_pointer(self.store), self.date)
            remove(self.store, removals)
            self.steps.note(RETENTION, DONE, f"{removals.n} old partitions, releases and logs removed")
        if decision and not self._takes_over(decision):
            self.metrics["outcome"] = "done, without the new model"
            published = self.metrics["published"]
            raise ContractError(
                f"Model {decision.challenger}, trained for {self.date}, did not pass the gate: {decision.why}. The "
                f"scores of {self.date} are by {self._champion_words()}, which stays in use; published "
                f"is {published and published['path']}. Look at evaluation/dt={self.date}; "
                f"where the new model is right as it is, run the night again with --accept {GATE}. Thresholds: gate in "
                "the configuration."
            )

    def _sessionize(self) -> None:
        settings, arguments, last = self.settings, self.arguments, self.date
        eve = self.first - timedelta(days=1)
        key = load_key(settings.cleaning.pseudonym_key_file)
        before = {t.name: identity(self.store, t, eve) for t in (OPEN_SESSIONS, HELD_EVENTS)}
        made_of = {
            "config": config_hash(settings.cleaning, settings.sessions, settings.denoising, self.source),
            "from": str(self.first),
            "before": None if arguments.bootstrap else before,
            "pseudonym_key": key.fingerprint if key else None,
            "input": self._files(arguments.input, self.first, "--input"),
            "categories": self._files(arguments.categories, last, "--categories"),
        }

        def work() -> str:
            done = cutting.sessionize(
                self.spark, settings, self.source, arguments.input, arguments.root, self.first, last,
                arguments.bootstrap, arguments.categories,
            )  # fmt: skip
            return cutting.summary(done)

        tables = (SESSIONS, OPEN_SESSIONS, REJECTED_EVENTS, FLAGGED_USERS, HELD_EVENTS)
        self.steps.run(SESSIONIZE, made_of, tables, work)

    def _files(self, paths: Sequence[str], first: date, flag: str) -> dict[str, str]:
        """What tells one version of each input file from another: size and time of change, or the store's own mark."""
        marks = ("size", "mtime", "LastModified", "ETag", "etag", "generation")
        _, sizes = find_inputs(self.store, paths, first, self.date, flag)
        found = {path: file_system_of(self.store, path).info(path) for path in sizes}
        return {path: " ".join(str(info[mark]) for mark in marks if mark in info) for path, info in found.items()}

    def _input(self) -> NightFacts:
        spec = self.settings.input_quality
        vocabulary, users = (latest_before(self.store, t.name, self.date) for t in (VOCABULARY, SEQUENCES))
        made_of = {
            **self._of(SESSIONS, OPEN_SESSIONS),
            "vocabulary": vocabulary and [vocabulary, identity(self.store, VOCABULARY, vocabulary)],
            "users": users and [users, identity(self.store, SEQUENCES, users)],
        }

        def work() -> str:
            facts = gather_facts(self.spark, self.store, self.date)
            self.steps.write(QUALITY, {"facts": facts.to_json(), "accepted": False})
            return f"{facts.events:,} events of {facts.users:,} users"

        if self.steps.read(QUALITY) is None:
            self.steps.forget(f"{INPUT}-counts.json")
        self.steps.run(f"{INPUT}-counts", made_of, (), work)
        counted = self.steps.read(QUALITY) or {}
        self.accepted |= frozenset(counted.get("accepted_checks", ()))  # by an earlier run, of the same log
        facts = NightFacts.from_json(counted["facts"])
        findings = check_input(facts, accepted_nights(self.store, self.date, spec.nights), spec)
        shown = [
            {"check": f.check, "value": f.value, "low": f.low, "high": f.high, "good": f.is_good} for f in findings
        ]
        is_good = all(finding.is_good or finding.check in self.accepted for finding in findings)
        self.metrics["input"] = {"findings": shown, "accepted": sorted(self.accepted)}
        passed_over = sorted({finding.check for finding in findings if not finding.is_good} & self.accepted)
        record = {"facts": facts.to_json(), "accepted": is_good, "findings": shown, "accepted_checks": passed_over}
        self.steps.write(QUALITY, record)
        refuse_bad(findings, self.accepted, self.date)
        self.steps.note(
            INPUT, DONE, f"{len(findings)} checks of the log, {sum(not f.is_good for f in findings)} accepted"
        )
        return facts

    def _training_due(self, facts: NightFacts) -> str | None:
        """Why the night trains, or None."""
        spec = self.settings.nightly
        if self.arguments.train:
            return "--train"
        if self.champion is None:
            return "no model is in use that could score"
        last = latest_before(self.store, BUNDLE, self.date) or self.champion.model_version[: len("2024-05-01")]
        age = (self.date - date.fromisoformat(last)).days
        if age >= spec.train_every_days:
            return f"{age} days since the last training (nightly.train_every_days = {spec.train_every_days})"
        if facts.oov_item_share >= spec.train_oov_share:
            return (
                f"{facts.oov_item_share:.2f} of the events have items without an id (nightly.train_oov_share = "
                f"{spec.train_oov_share:g})"
            )
        return None

    def _encode(self, why: str | None, only_numbers: bool) -> None:
        settings, root = self.settings, self.arguments.root
        if why:
            earlier = latest_before(self.store, VOCABULARY.name, self.date)
            made_of = {
                **self._of(SESSIONS, OPEN_SESSIONS),
                "config": config_hash(settings.vocabulary),
                "earlier": earlier and [earlier, identity(self.store, VOCABULARY, earlier)],
            }
            self.steps.run(
                NUMBER,
                made_of,
                (VOCABULARY,),
                lambda: counting.summary(counting.build_vocabulary(self.spark, settings, root, self.date)),
            )
        else:
            self.steps.note(NUMBER, SKIPPED, "no training is due; ids stay as they are")
        if only_numbers:
            return
        days = [dt for dt in self.store.dates(VOCABULARY.name) if dt <= str(self.date)]
        made_of = {
            **self._of(SESSIONS, OPEN_SESSIONS),
            "vocabulary": [days[-1], identity(self.store, VOCABULARY, days[-1])] if days else None,
            "config": config_hash(settings.sequences, settings.sessions),
            "for": "training" if why else "scoring",
        }

        def work() -> str:
            if why:
                return encoding.summary(*encoding.build_sequences(self.spark, settings, root, self.date))
            return histories.summary(histories.build_scoring_sequences(self.spark, settings, root, self.date))

        self.steps.run(ENCODE, made_of, (SEQUENCES, TRAINING_SEQUENCES) if why else (SEQUENCES,), work)

    def _train(self, why: str, last: int) -> Decision | None:
        """Train, evaluate and judge, as far as `last` goes."""
        settings, arguments, dt = self.settings, self.arguments, self.date
        made_of: dict[str, Any] = self._of(TRAINING_SEQUENCES)
        made_of["config"] = config_hash(settings.network, settings.training)

        def fit() -> str:
            if settings.nightly.ranks == 1:
                train(lambda: settings, arguments.root, dt)
            else:
                launch(settings.nightly.ranks, arguments.root, dt, arguments.conf, arguments.set)
            return f"model {identity(self.store, BUNDLE, dt)}, because {why}"

        self.steps.run(TRAIN, made_of, (BUNDLE,), fit)
        if last == STEPS.index(TRAIN):
            return None
        challenger = str(identity(self.store, BUNDLE, dt))
        made_of = {**self._of(TRAINING_SEQUENCES), "model": challenger, "config": evaluation_hash(settings)}

        def rank() -> str:
            done = evaluate(settings, arguments.root, dt)
            return f"{done.split.n_users:,} users of the {done.split.split} split; {done.path}"

        self.steps.run(EVALUATE, made_of, ("evaluation",), rank)
        if last == STEPS.index(EVALUATE):
            return None
        champion = self.champion
        made_of = {
            **self._of(TRAINING_SEQUENCES, SEQUENCES),
            "model": challenger,
            "champion": champion and [champion.model_version, champion.scores_hash],
            "config": config_hash(settings.evaluation, settings.gate, settings.scoring),
        }

        def judge() -> str:
            bundle = self.store.path(BUNDLE, dt)
            decision = judge_challenger(self.spark, settings, self.store, dt, bundle, champion)
            self.steps.write("decision.json", decision.to_json())
            return f"{'passed' if decision.passed else 'not passed'}: {decision.why}"

        if self.steps.read("decision.json") is None:
            self.steps.forget(f"{GATE}.json")
        self.steps.run(GATE, made_of, (), judge)
        found = self.steps.read("decision.json") or {}
        decision = Decision.from_json(found)
        if GATE in self.accepted:
            self.steps.write("decision.json", {**found, "accepted": True})
        elif found.get("accepted"):  # by an earlier run of this night, of the same model and the same rows
            self.accepted |= {GATE}
        self.metrics["gate"] = {**decision.to_json(), "takes_over": self._takes_over(decision)}
        return decision

    def _takes_over(self, decision: Decision) -> bool:
        return decision.passed or GATE in self.accepted

    def _bundle(self, decision: Decision | None) -> str:
        """The model that scores: tonight's where it takes over, else the one in use."""
        if decision and self._takes_over(decision):
            return self.store.path(BUNDLE, self.date)
        if self.champion is None:
            why = decision.why if decision else "not judged"
            raise ContractError(
                f"The model trained for {self.date} did not pass the gate ({why}), and none before it could score: "
                f"nothing is scored. Look at evaluation/dt={self.date}, correct data or "
                f"configuration, or run the night again with --accept {GATE}."
            )
        return f"{self.store.root}/{self.champion.bundle}"

    def _champion_words(self) -> str:
        return f"model {self.champion.model_version}" if self.champion else "no model"

    def _score(self, bundle: str) -> None:
        settings = self.settings
        manifest = read_json(self.store, f"{bundle}/{MANIFEST}") or {}
        made_of = {
            **self._of(SEQUENCES),
            "model": manifest.get("model_version"),
            "config": config_hash(settings.scoring, settings.feeds),
        }

        def work() -> str:
            done = scoring.score(self.spark, settings, self.arguments.root, self.date, bundle)
            return f"{scoring.summary(done)}; model {manifest.get('model_version')}"

        self.steps.run(SCORE, made_of, (SCORES, *feed_tables(settings.feeds)), work)

    def _publish(self) -> None:
        settings, store = self.settings, self.store
        pointer = read_pointer(store)
        if pointer.current and pointer.current.date > str(self.date):
            said = f"{pointer.current.name} is later and stays; jobs.publish --date {self.date} goes back to this night"
            self.steps.note(PUBLISH, SKIPPED, said)
        else:
            before = release_before(pointer, self.date)

            def work() -> str:
                said = check_scores(self.spark, settings, store, self.date, before, self.accepted)
                return f"{publish(store, self.date, settings.retention.releases).path}; {said}"

            self.steps.run(PUBLISH, self._of(SCORES), (), work)
        current = read_pointer(store).current
        self.metrics["published"] = current and {"path": current.path, "model_version": current.model_version}

    def _report(self) -> None:
        """What is published stays so where no report can be made of it."""
        judged = latest_before(self.store, "evaluation", self.date + timedelta(days=1))
        made_of = {
            **self._of(SESSIONS, SCORES),
            "evaluation": judged and [judged, identity(self.store, "evaluation", judged)],
            "config": config_hash(self.settings.report, self.settings.input_quality),
        }
        if not self.store.fs.exists(f"{self.store.path(REPORT, self.date)}/{HTML}"):
            self.steps.forget(f"{REPORT}.json")
        stages = [(run.name, run.seconds) for run in self.steps.runs]

        def work() -> str:
            return report(self.spark, self.settings, self.arguments.root, self.date, stages)

        try:
            self.steps.run(REPORT, made_of, (), work)
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            self.metrics["report"] = f"not made: {said}"
            say(f"{self.date} {REPORT}: not made, and the scores stay published: {said}")

    def _of(self, *tables: Contract) -> dict[str, Any]:
        """Identities of the night's partitions, for the key of a step."""
        return {table.name: identity(self.store, table, self.date) for table in tables}
