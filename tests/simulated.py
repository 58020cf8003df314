"""Small hidden processes for tests: a base spec with overrides, and lives given literally."""

from typing import Any

import numpy as np

from features.simulated_dirt import DirtSpec
from features.simulated_lives import Life
from features.simulated_process import Process, ProcessSpec, process_of

GAP_S = 1800
NO_DIRT: dict[str, Any] = {
    "duplicates": 0.0,
    "unknown_actions": 0.0,
    "empty_ids": 0.0,
    "cut_lines": 0.0,
    "bad_times": 0.0,
    "late_rows": 0.0,
    "late_days": 2,
    "skewed_users": 0.0,
    "skew_s": 240,
    "bots": 0.0,
    "bot_events": 50,
    "bot_gap_s": 1.0,
    "heavy_user": 0.0,
}
BASE: dict[str, Any] = {
    "categories": 12,
    "items": 60,
    "themes": 6,
    "types": 3,
    "regimes": 4,
    "strong_categories": 2,
    "strong_share": 0.9,
    "stay": 0.25,
    "advance": 0.65,
    "repeat": 0.3,
    "successor": 0.35,
    "category_zipf": 0.8,
    "item_zipf": 1.2,
    "sessions_per_day": 0.5,
    "activity_spread": 0.5,
    "late_joiners": 0.2,
    "session_median": 3,
    "session_p95": 14,
    "session_max": 60,
    "gap_mean_s": 90,
    "daily_swing": 0.7,
    "weekend_lift": 1.3,
    "actions": {"view": 0.55, "click": 0.38, "like": 0.027, "cart": 0.033, "buy": 0.01},
}


def process_spec(**overrides: Any) -> ProcessSpec:
    return ProcessSpec(**{**BASE, **overrides})


def process(**overrides: Any) -> Process:
    return process_of(process_spec(**overrides), GAP_S, seed=5)


def dirt(**overrides: Any) -> DirtSpec:
    return DirtSpec(**{**NO_DIRT, **overrides})


def life(sessions: list[list[int]], of: Process) -> Life:
    """A life with these categories, one list a session: one event a second, an hour between sessions."""
    category = np.array([category for session in sessions for category in session])
    session = np.repeat(np.arange(len(sessions)), [len(session) for session in sessions])
    time_ms = 1000 * (np.arange(len(category)) + 3600 * session)
    zeros = np.zeros(len(sessions), dtype=np.int64)
    return Life(
        time_ms, of.first_item[category], category, np.zeros_like(category), session, zeros, of.sessions_per_hour
    )
