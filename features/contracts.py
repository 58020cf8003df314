"""The tables between stages: their schemas, keys and meaning, and the one check that ends every stage."""

import hashlib
import json
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import types as T

from features import columns as c


class ContractError(Exception):
    """Data that breaks a contract: what, where, which value, how to fix it."""


@dataclass(frozen=True)
class Contract:
    """One versioned table. `name` ends in its version; an incompatible change is a new name."""

    name: str
    row: str
    key: tuple[str, ...]
    schema: T.StructType

    @property
    def schema_hash(self) -> str:
        """First 16 hex digits of the SHA-256 of names, types and nullability, in order."""
        shape = [(f.name, f.dataType.simpleString(), f.nullable) for f in self.schema.fields]
        return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]


def conform(frame: DataFrame, contract: Contract) -> DataFrame:
    """Select the contract's columns in its order, or raise one ContractError that lists every problem.

    Missing columns and other types are problems; further columns are dropped. Nullability is the
    writer's duty: Spark marks computed columns nullable, so it is not compared here.
    """
    found = {f.name: f.dataType for f in frame.schema.fields}
    problems = []
    for field in contract.schema.fields:
        if field.name not in found:
            problems.append(f"column {field.name} is missing")
        elif found[field.name].simpleString() != field.dataType.simpleString():
            problems.append(
                f"column {field.name} is {found[field.name].simpleString()}, expected {field.dataType.simpleString()}"
            )
    if problems:
        raise ContractError(f"{contract.name}: {'; '.join(problems)}. Columns found: {', '.join(found) or 'none'}.")
    return frame.select(*contract.schema.names)


def _column(name: str, kind: T.DataType, doc: str, nullable: bool = False) -> T.StructField:
    return T.StructField(name, kind, nullable, {"comment": doc})


_STRING, _INT, _LONG, _TIME = T.StringType(), T.IntegerType(), T.LongType(), T.TimestampType()
_INTS = T.ArrayType(_INT, containsNull=False)
_FLOAT = T.FloatType()

EVENT_FIELDS = (
    _column(
        c.EVENT_ID,
        _LONG,
        "rises with the log's own order; else a hash of all that a row says, its id included; with user_id it names "
        "one event",
    ),
    _column(c.ITEM_ID, _STRING, "what was acted on"),
    _column(c.CATEGORY_ID, _STRING, "the item's category at that moment, where the log knows it", nullable=True),
    _column(c.ACTION, _STRING, "view, click, like, cart or buy"),
    _column(c.EVENT_TIME, _TIME, "when it happened, UTC"),
)

EVENTS = Contract(
    "events_v1",
    "One cleaned action of one user.",
    (c.USER_ID, c.EVENT_ID),
    T.StructType(
        [
            _column(c.USER_ID, _STRING, "who acted"),
            *EVENT_FIELDS,
            _column(c.INGEST_TIME, _TIME, "when the log received it, where known, UTC", nullable=True),
        ]
    ),
)

REJECTED_EVENTS = Contract(
    "rejected_events_v1",
    "One refused row of the log, or event of a bot, whole, with the reason.",
    (),
    T.StructType(
        [
            _column(
                c.REASON, _STRING, "why it was refused (see features/events.py), or bot (see features/denoising.py)"
            ),
            _column(
                c.RAW,
                _STRING,
                "the row as read: its line, or its columns as JSON; under pseudonyms without the raw user; of a "
                "bot the cleaned event as JSON",
            ),
        ]
    ),
)

HELD_EVENTS = Contract(
    "held_events_v1",
    "One event that a rule of denoising takes out of a day that is not closed: tomorrow's run takes it up, so that the "
    "day is judged whole when late events join it.",
    (c.USER_ID, c.EVENT_ID),
    T.StructType([_column(c.USER_ID, _STRING, "who acted"), *EVENT_FIELDS]),
)

FLAGGED_USERS = Contract(
    "flagged_users_v1",
    "One rule of denoising that one user's UTC day breaks, as known at the end of the run. A day that is not closed is "
    "judged again, and listed again, by the next run.",
    (c.USER_ID, c.DAY, c.RULE),
    T.StructType(
        [
            _column(c.USER_ID, _STRING, "whose day"),
            _column(c.DAY, T.DateType(), "UTC day of the events"),
            _column(
                c.RULE, _STRING, "events_per_day, events_per_minute or hours_per_day (each makes a bot), or capped"
            ),
            _column(
                c.VALUE,
                _LONG,
                "what was measured: distinct events of the day (events_per_day, capped), events of its busiest minute, "
                "or hours with an event",
            ),
            _column(
                c.EVENTS, _LONG, "events of the day that are taken out, the same for each rule it breaks: of a bot all"
            ),
            _column(c.CLOSED, T.BooleanType(), "no late event may come any more: value and events are final"),
        ]
    ),
)

_SESSION_FIELDS = [
    _column(c.SESSION_ID, _STRING, "16 hex digits: hash of (user_id, session_start)"),
    _column(c.USER_ID, _STRING, "whose session"),
    _column(c.SESSION_START, _TIME, "time of the first event, UTC"),
    _column(c.SESSION_END, _TIME, "time of the last event, UTC"),
    _column(c.N_EVENTS, _INT, "events in it"),
    _column(
        c.EVENTS,
        T.ArrayType(T.StructType(list(EVENT_FIELDS)), containsNull=False),
        "the events, ordered by (event_time, event_id)",
    ),
]

SESSIONS = Contract(
    "sessions_v1",
    "One finished session: no event that is still allowed can join it. Written once, by the run that finished it; the "
    "partition is that run's last day.",
    (c.SESSION_ID,),
    T.StructType(_SESSION_FIELDS),
)

OPEN_SESSIONS = Contract(
    "open_sessions_v1",
    "One session that may still grow; tomorrow's run takes it up.",
    (c.SESSION_ID,),
    T.StructType(_SESSION_FIELDS),
)

HISTORIES = Contract(
    "histories_v1",
    "One event of a user's kept past: finished sessions up to the day. `bucket-NNNNN.parquet` holds the users with "
    "pmod(hash(user_id), counters.buckets) = NNNNN, each user's rows together, ordered by (event_time, event_id). "
    "Written on days of compaction only; in between, the sessions of each run are what came on top.",
    (c.USER_ID, c.EVENT_ID),
    T.StructType([_column(c.USER_ID, _STRING, "whose event"), *EVENT_FIELDS]),
)

VOCABULARY = Contract(
    "vocabulary_v1",
    "One token and its id. 0 is padding and 1 is unknown; ids fall with frequency and never move afterwards.",
    (c.KIND, c.TOKEN),
    T.StructType(
        [
            _column(c.KIND, _STRING, "item or category"),
            _column(c.TOKEN, _STRING, "the item_id or category_id"),
            _column(c.ID, _INT, "dense from 2 within its kind"),
            _column(c.COUNT, _LONG, "events that carry the token, over all sessions so far"),
        ]
    ),
)

_CHANNEL_FIELDS = [
    _column(
        c.LENGTH,
        _INT,
        "events in the channels, 1..L, then padding; 0 in sequences_v1: nothing is left of a user of an earlier day",
    ),
    _column(c.ITEM, _INTS, "[L] item ids, oldest first"),
    _column(c.CATEGORY, _INTS, "[L] category ids"),
    _column(c.ACTION_CODE, _INTS, "[L] action codes: 2 view, 3 click, 4 like, 5 cart, 6 buy"),
    _column(c.GAP, _INTS, "[L] time since the user's previous event, as a bucket"),
    _column(c.HOUR, _INTS, "[L] hour of the week, UTC: 1 = Monday 00:00, 168 = Sunday 23:00"),
    _column(
        c.NEXT_GAP,
        _INT,
        "bucket of the time to the next event (train; unknown where none is known), or from the last event to the "
        "cutoff; held-out rows of leave_one_out: unknown",
    ),
    _column(c.LAST_TIME, _TIME, "time of the last event in the channels, UTC"),
    _column(c.SEEN_ITEMS, _INTS, "distinct item ids of the user's whole kept history before the cutoff, rising"),
]

SEQUENCES = Contract(
    "sequences_v1",
    "One user's latest L events before the cutoff, encoded, right-padded, for scoring. A partition whose inputs name "
    "an earlier one of this table holds the users with new events only; the rows of the others are there "
    "(jobs/layers.py reads them as one).",
    (c.USER_ID,),
    T.StructType([_column(c.USER_ID, _STRING, "whose sequence"), *_CHANNEL_FIELDS]),
)

TRAINING_SEQUENCES = Contract(
    "training_sequences_v1",
    "One window of one user's history and what came after it, by split. The target of position t < length - 1 is the "
    "event at t + 1; that of the last position is the next_* columns. Train windows have empty label and seen arrays. "
    "A position's future up to a horizon h is known whole where h - age_s <= known_s; A is sequences.ahead_events.",
    (c.USER_ID, c.WINDOW, c.SPLIT),
    T.StructType(
        [
            _column(c.USER_ID, _STRING, "whose window"),
            _column(c.WINDOW, _INT, "0 is the latest window, 1 the one before it, …"),
            *_CHANNEL_FIELDS,
            _column(
                c.NEXT_ITEM,
                _INT,
                "item id of the event after the window; 0 where a train window ends with what is known",
            ),
            _column(c.NEXT_CATEGORY, _INT, "its category id"),
            _column(c.NEXT_TIME, _TIME, "its time, UTC; without one last_time"),
            _column(c.LABEL_ITEMS, _INTS, "item ids of every event in the label period, in order"),
            _column(c.LABEL_CATEGORIES, _INTS, "their category ids"),
            _column(c.LABEL_ACTIONS, _INTS, "their action codes"),
            _column(c.LABEL_TIMES, T.ArrayType(_TIME, containsNull=False), "their times, UTC"),
            _column(c.AGE, _INTS, "[L] whole seconds from each event to the last one in the channels, then 0"),
            _column(
                c.AHEAD_CATEGORY,
                _INTS,
                "[A] category ids of the events that follow, as far as the split may know them and within the longest "
                "horizon, then padding; held-out rows: of the label period",
            ),
            _column(c.AHEAD_ACTION, _INTS, "[A] their action codes"),
            _column(c.AHEAD, _INTS, "[A] whole seconds from the last event in the channels to them, rising"),
            _column(c.AHEAD_LENGTH, _INT, "how many there are, 0..A"),
            _column(
                c.KNOWN, _INT, "whole seconds after the last event in the channels within which every event is listed"
            ),
            _column(c.SPLIT, _STRING, "train, valid or test; a directory of the table"),
        ]
    ),
)

_INTEREST_AHEAD = T.ArrayType(
    T.StructType(
        [
            _column(c.DAYS, _INT, "days after the cutoff that it speaks of"),
            _column(
                c.SHARE,
                _FLOAT,
                "expected share of the user's events within these days, 0..1; null where the model has no head for it",
                nullable=True,
            ),
            _column(
                c.TOUCHED,
                _FLOAT,
                "probability of at least one event in it within these days, 0..1; null where the model has no head for "
                "it",
                nullable=True,
            ),
        ]
    ),
    containsNull=False,
)

SCORES = Contract(
    "scores_v1",
    "One user's future interests as of the cutoff. What speaks of the days ahead is asked after the user's silence, "
    "the time from the last event to the cutoff. It is empty or null in rows of histories that the model knows nothing "
    "of, and where the model was trained without the head that answers it.",
    (c.USER_ID,),
    T.StructType(
        [
            _column(c.USER_ID, _STRING, "whose interests"),
            _column(c.AS_OF, _TIME, "the cutoff: nothing at or after it was used, UTC"),
            _column(c.MODEL_VERSION, _STRING, "the bundle that scored the row"),
            _column(
                c.PROVENANCE,
                _STRING,
                "where the scores come from: model; short_history, the model on a history of few known events; for one "
                "that it knows nothing of covisitation, category_popularity or popularity",
            ),
            _column(
                c.INTERESTS,
                T.ArrayType(
                    T.StructType(
                        [
                            _column(c.CATEGORY_ID, _STRING, "the interest"),
                            _column(c.PROBABILITY, _FLOAT, "probability that the next event falls in it, 0..1"),
                            _column(c.PAST_SHARE, _FLOAT, "its share of the user's past events, smoothed, 0..1"),
                            _column(c.MOVE, _FLOAT, "probability - past_share, -1..1"),
                            _column(c.TREND, _STRING, "new, rising, steady or fading against that share"),
                            _column(
                                c.DAYS_AHEAD,
                                _INTEREST_AHEAD,
                                "the days ahead: one entry for each horizon of the model (sequences.horizons_days when "
                                "it was trained), days rising; empty where it has none",
                            ),
                        ]
                    ),
                    containsNull=False,
                ),
                "the K likeliest interests and a few fading ones beyond them, falling by probability",
            ),
            _column(
                c.ITEMS,
                T.ArrayType(
                    T.StructType(
                        [
                            _column(c.ITEM_ID, _STRING, "the item"),
                            _column(c.PROBABILITY, _FLOAT, "probability of being the next item, 0..1"),
                        ]
                    ),
                    containsNull=False,
                ),
                "the K likeliest items, falling by probability",
            ),
            _column(
                c.DRIFT,
                _FLOAT,
                "how far the days ahead lie from the past: Jensen-Shannon distance, 0 (the same) to 1 (nothing in "
                "common), between the smoothed past shares of all categories and their expected shares of the days "
                "ahead (scoring.drift_days); null where the model tells no such shares",
                nullable=True,
            ),
            _column(
                c.BACK,
                T.ArrayType(
                    T.StructType(
                        [
                            _column(c.HOURS, _INT, "hours after the cutoff"),
                            _column(
                                c.PROBABILITY,
                                _FLOAT,
                                "probability that the next session starts within them, the silence so far given, 0..1",
                            ),
                        ]
                    ),
                    containsNull=False,
                ),
                "return: one entry for each of the model's back_hours, rising; empty where it has no head for it",
            ),
            _column(
                c.BEST_HOURS,
                T.ArrayType(
                    T.StructType(
                        [
                            _column(c.HOUR, _INT, "hour of the week, UTC: 0 = Monday 00:00, 167 = Sunday 23:00"),
                            _column(c.PROBABILITY, _FLOAT, "probability that the next session starts in it, 0..1"),
                        ]
                    ),
                    containsNull=False,
                ),
                "the scoring.best_hours likeliest hours of the next session, falling by probability, as told when the "
                "user's silence reached its present bin (docs/adr/0012); empty where the model has no head for it",
            ),
            _column(
                c.NEXT_ACTIONS,
                T.ArrayType(
                    T.StructType(
                        [
                            _column(c.ACTION, _STRING, "view, click, like, cart or buy"),
                            _column(c.PROBABILITY, _FLOAT, "probability that the next session holds it, 0..1"),
                        ]
                    ),
                    containsNull=False,
                ),
                "what the next session holds: every action, weakest first; empty where the model has no head for it",
            ),
            _column(
                c.CONTACTS_PER_WEEK,
                _FLOAT,
                "messages or ads a week that are worth it: expected returns a week × worth of a session, up to "
                "scoring.contacts.most_per_week (features/contacts.py); null where back or actions is empty",
                nullable=True,
            ),
        ]
    ),
)

SCORES_EXPLODED = Contract(
    "scores_exploded_v1",
    "One item of one user's scores_v1 of the day, for readers who want flat rows. Written where feeds.exploded is on.",
    (c.USER_ID, c.RANK),
    T.StructType(
        [
            _column(c.USER_ID, _STRING, "for whom"),
            _column(c.RANK, _INT, "place in the user's list, from 1"),
            _column(c.ITEM_ID, _STRING, "the item"),
            _column(c.SCORE, _FLOAT, "probability of being the next item, 0..1"),
        ]
    ),
)

DRIFT = Contract(
    "drift_v1",
    "One of the users whose interests move most: the feeds.drift_users of scores_v1 of the day with the greatest "
    "drift. Rows without drift are left out.",
    (c.USER_ID,),
    T.StructType(
        [
            _column(c.USER_ID, _STRING, "who moves"),
            _column(c.AS_OF, _TIME, "the cutoff, UTC"),
            _column(c.MODEL_VERSION, _STRING, "the bundle that scored the row"),
            _column(c.RANK, _INT, "place by falling drift, ties by user_id, from 1"),
            _column(c.DRIFT, _FLOAT, "drift of the row of scores_v1, 0..1"),
            _column(
                c.CATEGORY_ID, _STRING, "the listed interest that moves most, up or down; null where none is", True
            ),
            _column(c.PROBABILITY, _FLOAT, "its probability for the next event", nullable=True),
            _column(c.PAST_SHARE, _FLOAT, "its share of the past", nullable=True),
            _column(c.TREND, _STRING, "its trend", nullable=True),
        ]
    ),
)

USER_STATES = Contract(
    "user_states_v1",
    "What the model knows of one user after the events that were last scored, so that the next night reads new ones "
    "only. Layers: a day that lies on an earlier one (inputs) holds the users who were scored that day, the others' "
    "rows are those of the layers below; who is in no row of that day's scores_v1 has gone. `bucket-NNNNN.parquet` "
    "holds the users with pmod(hash(user_id), counters.buckets) = NNNNN, as do the files of the scores_v1 that were "
    "written with it (inputs). Only jobs/score.py reads this table.",
    (c.USER_ID, c.MODEL_VERSION),
    T.StructType(
        [
            _column(c.USER_ID, _STRING, "whose state"),
            _column(c.MODEL_VERSION, _STRING, "the bundle that made it; no other one can use it"),
            _column(c.LAST_TIME, _TIME, "time of the last event read, UTC"),
            _column(c.N_EVENTS, _INT, "events read since the start of the context"),
            _column(
                c.PAST_CATEGORIES,
                _INTS,
                "known category of each event of the row of sequences_v1, rising: what drift compares the days ahead "
                "with as the silence grows",
            ),
            _column(c.EVENTS_HASH, _LONG, "hash of these events as the model saw them, in order"),
            _column(c.ROW_HASH, _LONG, "hash of everything in the row of sequences_v1 that scores depend on"),
            _column(
                c.STATE,
                T.BinaryType(),
                "little-endian float32: h and c of each layer, first layer first, or what else its cell carries; then, "
                "where the model reads them, the sums of silences",
            ),
        ]
    ),
)

_WEIGHTED_ITEMS = T.ArrayType(
    T.StructType([_column(c.ITEM_ID, _STRING, "the item"), _column(c.PROBABILITY, _FLOAT, "0..1")]),
    containsNull=False,
)
_WEIGHTED_CATEGORIES = T.ArrayType(
    T.StructType([_column(c.CATEGORY_ID, _STRING, "the category"), _column(c.PROBABILITY, _FLOAT, "0..1")]),
    containsNull=False,
)

_FUTURES = T.ArrayType(
    T.StructType(
        [
            _column(c.HORIZON_DAYS, _INT, "days after the cutoff that it speaks of"),
            _column(c.RETURNS, _FLOAT, "probability that a session starts within them, 0..1"),
            _column(
                c.CATEGORIES,
                T.ArrayType(
                    T.StructType(
                        [
                            _column(c.CATEGORY_ID, _STRING, "the category"),
                            _column(
                                c.PROBABILITY,
                                _FLOAT,
                                "expected share of the user's events within the days, given that there are any, 0..1",
                            ),
                            _column(c.TOUCHED, _FLOAT, "probability of at least one event in it, 0..1"),
                        ]
                    ),
                    containsNull=False,
                ),
                "all categories, falling by probability",
            ),
        ]
    ),
    containsNull=False,
)

SIMULATED_TRUTH = Contract(
    "simulated_truth_v1",
    "What a simulated user does after the cutoff, in truth, next and within days: from the hidden state (and his own "
    "rate of sessions), and from the observed history alone (the oracle, which no honest model beats by "
    "more than noise).",
    (c.USER_ID,),
    T.StructType(
        [
            _column(c.USER_ID, _STRING, "the simulated user"),
            _column(c.AS_OF, _TIME, "the cutoff, UTC"),
            _column(c.LATENT_CATEGORIES, _WEIGHTED_CATEGORIES, "all categories given the hidden state, falling"),
            _column(c.ORACLE_CATEGORIES, _WEIGHTED_CATEGORIES, "all categories given the observed history, falling"),
            _column(c.LATENT_ITEMS, _WEIGHTED_ITEMS, "the 100 likeliest items given the hidden state, falling"),
            _column(c.ORACLE_ITEMS, _WEIGHTED_ITEMS, "the 100 likeliest items given the observed history, falling"),
            _column(c.LATENT_FUTURE, _FUTURES, "the days ahead given the hidden state and rate, one entry a horizon"),
            _column(c.ORACLE_FUTURE, _FUTURES, "the days ahead given the observed history, one entry a horizon"),
        ]
    ),
)

CONTRACTS = (
    EVENTS,
    REJECTED_EVENTS,
    FLAGGED_USERS,
    HELD_EVENTS,
    SESSIONS,
    OPEN_SESSIONS,
    HISTORIES,
    VOCABULARY,
    SEQUENCES,
    TRAINING_SEQUENCES,
    SCORES,
    SCORES_EXPLODED,
    DRIFT,
    USER_STATES,
    SIMULATED_TRUTH,
)
