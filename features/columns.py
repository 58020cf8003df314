"""Names and reserved values that every layer shares. Plain constants: this module imports nothing."""

# Events
EVENT_ID = "event_id"
USER_ID = "user_id"
ITEM_ID = "item_id"
CATEGORY_ID = "category_id"
ACTION = "action"
EVENT_TIME = "event_time"
INGEST_TIME = "ingest_time"
DWELL_S = "dwell_s"

# Rejected events
REASON = "reason"
RAW = "raw"

# Flagged users
DAY = "day"
RULE = "rule"
VALUE = "value"
CLOSED = "closed"

# Sessions
SESSION_ID = "session_id"
SESSION_START = "session_start"
SESSION_END = "session_end"
N_EVENTS = "n_events"
EVENTS = "events"

# Vocabulary
KIND = "kind"
TOKEN = "token"
ID = "id"
COUNT = "count"
KIND_ITEM = "item"
KIND_CATEGORY = "category"

# Sequences. The five channels are int32 arrays of fixed length L, oldest event first, PAD at the end.
ITEM = "item"
CATEGORY = "category"
ACTION_CODE = "action_code"
GAP = "gap"
HOUR = "hour"
CHANNELS = (ITEM, CATEGORY, ACTION_CODE, GAP, HOUR)
LENGTH = "length"
NEXT_GAP = "next_gap"
LAST_TIME = "last_time"
SEEN_ITEMS = "seen_items"
WINDOW = "window"
SPLIT = "split"
NEXT_ITEM = "next_item"
NEXT_CATEGORY = "next_category"
NEXT_TIME = "next_time"
LABEL_ITEMS = "label_items"
LABEL_CATEGORIES = "label_categories"
LABEL_ACTIONS = "label_actions"
LABEL_TIMES = "label_times"

# What follows a window, for labels over horizons. AGE [L] and AHEAD [A] are seconds before and after its last event.
AGE = "age_s"
AHEAD_CATEGORY = "ahead_category"
AHEAD_ACTION = "ahead_action"
AHEAD = "ahead_s"
AHEAD_CHANNELS = (AHEAD_CATEGORY, AHEAD_ACTION, AHEAD)
AHEAD_LENGTH = "ahead_length"
KNOWN = "known_s"

# Scores
AS_OF = "as_of"
MODEL_VERSION = "model_version"
PROVENANCE = "provenance"
INTERESTS = "interests"
ITEMS = "items"
PROBABILITY = "probability"
PAST_SHARE = "past_share"
MOVE = "move"
TREND = "trend"
DAYS_AHEAD = "ahead"
DAYS = "days"
SHARE = "share"
TOUCHED = "touched"
DRIFT = "drift"
BACK = "back"
HOURS = "hours"
BEST_HOURS = "best_hours"
NEXT_ACTIONS = "actions"
CONTACTS_PER_WEEK = "contacts_per_week"

# Views of the scores
RANK = "rank"
SCORE = "score"

# User states
PAST_CATEGORIES = "past_categories"
EVENTS_HASH = "events_hash"
ROW_HASH = "row_hash"
STATE = "state"

# Simulated truth
LATENT_CATEGORIES = "latent_categories"
ORACLE_CATEGORIES = "oracle_categories"
LATENT_ITEMS = "latent_items"
ORACLE_ITEMS = "oracle_items"
LATENT_FUTURE = "latent_future"
ORACLE_FUTURE = "oracle_future"
HORIZON_DAYS = "horizon_days"
RETURNS = "returns"
CATEGORIES = "categories"

# Partition column of every table: the UTC day of the run, YYYY-MM-DD.
DT = "dt"

# Reserved ids, the same in every vocabulary and channel.
PAD = 0
OOV = 1
FIRST_ID = 2

# Canonical actions, weakest first; their code is FIRST_ID + position.
ACTIONS = ("view", "click", "like", "cart", "buy")
N_ACTION_CODES = FIRST_ID + len(ACTIONS)

# Hour of the week, UTC, Monday 00:00 = FIRST_HOUR.
FIRST_HOUR = 1
N_HOUR_CODES = FIRST_HOUR + 7 * 24

# Gap codes: PAD, UNKNOWN_GAP (a user's first event, or not known), then FIRST_GAP + (edges below the gap).
UNKNOWN_GAP = 1
FIRST_GAP = 2

# Splits
TRAIN = "train"
VALID = "valid"
TEST = "test"
SPLITS = (TRAIN, VALID, TEST)
GLOBAL_TIME = "global_time"
LEAVE_ONE_OUT = "leave_one_out"

MICROS = 1_000_000
DAY_S = 86_400
